"""Lines and progress bars, on standard error or in a notebook's output."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_FRAMES = 0.2  # of a bar in a notebook

STDERR = Console(stderr=True)  # quiet on all hosts but the first

Advance = Callable[[int], None]  # called with the number of units just finished


def say(text: str) -> None:
    """Shows a progress line."""
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


@contextlib.contextmanager
def progress(label: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Shows progress with rate and time left: a bar in a terminal or a notebook, else a line every ten seconds.

    Yields:
      A function to call with the number of units just finished.
    """
    if STDERR.quiet:
        yield lambda units: None
    elif STDERR.is_jupyter:
        with _notebook_bar(label, total, unit, done) as advance:
            yield advance
    elif STDERR.is_terminal:
        with _terminal_bar(label, total, unit, done) as advance:
            yield advance
    else:
        yield _lines(label, total, unit, done)


@contextlib.contextmanager
def _terminal_bar(label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    import rich.progress  # here, so that `tpt --help` does not wait for it

    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn(unit),
        rich.progress.TextColumn("{task.fields[rate]}"),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=STDERR) as bar:
        task = bar.add_task(label, total=total, completed=done, rate="")
        start, count = time.monotonic(), 0

        def advance(units: int) -> None:
            nonlocal count
            count += units
            bar.update(task, advance=units, rate=f"{count / (time.monotonic() - start):.1f}/s")

        yield advance


@contextlib.contextmanager
def _notebook_bar(label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    """One output that is updated in place; needs no widgets, and its last state stays in the notebook."""
    import html

    from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

    start = last = time.monotonic()
    count = 0

    def frame() -> HTML:
        text = html.escape(f"{label}: {_describe(total, unit, done, count, time.monotonic() - start)}")
        return HTML(f'<progress value="{done + count}" max="{total}"></progress> {text}')

    handle: Any = display(frame(), display_id=True)

    def advance(units: int) -> None:
        nonlocal count, last
        count += units
        if time.monotonic() - last > SECONDS_BETWEEN_FRAMES:
            last = time.monotonic()
            handle.update(frame())

    try:
        yield advance
    finally:
        handle.update(frame())


def _lines(label: str, total: int, unit: str, done: int) -> Advance:
    start = last = time.monotonic()
    count = 0

    def advance(units: int) -> None:
        nonlocal count, last
        count += units
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or done + count >= total:
            last = now
            say(f"{label}: {_describe(total, unit, done, count, now - start)}")

    return advance


def _describe(total: int, unit: str, done: int, count: int, seconds: float) -> str:
    """For example "120 of 200 traces, 40.0/s, 2 s left"; `count` units in these seconds, `done` before."""
    rate = count / max(seconds, 1e-9)
    left = (total - done - count) / max(rate, 1e-9)
    return f"{done + count} of {total} {unit}, {rate:.1f}/s" + (f", {left:.0f} s left" if count else "")
