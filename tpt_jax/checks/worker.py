"""A checker pool's worker process: loads the checker, judges what the pool sends, and exits when the pipe closes.

The pool runs BOOT in a fresh interpreter. The user's main module is not imported again, so a script needs no
`if __name__ == "__main__"`. Nothing here imports JAX: a worker starts in a fraction of a second. The messages are:

    to the worker     (sys.path, sys.argv), then (name, checker), then lists of (question, completion, is_finished)
    from the worker   READY, or a UserError if the checker cannot be loaded; then for each list its verdicts in order,
                      in one list or several. OUT_OF_MEMORY, a UserError or a MachineError is a worker's last message.
"""

import contextlib
import mmap
import os
import pickle
import resource
import sys
import time
import traceback
from multiprocessing.connection import Connection

from tpt_jax.checks.registry import Checker, get_checker
from tpt_jax.errors import MachineError, UserError
from tpt_jax.io import streams
from tpt_jax.records import CHECKERS_FAULT, Question, Verdict

# For `python -c`, with two inherited file descriptors as arguments: the pipe, and the byte shared with the pool.
BOOT = """
import sys
from multiprocessing.connection import Connection
pipe, current_fd = Connection(int(sys.argv[1])), int(sys.argv[2])
try:
    sys.path[:], sys.argv[:] = pipe.recv()
except (EOFError, ConnectionError):  # the pool is gone
    sys.exit()
from tpt_jax.checks.worker import main
main(pipe, current_fd)
"""
READY = "ready"
OUT_OF_MEMORY = "memory limit"

MEMORY_LIMIT = 2**30  # bytes of address space for checks, on top of what the process has when it is ready
SECONDS_BETWEEN_MESSAGES = 0.02  # one message per verdict would cost more than a numeric verdict
MAX_REPORTED_CHARACTERS = 300  # of a checker's exception


def main(pipe: Connection, current_fd: int) -> None:
    """Serves until the pool closes the pipe.

    Args:
      current_fd: a file of one byte, shared with the pool: the index of the trace being judged, in its list.
    """
    os.dup2(2, 1)  # a checker's output must not mix with the command's results
    streams.prepare()  # a checker that prints must not fail because nobody can read it
    sys.stdout = sys.stderr  # line-buffered: killing the worker loses no output
    current = mmap.mmap(current_fd, 1)
    os.close(current_fd)
    with contextlib.suppress(EOFError, ConnectionError):  # the pool is gone
        name, spec = pipe.recv()
        try:
            checker = _load(name, spec)
        except UserError as error:
            pipe.send(error)
        else:
            _limit_memory()
            pipe.send(READY)
            _serve(name, checker, pipe, current)
    os._exit(0)  # at once, even if a checker has left threads running


def _load(name: str, spec: str | bytes) -> Checker:
    """The checker from its name or from a pickled function.

    Raises:
      UserError: it cannot be loaded in this process.
    """
    try:
        return get_checker(spec if isinstance(spec, str) else pickle.loads(spec))
    except (Exception, SystemExit) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"checker {name!r}: cannot be loaded in a worker process ({_one_line(error)}); define it in the script or "
            "notebook itself, or in a module that can be imported"
        ) from error


def _serve(name: str, check: Checker, pipe: Connection, current: mmap.mmap) -> None:
    has_reported = False
    while True:
        try:
            pairs: list[tuple[Question, str, bool]] = pipe.recv()
        except (EOFError, OSError):
            raise
        except Exception as error:  # the data holds objects of a module that only the pool's process can import
            reason = f"a question's data cannot be read in a worker process ({_one_line(error)})"
            pipe.send(UserError(f"{reason}; write plain values in it"))
            return
        verdicts: list[Verdict] = []
        sent_at = time.monotonic()
        for index, (question, completion, is_finished) in enumerate(pairs):
            current[0] = index
            try:
                verdict = check(question, completion, is_finished=is_finished)
            except MemoryError:  # the checker may have been interrupted anywhere: a new process takes over
                pipe.send(OUT_OF_MEMORY)
                return
            except MachineError as error:
                pipe.send(MachineError(str(error)))
                return
            except BaseException as error:  # the checker's own mistake, or exit, costs one trace; the first is reported
                if not has_reported:
                    has_reported = True
                    _report(name, error)
                verdict = Verdict.wrong(f"{CHECKERS_FAULT} raised {type(error).__name__}")
            verdicts.append(verdict)
            if time.monotonic() - sent_at > SECONDS_BETWEEN_MESSAGES:
                pipe.send(verdicts)
                verdicts, sent_at = [], time.monotonic()
        pipe.send(verdicts)


def _report(name: str, error: BaseException) -> None:
    """Prints where a checker failed, in one line; escaped, since it may quote a model's text."""
    *_, last = traceback.extract_tb(error.__traceback__)
    text = ascii(str(error)[:MAX_REPORTED_CHARACTERS])[1:-1]
    is_pickled = last.filename == "<dynamic-code>"  # cloudpickle keeps line numbers, but no file names
    position = f"line {last.lineno}, in {last.name}" if is_pickled else f"{last.filename}:{last.lineno}"
    print(f"checker {name!r}: {type(error).__name__}: {text} ({position})", file=sys.stderr)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _limit_memory() -> None:
    """Limits the address space; does nothing on macOS, which has no such limit, or below a lower limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _address_space() + MEMORY_LIMIT
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _address_space() -> int:
    """Bytes of address space that the process has now; 0 if the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0
