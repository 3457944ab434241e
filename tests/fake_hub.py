"""A server that plays the endpoints of the Hugging Face Hub that huggingface_hub uses to fetch and to push.

By hand, for a folder with models as OWNER/NAME/ and data sets as datasets/OWNER/NAME/; what is pushed is written there:

    python tests/fake_hub.py --port 8123 FOLDER
    HF_ENDPOINT=http://localhost:8123 HF_TOKEN=hf_alice HF_HUB_DISABLE_XET=1 tpt export ... --push alice/improved
"""

import argparse
import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REGULAR_BYTES = 100_000  # larger files, and safetensors, are pushed through git-lfs's protocol
REPOSITORY = r"(?P<repository>[\w.-]+/[\w.-]+)"
KIND = r"/api/(?P<kind>model|dataset)s/"
CHUNK = 2**20


@dataclasses.dataclass
class Repository:
    """A repository: its commits from the first on, each with all its files."""

    commits: list[tuple[str, dict[str, Path]]] = dataclasses.field(default_factory=list)
    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    gated_for: set[str] | None = None  # users who accepted the licence; None if there is none to accept
    private: bool = False

    def commit(self, files: dict[str, Path]) -> str:
        number = f"{len(self.commits)}{sorted(files.items())}"
        name = hashlib.sha1(number.encode()).hexdigest()
        self.commits.append((name, files))
        return name

    def at(self, revision: str) -> tuple[str, dict[str, Path]] | None:
        revision = self.tags.get(revision, revision)
        if revision in ("main", "HEAD"):
            return self.commits[-1]
        return next((each for each in self.commits if each[0] == revision), None)


class FakeHub:
    """The server's state; the tests look at it and change it.

    Attributes:
      requests: method, path and token of each request.
      cut_after: bytes of a file, by its name, after which its next download breaks off.
      dies: whether the server is gone when it has broken off a download, or gets the content of a file.
      starts: name and first byte of each download.
      users: by token.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_after: dict[str, int] = {}
        self.starts: list[tuple[str, int]] = []
        self.users = {"hf_alice": "alice", "hf_bob": "bob"}
        self.sizes: dict[str, int] = {}  # that the server claims, by file name
        self.is_gone = self.dies = False
        self.server = http.server.ThreadingHTTPServer(("localhost", 0), _Handler)
        self.server.hub = self  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def url(self) -> str:
        return f"http://localhost:{self.server.server_address[1]}"

    def add(self, name: str, files: dict[str, Path], kind: str = "model", **options: Any) -> str:
        """Adds a repository, or a commit to it; returns the commit."""
        repository = self.repositories.setdefault((kind, name), Repository(**options))
        return repository.commit(files)

    def add_folder(self, name: str, folder: Path, kind: str = "model", **options: Any) -> str:
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return self.add(name, files, kind, **options)

    def files(self, name: str) -> dict[str, bytes]:
        """The newest files of a model."""
        return {path: content.read_bytes() for path, content in self.repositories["model", name].commits[-1][1].items()}

    def paths(self, method: str, prefix: str = "") -> list[str]:
        return [path for each, path, _ in self.requests if each == method and path.startswith(prefix)]


@contextlib.contextmanager
def serve(port: int = 0) -> Iterator[FakeHub]:
    """A hub that listens until the `with` block ends."""
    with tempfile.TemporaryDirectory() as store:
        hub = FakeHub(Path(store))
        if port:
            hub.server.server_close()
            hub.server = http.server.ThreadingHTTPServer(("localhost", port), _Handler)
            hub.server.hub = hub  # pyright: ignore[reportAttributeAccessIssue]
        thread = threading.Thread(target=hub.server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.is_gone = True
            hub.server.shutdown()
            hub.server.server_close()
            thread.join()


def fetching_from(hub: FakeHub, cache: Path, monkeypatch: Any) -> None:
    """Makes the libraries in this process use a hub, and a cache, of our own, and no token."""
    from huggingface_hub import constants

    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    # Requests.

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def _handle(self) -> None:
        if self.hub.is_gone:  # or the client's connection would stay open
            self.close_connection = True
            return
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path, self.token))
        for methods, pattern, answer in ROUTES:
            if self.command in methods and (match := re.fullmatch(pattern, path)):
                return answer(self, **match.groupdict())
        self._fail(404, "EntryNotFound", f"the fake Hub does not know {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815 (named by http.server)

    @property
    def hub(self) -> FakeHub:
        return self.server.hub  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def user(self) -> str | None:
        return self.hub.users.get(self.token or "")

    # Answers.

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _find(self, kind: str, repository: str, revision: str) -> tuple[str, dict[str, Path]] | None:
        """A commit; None after an answer that says what is wrong."""
        found = self.hub.repositories.get((kind, repository))
        if found is None or (found.private and self.user != repository.partition("/")[0]):
            # The Hub does not tell strangers what exists.
            status, code = (404, "RepoNotFound") if self.user else (401, "RepoNotFound")
            self._fail(status, code, "Repository not found")
            return None
        if (commit := found.at(revision)) is None:
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Fetching.

    def info(self, kind: str, repository: str, revision: str | None = None) -> None:
        if commit := self._find(kind, repository, revision or "main"):
            siblings = [{"rfilename": name} for name in commit[1]]
            owner = repository.partition("/")[0]
            self._json({"id": repository, "sha": commit[0], "siblings": siblings, "author": owner, "tags": []})

    def tree(self, kind: str, repository: str, revision: str, folder: str | None = None) -> None:
        if commit := self._find(kind, repository, revision):
            prefix = f"{folder}/" if folder else ""
            entries = [self._entry(name, path) for name, path in commit[1].items() if name.startswith(prefix)]
            if folder and not entries:
                self._fail(404, "EntryNotFound", f"{folder} does not exist")
                return
            if urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query).get("recursive") != ["True"]:
                rests = [entry["path"].removeprefix(prefix) for entry in entries]
                entries = [entry for entry, rest in zip(entries, rests, strict=True) if "/" not in rest]
                folders = {rest.partition("/")[0] for rest in rests if "/" in rest}
                entries += [
                    {"type": "directory", "oid": "0" * 40, "size": 0, "path": prefix + each} for each in folders
                ]
            self._json(entries)

    def paths_info(self, kind: str, repository: str, revision: str) -> None:
        if commit := self._find(kind, repository, revision):
            form = urllib.parse.parse_qs(self.body.decode())
            asked = json.loads(self.body)["paths"] if self.body.startswith(b"{") else form["paths"]
            folders = {str(parent) for name in commit[1] for parent in Path(name).parents if str(parent) != "."} & {
                *asked
            }
            entries = [self._entry(name, commit[1][name]) for name in asked if name in commit[1]]
            self._json(
                [*entries, *({"type": "directory", "oid": "0" * 40, "size": 0, "path": each} for each in folders)]
            )

    def _entry(self, name: str, path: Path) -> dict[str, Any]:
        size = self.hub.sizes.get(name, path.stat().st_size)
        entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": _etag(path)[:40]}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": _etag(path), "size": size, "pointerSize": 134}
        return entry

    def resolve(self, kind: str | None, repository: str, revision: str, name: str) -> None:
        found = self._find("dataset" if kind else "model", repository, revision)
        if found is None:
            return
        commit, files = found
        allowed = self.hub.repositories["dataset" if kind else "model", repository].gated_for
        if allowed is not None and self.user not in allowed:
            self._fail(401 if self.user is None else 403, "GatedRepo", f"Access to model {repository} is restricted")
        elif name not in files:
            self._fail(404, "EntryNotFound", f"{name} does not exist")
        else:
            self._send_file(name, files[name], commit)

    def _send_file(self, name: str, path: Path, commit: str) -> None:
        total = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first, last = (int(wanted[1]), int(wanted[2] or total - 1)) if wanted else (0, total - 1)
        size = self.hub.sizes.get(name, last - first + 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(size))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        for header, value in (("ETag", f'"{_etag(path)}"'), ("X-Repo-Commit", commit), ("Accept-Ranges", "bytes")):
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.starts.append((name, first))
        with path.open("rb") as file:
            file.seek(first)
            left = last - first + 1
            limit = self.hub.cut_after.pop(name, None)
            if limit is not None:
                self.wfile.write(file.read(limit))
                self.close_connection = True
                self.hub.is_gone = self.hub.dies
                return
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                self.wfile.write(chunk)
                left -= len(chunk)

    # Pushing.

    def whoami(self) -> None:
        if self.user is None:
            self._fail(401, "", "Invalid credentials in Authorization header")
        else:
            self._json({"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or self.user}/{asked['name']}"
        if self._may_write(name):
            if ("model", name) in self.hub.repositories:
                self._fail(409, "", "You already created this model repo")
                return
            is_private = asked.get("private") is True or asked.get("visibility") == "private"
            self.hub.add(name, {}, private=is_private)
            self._json({"url": f"{self.hub.url}/{name}"})

    def _may_write(self, repository: str) -> bool:
        if self.user is None:
            self._fail(401, "", "Invalid credentials in Authorization header")
        elif repository.partition("/")[0] != self.user:
            self._fail(403, "", "You don't have the rights to write there")
        return repository.partition("/")[0] == self.user

    def validate(self) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, kind: str, repository: str, revision: str) -> None:
        if self._may_write(repository):
            files = json.loads(self.body)["files"]

            def mode(file: dict[str, Any]) -> str:
                is_large = file["size"] > REGULAR_BYTES or file["path"].endswith(".safetensors")
                return "lfs" if is_large else "regular"

            answers = [{"path": file["path"], "uploadMode": mode(file), "shouldIgnore": False} for file in files]
            self._json({"files": answers})

    def lfs_batch(self, repository: str) -> None:
        if self._may_write(repository):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}", "header": {}}}}
                for each in json.loads(self.body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if self.hub.dies:
            self.close_connection = self.hub.is_gone = True
            return
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._fail(400, "", "not the content that was announced")
            return
        (self.hub.store / oid).write_bytes(self.body)
        self._send(200, b"", {})

    def commit(self, kind: str, repository: str, revision: str) -> None:
        if not self._may_write(repository):
            return
        stored = self.hub.repositories[kind, repository]
        files = dict(stored.commits[-1][1])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                path = self.hub.store / hashlib.sha256(content).hexdigest()
                path.write_bytes(content)
                files[value["path"]] = path
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.store / value["oid"]
            elif line["key"].startswith("deleted"):
                files = {name: path for name, path in files.items() if not name.startswith(value["path"])}
        name = stored.commit(files)
        url = f"{self.hub.url}/{repository}/commit/{name}"
        self._json({"success": True, "commitUrl": url, "commitOid": name})


_etags: dict[tuple[Path, int, int], str] = {}


def _etag(path: Path) -> str:
    status = path.stat()
    key = (path, status.st_size, status.st_mtime_ns)
    if key not in _etags:
        with path.open("rb") as file:
            _etags[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _etags[key]


ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("GET",), rf"{KIND}{REPOSITORY}", _Handler.info),
    (("GET",), rf"{KIND}{REPOSITORY}/revision/(?P<revision>.+)", _Handler.info),
    (("GET",), rf"{KIND}{REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
    (("POST",), rf"{KIND}{REPOSITORY}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    (("GET", "HEAD"), rf"(?P<kind>/datasets)?/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
    (("GET",), r"/api/whoami-v2", _Handler.whoami),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("POST",), r"/api/validate-yaml", _Handler.validate),
    (("POST",), rf"{KIND}{REPOSITORY}/preupload/(?P<revision>.+)", _Handler.preupload),
    (("POST",), rf"/{REPOSITORY}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), r"/lfs/(?P<oid>\w+)", _Handler.lfs_put),
    (("POST",), rf"{KIND}{REPOSITORY}/commit/(?P<revision>.+)", _Handler.commit),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    with serve(args.port) as hub:
        for kind, root in (("model", args.folder), ("dataset", args.folder / "datasets")):
            for folder in sorted(path for path in root.glob("*/*") if path.is_dir() and path.parent.name != "datasets"):
                hub.add_folder(f"{folder.parent.name}/{folder.name}", folder, kind)
        print(f"HF_ENDPOINT={hub.url}; tokens: {', '.join(hub.users)}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        for (kind, name), repository in hub.repositories.items():
            if kind == "model":
                for path, content in repository.commits[-1][1].items():
                    target = args.folder / name / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not target.exists() or not target.samefile(content):
                        target.write_bytes(content.read_bytes())


if __name__ == "__main__":
    main()
