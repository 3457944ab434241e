"""Lines and progress bars, on standard error or in a notebook's output."""

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, cast

from rich.console import Console, ConsoleDimensions

from tpt_jax.errors import printable

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_FRAMES = 0.2  # of a bar
SECONDS_TO_MEASURE = 1.0  # before a rate is shown, and the first line

MIN_WIDTH, MIN_HEIGHT = 40, 4  # of a console; a terminal may say that it is 0 columns wide
MIN_BAR_WIDTH = 70  # in a narrower console the bar is left out, or numbers would be cut


class ForgivingConsole(Console):
    """A console on standard output or error that never fails, and never ends the process as rich's does.

    What cannot be written is dropped: nobody should lose a run because nobody watches it.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(file=cast(IO[str], _ForgivingFile("stderr" if stderr else "stdout")))

    @property
    def size(self) -> ConsoleDimensions:
        width, height = super().size
        return ConsoleDimensions(max(width, MIN_WIDTH), max(height, MIN_HEIGHT))


class _ForgivingFile(io.TextIOBase):
    """`sys.stdout` or `sys.stderr`, whatever it is when something is written."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def _stream(self) -> IO[str] | None:
        stream = getattr(sys, self._name)  # None if the process was started without it
        return getattr(stream, "rich_proxied_file", stream)  # a progress bar replaces it

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str, /) -> int:
        if self._stream is not None:
            with contextlib.suppress(OSError):
                try:
                    self._stream.write(text)
                except UnicodeEncodeError:
                    self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.flush()

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()


STDERR = ForgivingConsole(stderr=True)  # quiet on all hosts but the first

Advance = Callable[[int], None]  # called with the number of units just finished


def say(text: str) -> None:
    """Shows a progress line; it may quote what a stranger wrote."""
    text = printable(text)
    if STDERR.is_jupyter and not STDERR.quiet:  # rich would show each line as a block of its own
        print(text)
    else:
        STDERR.print(text, highlight=False, markup=False, soft_wrap=True)


def listed(names: Sequence[str], limit: int = 5) -> str:
    """The first few names, for a progress line."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def percent(value: float | None, digits: int = 1) -> str:
    """In percent; a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}%"


class _Meter:
    """Counts units. Their rate is measured from the first one on: what came before it was start-up."""

    def __init__(self, total: int, unit: str, done: int):
        self.total, self.done = total, done
        self._unit = unit
        self._num_before = done  # the rate counts the units after these
        self._first_at: float | None = None

    def advance(self, units: int) -> None:
        self.done = min(self.done + units, self.total)  # what other hosts have done is a guess
        if self._first_at is None:
            self._num_before, self._first_at = self.done, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the first unit was finished; 0 before."""
        return 0.0 if self._first_at is None else time.monotonic() - self._first_at

    @property
    def rate(self) -> float | None:
        """Units per second; None before it has been measured for a second."""
        seconds, count = self.seconds, self.done - self._num_before
        return count / seconds if count and seconds >= SECONDS_TO_MEASURE else None

    def describe(self) -> str:
        """For example "120 of 200 traces, 40.0/s, 2 s left"; without rate and time left until they are known."""
        text = f"{self.done} of {self.total} {self._unit}"
        if (rate := self.rate) is None:
            return text
        return f"{text}, {rate:.1f}/s, {(self.total - self.done) / rate:.0f} s left"


@contextlib.contextmanager
def progress(label: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Shows progress with rate and time left: a bar in a terminal or a notebook, else a line every ten seconds.

    Yields:
      A function to call with the number of units just finished.
    """
    meter = _Meter(total, unit, done)
    if STDERR.quiet:
        yield lambda units: None
    elif STDERR.is_jupyter:
        with _notebook_bar(label, meter) as advance:
            yield advance
    elif STDERR.is_terminal and not STDERR.is_dumb_terminal:
        with _terminal_bar(label, meter, unit) as advance:
            yield advance
    else:
        yield _lines(label, meter)


@contextlib.contextmanager
def _terminal_bar(label: str, meter: _Meter, unit: str) -> Iterator[Advance]:
    import rich.progress  # here, so that `tpt --help` does not wait for it

    label_column, count = rich.progress.TextColumn("{task.description}"), rich.progress.MofNCompleteColumn()
    left = rich.progress.TimeRemainingColumn()
    columns: tuple[rich.progress.ProgressColumn, ...] = (label_column, count, left)
    if STDERR.width >= MIN_BAR_WIDTH:
        rate = rich.progress.TextColumn("{task.fields[rate]}")
        columns = (label_column, rich.progress.BarColumn(), count, rich.progress.TextColumn(unit), rate, left)
    with rich.progress.Progress(*columns, console=STDERR) as bar:
        task = bar.add_task(label, total=meter.total, completed=meter.done, rate="")

        def frame() -> None:
            bar.update(task, completed=meter.done, rate="" if meter.rate is None else f"{meter.rate:.1f}/s")

        try:
            yield _in_frames(meter, frame)
        finally:
            frame()


@contextlib.contextmanager
def _notebook_bar(label: str, meter: _Meter) -> Iterator[Advance]:
    """One output that is updated in place; needs no widgets, and its last state stays in the notebook."""
    import html

    from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

    def frame() -> HTML:
        text = html.escape(f"{label}: {meter.describe()}")
        return HTML(f'<progress value="{meter.done}" max="{meter.total}"></progress> {text}')

    handle: Any = display(frame(), display_id=True)
    try:
        yield _in_frames(meter, lambda: handle.update(frame()))
    finally:
        handle.update(frame())


def _in_frames(meter: _Meter, show: Callable[[], None]) -> Advance:
    """Advances the meter, and shows it a few times per second: a frame costs more than a unit may take."""
    last = time.monotonic()

    def advance(units: int) -> None:
        nonlocal last
        meter.advance(units)
        if (now := time.monotonic()) - last > SECONDS_BETWEEN_FRAMES:
            last = now
            show()

    return advance


def _lines(label: str, meter: _Meter) -> Advance:
    next_at = SECONDS_TO_MEASURE  # after the first unit

    def advance(units: int) -> None:
        nonlocal next_at
        meter.advance(units)
        if (seconds := meter.seconds) >= next_at or meter.done >= meter.total:
            next_at = seconds + SECONDS_BETWEEN_LINES
            say(f"{label}: {meter.describe()}")

    return advance
