"""Tables on standard output, readable in a terminal of any width and encoding."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tpt_jax.io.streams import legible
from tpt_jax.terminal import ForgivingConsole

UNLIMITED = 10_000  # characters


def stdout_console(file_width: int | None = None) -> Console:
    """Standard output.

    Args:
      file_width: characters of a line if neither a terminal, a notebook nor COLUMNS in the environment sets it.
    """
    console = ForgivingConsole()
    if file_width is not None and not (console.is_terminal or console.is_jupyter or os.environ.get("COLUMNS")):
        console.width = file_width
    return console


def print_table(console: Console, table: Table) -> None:
    """Prints a table, in parts where its columns do not fit side by side; each part repeats the first column.

    Lines of the first column may be wrapped, others never. Characters that the encoding lacks are replaced.
    """
    for part in _parts(console, table):
        console.print(part)


def _parts(console: Console, table: Table) -> Iterator[Table]:
    first, *others = table.columns

    def part(columns: Sequence[Column], first_width: int | None = None) -> Table:
        return _with_columns(console, table, [first, *columns], first_width)

    def width(columns: Sequence[Column], first_width: int | None = None) -> int:
        unlimited = console.options.update_width(UNLIMITED)
        return console.measure(part(columns, first_width), options=unlimited).maximum

    def room(columns: Sequence[Column]) -> int:
        """For the first column, beside others."""
        return console.width - (width(columns, 1) - 1)

    longest_word = max(len(word) for cell in (first.header, *first.cells) for word in [*str(cell).split(), ""])
    widest = min((room([column]) for column in others), default=console.width)
    first_width = max(room(others), 2 * console.width // 5, min(longest_word, widest))
    shown: list[Column] = []
    for column in others:
        if shown and width([*shown, column], first_width) > console.width:
            yield part(shown, first_width)
            shown = []
        shown.append(column)
    yield part(shown, first_width)


def _with_columns(console: Console, table: Table, columns: Sequence[Column], first_width: int | None) -> Table:
    """A table of some of another's columns, whose characters the console has."""

    def text(cell: object) -> Text:
        return Text(legible(cell.plain if isinstance(cell, Text) else str(cell), console.encoding))

    chosen = Table(box=table.box, padding=table.padding)
    for index, column in enumerate(columns):
        limits: dict[str, Any] = {"overflow": "fold", "max_width": first_width} if index == 0 else {"no_wrap": True}
        chosen.add_column(text(column.header), justify=column.justify, **limits)
    for cells in zip(*(column.cells for column in columns), strict=True):
        chosen.add_row(*map(text, cells))
    return chosen
