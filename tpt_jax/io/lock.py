"""A lock on a folder or an output: one process at a time writes there.

On a disk the kernel holds it (flock), and drops it when the process dies, however it dies. In a bucket, and on file
systems that lock nothing, it is a lease: a file that its holder writes again every few seconds, and that may be taken
over once it has stayed the same for EXPIRY seconds. Clocks of several machines are never compared.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from tpt_jax.errors import UserError
from tpt_jax.io.files import make_folder, naming, write_atomically
from tpt_jax.io.paths import Path, is_remote
from tpt_jax.terminal import say

LOCK = "lock"  # the lock's name in a folder
CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # from file systems that lock nothing

BEAT = 15.0  # seconds between renewals of a lease
EXPIRY = 60.0  # seconds without a renewal after which its holder is dead
SETTLE = 3.0  # seconds in which every process that saw no lease has written its own; the last one to write holds it

Owner = dict[str, Any]  # who holds a lock, as its file says


class HeldError(Exception):
    """Another process holds the lock."""

    def __init__(self, owner: Owner):
        super().__init__(f"process {owner.get('process')} on host {owner.get('host')} since {owner.get('since')}")


@contextlib.contextmanager
def locked(file: Path, subject: str, advice: str) -> Iterator[None]:
    """Holds a lock while the body runs. Its file is removed afterwards, and its folder if nothing else came into it.

    Args:
      file: says who holds the lock; its folder is created.
      subject: what is locked, for the message.
      advice: what to do instead of waiting, for the message.

    Raises:
      UserError: another process holds the lock.
      OSError: the file cannot be written.
    """
    is_new = not file.parent.is_dir()
    make_folder(file.parent)
    try:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_leased(file) if is_remote(file) else _flocked(file))
            except HeldError as error:
                raise UserError(f"{subject}: is in use by {error}; wait until it ends, or {advice}") from error
            yield
    finally:
        if is_new and not is_remote(file):
            with contextlib.suppress(OSError):  # something came into it
                os.rmdir(file.parent)


@contextlib.contextmanager
def _flocked(file: Path) -> Iterator[None]:
    """A lock of the kernel's, or a lease where the file system has none."""
    with contextlib.ExitStack() as stack:
        with naming(file):
            stream = _open_locked(file)
            if stream is None:
                stack.enter_context(_leased(file))
            else:
                stack.enter_context(stream)
                stack.callback(file.unlink, missing_ok=True)  # while it is locked: nobody else's is removed
                _write(stream)
        yield


def _write(stream: TextIO) -> None:
    stream.truncate(0)
    stream.write(json.dumps(_this_process()))
    stream.flush()


def _open_locked(file: Path) -> TextIO | None:
    """The file, open and locked; None if its file system locks nothing.

    Raises:
      HeldError: another process has locked it.
    """
    while True:
        stream = open(file, "a", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.exists() and os.path.samestat(os.fstat(stream.fileno()), os.stat(file)):
                return stream
            stream.close()  # its last holder has removed it since it was opened
        except BlockingIOError:
            stream.close()
            raise HeldError(_read(file)) from None
        except OSError as error:
            stream.close()
            if error.errno not in CANNOT_LOCK:
                raise
            return None


@contextlib.contextmanager
def _leased(file: Path) -> Iterator[None]:
    """A lease. If this process is not heard of for a minute and another takes over, this one is interrupted.

    Raises:
      HeldError: another process renews it.
    """
    owner = {**_this_process(), "lease": uuid.uuid4().hex}
    _wait_for_expiry(file)
    _renew(file, owner, 0)
    time.sleep(SETTLE)
    if not _is_held_by(file, owner):
        raise HeldError(_read(file))
    stopped = threading.Event()
    thread = threading.Thread(target=_keep_renewing, args=(file, owner, stopped.wait), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        if _is_held_by(file, owner):
            file.unlink(missing_ok=True)


def _wait_for_expiry(file: Path) -> None:
    """Returns once there is no lease, or it has expired.

    Raises:
      HeldError: it was renewed meanwhile.
    """
    first = _read(file)
    if not first or _is_dead(first):
        return
    say(f"{file}: held by {HeldError(first)}; waiting up to {EXPIRY:.0f} s for a sign of life")
    deadline = time.monotonic() + EXPIRY
    while time.monotonic() < deadline:
        time.sleep(min(1.0, BEAT))
        now = _read(file)
        if not now:
            return
        if now != first:
            raise HeldError(now)


def _keep_renewing(file: Path, owner: Owner, wait: Callable[[float], bool]) -> None:
    beat = 0
    while not wait(BEAT):
        beat += 1
        try:
            if not _is_held_by(file, owner):
                say(f"{file}: {HeldError(_read(file))} has taken over, since this process was not heard of; it ends")
                _interrupt()
                return
            _renew(file, owner, beat)
        except OSError as error:  # the network may be back at the next beat
            say(f"{file}: not renewed ({error.strerror or error})")


def _interrupt() -> None:
    """Ends what the main thread does, as Ctrl-C; at once where the process ignores that, as in a shell's background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        os._exit(1)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _renew(file: Path, owner: Owner, beat: int) -> None:
    write_atomically(file, json.dumps({**owner, "beat": beat}))


def _read(file: Path) -> Owner:
    """Who holds the lock, as far as its file says; empty if nobody does."""
    try:
        owner = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):  # or it is being written
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_held_by(file: Path, owner: Owner) -> bool:
    return _read(file).get("lease") == owner["lease"]


def _this_process() -> Owner:
    since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": since}


def _is_dead(owner: Owner) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    process = owner.get("process")
    if owner.get("host") != socket.gethostname() or not isinstance(process, int) or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except OSError as error:  # PermissionError: it is another user's, and alive
        return isinstance(error, ProcessLookupError)
    return False
