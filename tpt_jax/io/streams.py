"""Standard output and error as a command needs them: what cannot be shown is replaced or dropped, the work goes on.

A terminal may be closed, a pipe's reader gone, a log's disk full, an encoding may lack "±". None of that is a reason to
lose hours of work, so these streams never raise. A command whose results go nowhere else calls `check_written` last.
"""

import codecs
import errno
import io
import os
import select
import sys
from typing import Any

# ASCII for what our own lines and tables contain.
LOOK_ALIKES = {"±": "+-", "–": "-", "—": "-", "−": "-", "…": "...", "×": "x", "·": "."}
LOOK_ALIKES |= {"\N{LEFT SINGLE QUOTATION MARK}": "'", "’": "'", "“": '"', "”": '"'}
ERROR_HANDLER = "tpt_jax.look_alike"
BYTES = range(0xDC80, 0xDD00)  # how Python reads those bytes of an argument or path that are not text

# There is no reader any more: a closed pipe, a terminal that hung up.
GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET)


def prepare() -> None:
    """Replaces this process's standard streams by ones that never raise; others, like a notebook's, stay as they are.

    Calling it again changes nothing.
    """
    open_missing()
    codecs.register_error(ERROR_HANDLER, _look_alike)
    sys.stdout = _forgiving(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _forgiving(sys.stderr, sys.__stderr__, 2)


def open_missing() -> None:
    """Opens those of the three standard descriptors that this process was started without, on /dev/null.

    The next file to be opened would get their number, and messages of libraries would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number


def legible(text: str, encoding: str) -> str:
    """The text, with characters that the encoding lacks replaced by similar ones in ASCII, or by "?"."""
    codecs.register_error(ERROR_HANDLER, _look_alike)
    return text.encode(encoding, ERROR_HANDLER).decode(encoding, "surrogateescape")


def check_written() -> None:
    """Checks that standard output has been written, or that nobody reads it any more.

    Raises:
      OSError: its disk is full, for example.
    """
    if sys.stdout is None:  # as a program that calls `main` may have set it
        return
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    file = getattr(buffer, "raw", buffer)  # there is no buffer with python -u
    if isinstance(file, _ForgivingFile) and file.error is not None:
        raise OSError(file.error.errno, file.error.strerror, "standard output")


class _ForgivingFile(io.FileIO):
    """A file that accepts everything.

    Attributes:
      error: the first one of a write that had a reader.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        while True:
            try:
                num_written = super().write(data)
            except OSError as error:
                if error.errno not in GONE:
                    self.error = self.error or error
                return memoryview(data).nbytes
            if num_written is not None:
                return num_written
            select.select([], [self], [])  # a process that shares it has made it non-blocking


def _forgiving(stream: Any, original: Any, descriptor: int) -> Any:
    """A stream to the same descriptor, in the same encoding; the stream itself if it is not the process's own."""
    if stream is not original:
        return stream
    file: Any = _ForgivingFile(descriptor, "w", closefd=False)
    if not isinstance(original, io.TextIOWrapper):  # the process was started without it
        return io.TextIOWrapper(file, "utf-8", write_through=True)
    options = {name: getattr(original, name) for name in ("encoding", "line_buffering", "write_through")}
    if not isinstance(original.buffer, io.FileIO):  # as with python -u
        file = io.BufferedWriter(file)
    return io.TextIOWrapper(file, errors=ERROR_HANDLER, **options)


def _look_alike(error: UnicodeError) -> tuple[str | bytes, int]:
    """For codecs: what to write instead of a character, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if ord(character) in BYTES:  # the user's own path
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return LOOK_ALIKES.get(character, "?"), error.start + 1
