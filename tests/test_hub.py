"""Models by name: from a server that plays the Hugging Face Hub, and from one that plays Kaggle."""

import dataclasses
import json
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, fetching_from, serve
from processes import EASY_TASK

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.checkpoints.model_names import full_name, hub_parts
from tpt_jax.config import LoRAConfig, RunConfig
from tpt_jax.config_parsing import load_config, plain_values
from tpt_jax.errors import MachineError, UserError
from tpt_jax.io.files import write_atomically
from tpt_jax.io.hub import parse_hub_name
from tpt_jax.io.paths import to_path
from tpt_jax.library.sweep import with_recorded_versions
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.loop.sweep_plan import SweepFolder, make_plan
from tpt_jax.loop.versions import with_version
from tpt_jax.runtime import hosts

MODEL = Path(__file__).parent.parent / "tpt_jax/quickstart/model"
NEEDED = {path.name for path in MODEL.iterdir()}
UNUSED = ("pytorch_model.bin", "model.gguf", "consolidated.safetensors", "original/model.safetensors", "onnx/a.onnx")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve() as hub:
        fetching_from(hub, tmp_path / "cache", monkeypatch)
        yield hub


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another commit of the model."""
    folder = tmp_path / "other"
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text()) | {"rms_norm_eps": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_only_the_files_that_are_used_are_fetched_and_once(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.name: path for path in MODEL.iterdir()} | dict.fromkeys(UNUSED, MODEL / "config.json")
    commit = hub.add("alice/tiny", files, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    model = ModelFolder.open("alice/tiny")
    model.check_weights()
    assert model.name == f"hf://alice/tiny@{commit}"
    assert {name for name, _ in hub.starts} == NEEDED
    assert {token for _, path, token in hub.requests if "/tiny" in path} == {"hf_alice"}
    assert {path.name: path.read_bytes() for path in map(Path, model.path.iterdir())} == {
        path.name: path.read_bytes() for path in MODEL.iterdir()
    }

    hub.requests.clear()
    assert ModelFolder.open("hf://alice/tiny").path == model.path
    assert hub.paths("GET") == ["/api/models/alice/tiny"]  # whether there is a newer commit
    hub.requests.clear()
    assert ModelFolder.open("alice/tiny", commit).path == model.path
    assert not hub.requests


def test_a_folder_wins_and_a_missing_one_beside_others_is_not_looked_for(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MODEL, tmp_path / "alice/tiny")
    assert ModelFolder.open("alice/tiny").name == "alice/tiny"
    with pytest.raises(UserError, match=r"^alice/tinny: no such folder; give the folder"):
        ModelFolder.open("alice/tinny")
    assert not hub.requests
    for name in ("./a/b", "~/a", "/a/b", "a/b/c", "a", "a/b.", "-a/b", "a/ b", "../a"):
        assert parse_hub_name(name) is None


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library writes every few bytes, and tries again at once."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)


@pytest.mark.usefixtures("impatient")
def test_a_download_that_breaks_off_goes_on_where_it_was(hub: FakeHub) -> None:
    hub.add_folder("alice/tiny", MODEL)
    hub.cut_after["model.safetensors"] = 100_000
    model = ModelFolder.open("alice/tiny")
    assert [first for name, first in hub.starts if name == "model.safetensors"] == [0, 100_000]
    assert (model.path / "model.safetensors").read_bytes() == (MODEL / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("impatient")
def test_a_half_downloaded_model_counts_as_missing(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add_folder("alice/tiny", MODEL)
    hub.cut_after["model.safetensors"], hub.dies = 100_000, True
    for _ in range(2):
        with pytest.raises(MachineError, match=r"cannot be reached \(.*, and it is not complete in the cache"):
            ModelFolder.open("alice/tiny", commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set, and it is not complete in the cache"):
        ModelFolder.open("alice/tiny", commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    hub.is_gone = False
    model = ModelFolder.open("alice/tiny")
    assert (model.path / "model.safetensors").read_bytes() == (MODEL / "model.safetensors").read_bytes()
    assert sorted(name for name, _ in hub.starts) == sorted([*NEEDED, "model.safetensors"])  # the others once
    hub.is_gone = True
    assert ModelFolder.open("alice/tiny").path == model.path  # what the name meant last
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert ModelFolder.open("alice/tiny").path == model.path


def test_offline_what_another_program_has_fetched_is_taken(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # it tries again for 23 seconds

    commit = hub.add_folder("alice/tiny", MODEL)
    for name in NEEDED:
        huggingface_hub.hf_hub_download("alice/tiny", name, endpoint=hub.url)
    hub.is_gone = True
    model = ModelFolder.open("alice/tiny")
    model.check_weights()
    assert model.name == f"hf://alice/tiny@{commit}"
    assert "cannot be reached; taking the files that another program has left in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        (
            "alice/tinny",
            None,
            r"^alice/tinny: no such folder here, and no such repository at \S+/alice/tinny; if it is",
        ),
        ("alice/tinny", "hf_bob", r"no such repository at \S+/alice/tinny$"),
        ("hf://alice/tiny@v7", None, r"^hf://alice/tiny@v7: \S+/alice/tiny has no such revision; give a branch, a tag"),
        (f"hf://alice/tiny@{'0' * 40}", None, r"has no such revision"),
        (
            "bob/gated",
            None,
            r"^hf://bob/gated: needs an accepted licence, .* accept it at http://\S+/bob/gated, .*HF_TOKEN",
        ),
        ("bob/gated", "hf_bob", r"^hf://bob/gated: its licence is not accepted .*; accept it at http://\S+/bob/gated"),
        ("alice/secret", "hf_bob", r"no such repository"),
        ("alice/huge", None, r"^hf://alice/huge: needs 1,000,000\.00 GB more, and \S+cache\S* has .*HF_HOME"),
        ("hf://alice", None, r"^'hf://alice': not the name of a repository; write hf://OWNER/NAME or with @REVISION$"),
        ("hf://alice/tiny@", None, r"not the name of a repository"),
        ("alice/words", None, r"has no config\.json"),
        ("kaggle://google/gemma-2", None, r"not a model on Kaggle; write kaggle://OWNER/MODEL/FRAMEWORK/VARIATION"),
    ],
)
def test_mistakes_are_refused_in_one_line(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, token: str | None, message: str
) -> None:
    hub.add_folder("alice/tiny", MODEL)
    hub.add_folder("bob/gated", MODEL, gated_for={"alice"})
    hub.add_folder("alice/secret", MODEL, private=True)
    hub.add("alice/words", {"README.md": Path(__file__)})
    hub.add_folder("alice/huge", MODEL)
    if name == "alice/huge":
        hub.sizes["model.safetensors"] = 10**15
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message):
        ModelFolder.open(name)
    assert not [start for start in hub.starts if start[0] == "model.safetensors"]


def test_without_a_connection_the_message_says_why(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.is_gone = True
    with pytest.raises(
        MachineError, match=r"^hf://alice/tiny: http://localhost:\d+ cannot be reached \(\w+: .*\), and"
    ):
        ModelFolder.open("alice/tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"^hf://alice/tiny: HF_HUB_OFFLINE is set, and it is not complete in the cache"
    ):
        ModelFolder.open("alice/tiny")


def test_a_run_keeps_the_commit_that_it_started_with(hub: FakeHub, other: Path, tmp_path: Path) -> None:
    given = load_config(write_easy(tmp_path), {"model.path": "alice/tiny"})
    first = hub.add_folder("alice/tiny", MODEL)
    path = to_path(tmp_path / "run")
    config = with_version(given, path)
    assert config.model.version == first
    RunFolder.open(path, config).begin(config)

    second = hub.add_folder("alice/tiny", other)
    assert with_version(given, path).model.version == second  # nothing has been computed yet
    write_atomically(path / "rounds/000/stages.json", "{}")
    assert with_version(given, path) == config
    RunFolder.open(path, with_version(given, path))
    opened = ModelFolder.open("alice/tiny", first)
    assert opened.config == ModelFolder.open("quickstart").config != ModelFolder.open("alice/tiny").config

    chosen = _with_version(given, second)
    assert with_version(chosen, path) == chosen
    with pytest.raises(UserError, match=rf"model\.version is {first} there, {second} here"):
        RunFolder.open(path, chosen)


def test_a_sweep_keeps_the_commit_that_it_started_with(hub: FakeHub, other: Path, tmp_path: Path) -> None:
    tree = plain_values(load_config(write_easy(tmp_path), {"model.path": "alice/tiny"}))
    given = make_plan(tree, {}, vary={"train.rows": [4, 8]})
    first = hub.add_folder("alice/tiny", MODEL)
    folder = SweepFolder(to_path(tmp_path / "sweep"))
    plan = with_recorded_versions(given, folder)
    assert [arm.config.model.version for arm in plan.arms] == [first, first]
    assert len(hub.paths("GET", "/api/models/alice/tiny")) == 1
    SweepFolder.open(folder.path, plan).begin(plan)
    run = folder.run(plan.arms[1], 0)
    RunFolder(run).begin(plan.run_config(plan.arms[1], 0))
    write_atomically(run / "rounds/000/stages.json", "{}")

    hub.add_folder("alice/tiny", other)
    assert with_recorded_versions(given, folder) == plan
    assert SweepFolder.open(folder.path, plan).read_plan() == plan


def write_easy(folder: Path) -> Path:
    (folder / "easy.yaml").write_text(EASY_TASK)
    return folder / "easy.yaml"


def test_adapters_find_their_base_by_name(hub: FakeHub, other: Path, tmp_path: Path) -> None:
    commit = hub.add_folder("alice/tiny", MODEL)
    base = ModelFolder.open("alice/tiny")
    file = base.adapter_file(LoRAConfig())
    assert file.base == f"hf://alice/tiny@{commit}"
    hub.add_folder("alice/tiny", other)
    assert dataclasses.replace(base, path=to_path(tmp_path), adapters=file).base() == base
    assert hub_parts(file.base) == ("alice/tiny", commit)  # as PEFT names it
    assert hub_parts("/a/b") == ("/a/b", None)


def test_a_name_that_has_become_a_folder_still_means_the_commit(
    hub: FakeHub, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add_folder("alice/tiny", MODEL)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(other, tmp_path / "alice/tiny")
    assert ModelFolder.open("alice/tiny", commit).config != ModelFolder.open("alice/tiny").config
    with pytest.raises(UserError, match=r"/nowhere: a folder has no version; leave model\.version out"):
        ModelFolder.open("/nowhere", commit)


def test_all_hosts_use_what_the_first_one_finds(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others ask nobody: they may see a newer commit."""
    commit = hub.add_folder("alice/tiny", MODEL)
    names: list[str] = []

    def receive(name: str, make: Any) -> Any:
        names.append(name)
        return commit

    monkeypatch.setattr(hosts, "broadcast", receive)
    assert ModelFolder.open("alice/tiny").name == f"hf://alice/tiny@{commit}"
    assert names == ["version of alice/tiny"]
    assert "/api/models/alice/tiny" not in hub.paths("GET")


def _with_version(config: RunConfig, version: str) -> RunConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, version=version))


# Kaggle.


class _FakeKaggle(BaseHTTPRequestHandler):
    """Kaggle's model service with google/gemma-2/transformers/2b-it, whose newest version is 3."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _, _, call = self.path.rpartition("/")
        if asked["modelSlug"] != "gemma-2" or asked.get("versionNumber", 3) not in (2, 3):
            self._answer(404, json.dumps({"code": 404, "message": "Not found"}).encode())
        elif asked["ownerSlug"] == "gated":
            self._answer(403, json.dumps({"code": 403, "message": "Forbidden"}).encode())
        elif call == "GetModelInstance":
            self._answer(200, json.dumps({"versionNumber": 3}).encode())
        elif call == "ListModelInstanceVersionFiles":
            files = [{"name": path.name} for path in MODEL.iterdir()]
            self._answer(200, json.dumps({"files": files}).encode())
        else:
            self._answer(200, (MODEL / asked["path"]).read_bytes(), "application/octet-stream")

    def _answer(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """kagglehub itself, with a server of ours in place of Kaggle's."""
    import kagglesdk.kaggle_env

    server = ThreadingHTTPServer(("localhost", 0), _FakeKaggle)
    url = f"http://localhost:{server.server_address[1]}"
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setitem(kagglesdk.kaggle_env._env_to_endpoint, kagglesdk.kaggle_env.KaggleEnv.LOCAL, url)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.usefixtures("kaggle")
def test_a_model_on_kaggle_is_fetched_with_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    name = "kaggle://google/gemma-2/transformers/2b-it"
    model = ModelFolder.open(name)
    assert model.name == full_name(name, "3") == f"{name}/3"
    model.check_weights()
    assert ModelFolder.open(f"{name}/2").name == f"{name}/2"
    assert ModelFolder.open(name, "2").path == ModelFolder.open(f"{name}/2").path != model.path
    printed = capsys.readouterr()
    assert not printed.out
    assert all(line.startswith("kaggle://") for line in printed.err.splitlines())
    for wrong, message in (
        (
            "kaggle://google/gemma-3/transformers/2b-it",
            r"no such model, or no such version, at https://www\.kaggle\.com/",
        ),
        (f"{name}/7", "no such model, or no such version"),
        (
            "kaggle://gated/gemma-2/transformers/2b-it",
            r"Kaggle refuses it; accept its licence at https://www\.kaggle\.com",
        ),
    ):
        with pytest.raises(UserError, match=message):
            ModelFolder.open(wrong)


def test_kaggle_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(UserError, match=re.escape("models on Kaggle need kagglehub; pip install 'tpt_jax[kaggle]'")):
        ModelFolder.open("kaggle://google/gemma-2/transformers/2b-it")
