"""Why a command ends early: a mistake in the user's input, a request to stop, a lost host, a machine that fails."""

import difflib
import unicodedata
from collections.abc import Iterable

import pydantic

# For the frozen dataclasses that hold settings: values are checked on construction, unknown keys refused.
STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


def suggestion(name: str, known: Iterable[str], *, most: int = 1) -> str:
    """The end of a message about an unknown name: the most similar known names, or all if none is similar."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=most, cutoff=0.5)
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"choose from {', '.join(known)}"


# Categories of characters that a terminal obeys instead of showing, or cannot encode: controls, direction marks and
# other invisible ones, lone surrogates, line and paragraph separators.
OBEYED_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
MAX_MESSAGE = 2_000  # characters of a message; what it quotes may be a file's whole content


def printable(text: str) -> str:
    """Text from a file as it is safe to print: characters that a terminal would obey as escapes, line ends as such."""
    if text.isprintable():  # most are, and this is fast
        return text
    return "".join(
        ascii(each)[1:-1] if each not in "\n\t" and unicodedata.category(each) in OBEYED_CATEGORIES else each
        for each in text
    )


def one_line(text: str, limit: int = MAX_MESSAGE) -> str:
    """A message that may quote anything as one line that is safe to print; the middle of a long one is left out."""
    return _shortened(" ".join(printable(_shortened(text, limit)).splitlines()), limit)


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    note = f" [... {len(text) - limit:,} characters left out ...] "
    tail = limit // 4
    return f"{text[: limit - tail - len(note)]}{note}{text[-tail:]}"


class UserError(Exception):
    """A mistake in the user's input: one line that names it and says what to write instead.

    The command prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


class InvalidRecordError(Exception):
    """A record of a file is invalid; the file's reader adds its position."""


class MachineError(Exception):
    """The machine can no longer do what it could at the start, like running the sandbox; no trace is to blame."""


class HostsError(Exception):
    """Another host is late, gone or in another exchange; the message names it. The command exits with status 1."""


RESUMES = "the same command resumes from here"  # of commands that do


class Stopped(BaseException):
    """The process was asked to stop and has saved its state. The command exits with EX_TEMPFAIL.

    Like KeyboardInterrupt it may be raised anywhere, so that no library takes it for an error of its own.
    """

    def __init__(self, signal: str = "SIGTERM"):
        super().__init__(f"stopped by {signal}")
