"""What ends a command early: a mistake in what the user gave, a request to stop, another host that is gone."""

import difflib
from collections.abc import Iterable

import pydantic

# For the frozen dataclasses that settings are: values are checked on construction, unknown keys refused.
STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


def suggestion(name: str, known: Iterable[str], *, most: int = 1) -> str:
    """The end of a message on an unknown name: the known ones that are most like it, else all of them."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=most, cutoff=0.5)
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"choose from {', '.join(known)}"


class UserError(Exception):
    """A mistake in the user's input: one line that names the thing and says what to write instead.

    The command line prints it without a traceback and exits with status 2.
    """


class InvalidRecordError(Exception):
    """One line of a file is not what it should be; whoever reads the file knows which, and says so."""


class MachineError(Exception):
    """The machine cannot do what it could at the start, such as run a program in the sandbox: no fault of a trace's."""


class HostsError(Exception):
    """Another host is late or gone; the message names it. The command line exits with status 1."""


class Stopped(Exception):  # noqa: N818
    """The process was asked to stop, and has saved what there was. The command line exits with EX_TEMPFAIL."""
