"""What a command tells its user while it works: lines on standard error. Results go elsewhere."""

from collections.abc import Sequence

from rich.console import Console

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
