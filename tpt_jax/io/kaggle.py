"""Models on Kaggle, through kagglehub where that is installed."""

import contextlib
import io
import logging
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from tpt_jax.errors import MachineError, UserError
from tpt_jax.terminal import STDERR, say

SCHEME = "kaggle://"
HANDLE = re.compile(r"([\w-]+/[\w.-]+/\w+/[\w.-]+)(?:/([1-9]\d*))?", re.ASCII)
FORM = "kaggle://OWNER/MODEL/FRAMEWORK/VARIATION, or with /VERSION"


def fetch_kaggle(name: str, version: str | None = None) -> tuple[pathlib.Path, str]:
    """The folder of a model in Kaggle's cache, and its version; downloads it if it is not there, or only in part.

    In a Kaggle notebook, kagglehub attaches the model to the notebook instead.

    Args:
      version: instead of the one in the name, or the newest.

    Raises:
      UserError: kagglehub is not installed, the name is not one, or the model does not exist or needs a login or a
        licence accepted.
      MachineError: Kaggle cannot be reached, or fails.
    """
    match = HANDLE.fullmatch(name.removeprefix(SCHEME))
    if not match:
        raise UserError(f"{name!r:.200}: not a model on Kaggle; write {FORM}")
    try:
        import kagglehub
    except ImportError as error:
        raise UserError(f"{name}: models on Kaggle need kagglehub; pip install 'tpt_jax[kaggle]'") from error
    handle, version = match[1], version or match[2]
    say(f"{name}: looking for {f'version {version}' if version else 'the newest version'} on Kaggle")
    with _quiet(), _errors_in_one_line(name, handle):
        folder = pathlib.Path(kagglehub.model_download(f"{handle}/{version}" if version else handle))
    found = version or folder.name  # the cache and the notebook's mount have a folder for each version
    if not found.isdecimal():
        raise MachineError(f"{name}: kagglehub put it into {folder}, which does not end in its version; name a version")
    return folder, found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps kagglehub's lines to itself, and its progress bars to a terminal."""
    logger = logging.getLogger("kagglehub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    shows_bars = STDERR.is_terminal and not STDERR.quiet
    with contextlib.redirect_stdout(io.StringIO()), contextlib.ExitStack() as stack:
        if not shows_bars:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            yield
        finally:
            logger.setLevel(level)


@contextlib.contextmanager
def _errors_in_one_line(name: str, handle: str) -> Iterator[None]:
    import requests  # kagglehub's
    from kagglehub.exceptions import UnauthenticatedError

    page = f"https://www.kaggle.com/models/{handle}"
    log_in = "set KAGGLE_USERNAME and KAGGLE_KEY, or put kaggle.json into ~/.kaggle"
    try:
        yield
    except UnauthenticatedError as error:
        raise UserError(f"{name}: Kaggle wants to know who asks; {log_in}") from error
    except requests.HTTPError as error:
        status = _status(error)
        if status in (401, 403):
            raise UserError(f"{name}: Kaggle refuses it; accept its licence at {page}, and {log_in}") from error
        if status == 404:
            raise UserError(f"{name}: no such model, or no such version, at {page}") from error
        raise MachineError(f"{name}: Kaggle failed with status {status}; try again") from error
    except requests.RequestException as error:
        reason = str(error).partition("\n")[0]
        raise MachineError(f"{name}: Kaggle cannot be reached ({type(error).__name__}: {reason})") from error


def _status(error: Any) -> int | None:
    return None if error.response is None else error.response.status_code
