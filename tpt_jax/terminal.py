"""What a command tells its user while it works: lines on standard error. Results go elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console

SECONDS_BETWEEN_LINES = 10.0

STDERR = Console(stderr=True)  # quiet on all hosts but the first


def say(text: str) -> None:
    """A line of progress."""
    STDERR.print(text, highlight=False, markup=False, soft_wrap=True)


def listed(names: Sequence[str], limit: int = 5) -> str:
    """The first few of some names, for a line of progress."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def percent(value: float | None, digits: int = 1) -> str:
    """In percent; a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}%"


@contextlib.contextmanager
def progress(label: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error with rate and time left; plain lines now and then where it is no terminal.

    Yields:
      A function to call with the number of units that were finished.
    """
    if STDERR.is_terminal:
        import rich.progress  # which `tpt --help` need not wait for

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
    else:
        yield _line_progress(label, total, unit, done)


def _line_progress(label: str, total: int, unit: str, done: int) -> Callable[[int], None]:
    start = last = time.monotonic()
    count = 0

    def advance(units: int) -> None:
        nonlocal count, last
        count += units
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES and done + count < total:
            return
        last = now
        rate = count / max(now - start, 1e-9)
        left = (total - done - count) / max(rate, 1e-9)
        say(f"{label}: {done + count} of {total} {unit}, {rate:.1f}/s, {left:.0f} s left")

    return advance
