"""Repositories on the Hugging Face Hub: their names, and their files in the Hub's own cache on this machine."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from tpt_jax.errors import MachineError, UserError
from tpt_jax.terminal import STDERR, say

SCHEME = "hf://"
# As huggingface_hub.utils.validate_repo_id has it, with an owner.
REPOSITORY = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?/[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
REVISION = re.compile(r"[\w.][\w./-]{0,199}", re.ASCII)
SPARE_BYTES = 2**26  # of a disk, left free by a download

Kind = Literal["model", "dataset"]


@dataclasses.dataclass(frozen=True)
class HubName:
    """A repository, and the branch, tag or commit of it that is meant; None for the newest commit."""

    repository: str
    revision: str | None = None
    kind: Kind = "model"

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")

    @property
    def url(self) -> str:
        """The page of the repository."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.repository}"


def parse_hub_name(name: str | os.PathLike[str]) -> HubName | None:
    """The repository that "owner/name" or "hf://owner/name@revision" names; None for the name of a folder.

    A folder of that name wins, and so does one that only lacks its last part: "models/gemma", beside a folder "models",
    is a folder that is missing.

    Raises:
      UserError: the name starts with hf:// and is not one.
    """
    text = os.fspath(name)
    if text.startswith(SCHEME):
        repository, at, revision = text.removeprefix(SCHEME).partition("@")
        if not REPOSITORY.fullmatch(repository) or (at and not REVISION.fullmatch(revision)):
            raise UserError(f"{text!r:.200}: not the name of a repository; write hf://OWNER/NAME or with @REVISION")
        return HubName(repository, revision or None)
    if not isinstance(name, str) or not REPOSITORY.fullmatch(text) or pathlib.Path(text).parent.exists():
        return None
    return HubName(text)


def find_commit(name: HubName) -> str:
    """The commit that a name means now; without a connection, what it meant when its files were fetched last.

    Raises:
      UserError, MachineError: see `fetch`.
    """
    from huggingface_hub import HfApi

    with quiet(), errors_in_one_line(name):
        return HfApi().resolve_revision(name.repository, repo_type=name.kind, revision=name.revision).resolved


def fetch(name: HubName, commit: str, patterns: Sequence[str], ignored: Sequence[str] = ()) -> pathlib.Path:
    """The folder of a repository's files in the Hub's cache, which are downloaded if they are not there.

    A download that was cut off goes on where it ended; until it is complete the folder does not count as there. If all
    files are there, nothing is asked of the Hub.

    Args:
      patterns, ignored: of the files' names, and of those among them to leave out; * stands for / too.

    Raises:
      UserError: the repository or the commit does not exist, or needs a token or an accepted licence; there is no room;
        or files are missing and HF_HUB_OFFLINE is set.
      MachineError: the Hub cannot be reached, or fails.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, HfHubHTTPError

    def snapshot(**options: Any) -> Any:
        return snapshot_download(
            name.repository,
            repo_type=name.kind,
            revision=commit,
            allow_patterns=list(patterns),
            ignore_patterns=list(ignored),
            **options,
        )

    with quiet(), errors_in_one_line(name):
        try:
            missing = [file for file in snapshot(dry_run=True) if file.will_download]
        except Exception as error:  # if it is a DryRunError, there is no list of the commit's files here
            cause = error.__cause__ if isinstance(error, DryRunError) and error.__cause__ else error
            if isinstance(cause, HfHubHTTPError) or not _is_of_network(cause):
                raise cause from None
            folder = pathlib.Path(snapshot(local_files_only=True))
            say(f"{name}: the Hub cannot be reached; taking the files that another program has left in {folder}")
            return folder
        num_bytes = sum(file.file_size or 0 for file in missing)
        if missing:
            _check_room(name, num_bytes)
            say(f"{name}: fetching {len(missing)} files, {_in_words(num_bytes)}, of commit {commit[:12]}")
        return pathlib.Path(snapshot())


def cached_file(name: HubName, commit: str, file: str) -> pathlib.Path | None:
    """A file of a repository, if it has been downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name.repository, file, repo_type=name.kind, revision=commit)
    return pathlib.Path(found) if isinstance(found, str) else None


def _check_room(name: HubName, num_bytes: int) -> None:
    from huggingface_hub import constants

    cache = pathlib.Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes and num_bytes + SPARE_BYTES > free:
        raise UserError(
            f"{name}: needs {_in_words(num_bytes)} more, and {cache} has {_in_words(free)} free; make room, or "
            "set HF_HOME to a folder on a larger disk"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leaves warnings to our own lines, and progress bars to the first host; others hide themselves off a terminal."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    level, had_bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    hides_bars = had_bars and (STDERR.quiet or not STDERR.is_terminal)
    if hides_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if hides_bars:
            enable_progress_bars()


@contextlib.contextmanager
def errors_in_one_line(name: HubName, *, fetches: bool = True) -> Iterator[None]:
    """Raises the library's errors as ours.

    Args:
      fetches: whether the cache could have served, had it been complete.

    Raises:
      UserError: what the user asked for cannot be had.
      MachineError: the Hub cannot be reached, or fails.
    """
    try:
        yield
    except (UserError, MachineError):
        raise
    except Exception as error:
        ours = _in_one_line(name, error, fetches)
        if ours is None:
            raise
        raise ours from error


def _in_one_line(name: HubName, error: BaseException, fetches: bool) -> Exception | None:
    """Our error for one of the library; None for one that has nothing to do with the Hub."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return UserError(_describe_gated(name))
    if isinstance(error, hub.RepositoryNotFoundError):
        return UserError(_describe_missing(name))
    if isinstance(error, hub.RevisionNotFoundError):
        return UserError(
            f"{name}: {name.url} has no such revision; give a branch, a tag or a whole commit of its history"
        )
    if isinstance(error, hub.HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return UserError(f"{name}: the Hub refuses the token; set HF_TOKEN to a valid one")
        if status == 403:
            return UserError(f"{name}: the token does not permit it ({_first_line(error)}); use another")
        return MachineError(f"{name}: the Hub failed with status {status} ({_first_line(error)}); try again")
    if isinstance(error, hub.RevisionResolutionError | hub.LocalEntryNotFoundError) or _is_of_network(error):
        return _unreachable(name, error, fetches)
    if error.__cause__ is not None:  # such as of an upload that failed
        return _in_one_line(name, error.__cause__, fetches)
    return None


def _is_of_network(error: BaseException) -> bool:
    """Whether an error is one of the HTTP library, which is httpx in some versions of huggingface_hub."""
    is_offline = type(error).__name__ == "OfflineModeIsEnabled"
    return is_offline or any(each.__module__.partition(".")[0].startswith("httpx") for each in type(error).__mro__)


def _unreachable(name: HubName, error: BaseException, fetches: bool) -> Exception:
    from huggingface_hub import constants, is_offline_mode

    lack = f", and it is not complete in the cache, {constants.HF_HUB_CACHE}" if fetches else ""
    if is_offline_mode():
        return UserError(f"{name}: HF_HUB_OFFLINE is set{lack}; unset it{', or give a folder' if fetches else ''}")
    cause: BaseException | None = error
    while cause is not None and not _is_of_network(cause):
        cause = cause.__cause__ or cause.__context__
    cause = cause or error
    return MachineError(
        f"{name}: {constants.ENDPOINT} cannot be reached ({type(cause).__name__}: {_first_line(cause)}){lack}"
    )


def _describe_gated(name: HubName) -> str:
    from huggingface_hub import get_token

    if get_token() is None:
        return (
            f"{name}: needs an accepted licence, and there is no token; accept it at {name.url}, then set HF_TOKEN to "
            "one of your tokens, or run `hf auth login`"
        )
    return f"{name}: its licence is not accepted by the owner of the token; accept it at {name.url}, then try again"


def _describe_missing(name: HubName) -> str:
    from huggingface_hub import get_token

    hint = "" if get_token() else "; if it is private, set HF_TOKEN or run `hf auth login`"
    folder = "no such folder here, and " if name.kind == "model" else ""
    return f"{name.repository}: {folder}no such repository at {name.url}{hint}"


def _in_words(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
