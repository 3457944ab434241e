"""Why a command ends early: a mistake in the user's input, a request to stop, a lost host, a machine that fails."""

import difflib
from collections.abc import Iterable

import pydantic

# For the frozen dataclasses that hold settings: values are checked on construction, unknown keys refused.
STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


def suggestion(name: str, known: Iterable[str], *, most: int = 1) -> str:
    """The end of a message about an unknown name: the most similar known names, or all if none is similar."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=most, cutoff=0.5)
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"choose from {', '.join(known)}"


class UserError(Exception):
    """A mistake in the user's input: one line that names it and says what to write instead.

    The command prints it without a traceback and exits with status 2.
    """


class InvalidRecordError(Exception):
    """A record of a file is invalid; the file's reader adds its position."""


class MachineError(Exception):
    """The machine can no longer do what it could at the start, like running the sandbox; no trace is to blame."""


class HostsError(Exception):
    """Another host is late, gone or in another exchange; the message names it. The command exits with status 1."""


class Stopped(BaseException):
    """The process was asked to stop and has saved its state. The command exits with EX_TEMPFAIL.

    Like KeyboardInterrupt it may be raised anywhere, so that no library takes it for an error of its own.
    """

    def __init__(self, signal: str = "SIGTERM"):
        super().__init__(f"stopped by {signal}")
