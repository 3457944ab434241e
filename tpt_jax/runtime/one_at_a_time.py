"""One run, one folder: the first host holds a lock for all hosts of a command while it writes."""

import contextlib
from collections.abc import Iterator

from tpt_jax.io.lock import LOCK, locked
from tpt_jax.io.paths import Path
from tpt_jax.runtime import hosts


@contextlib.contextmanager
def own_folder(path: Path, option: str) -> Iterator[None]:
    """Holds the lock of a folder, which is created; if nothing comes into it, it is removed afterwards.

    Args:
      option: gives the folder, for the message.

    Raises:
      UserError: another process holds the lock.
    """
    with _locked_by_first(path / LOCK, path, option):
        yield


@contextlib.contextmanager
def own_output(path: Path) -> Iterator[None]:
    """Likewise for a file or folder that is complete or absent; the lock is beside it.

    Raises:
      UserError: another process holds the lock.
    """
    with _locked_by_first(path.with_name(f"{path.name}.{LOCK}"), path, "--output"):
        yield


@contextlib.contextmanager
def _locked_by_first(file: Path, subject: Path, option: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        hosts.broadcast(
            f"lock of {subject}",
            lambda: stack.enter_context(locked(file, str(subject), f"give another {option}")),
        )
        yield
