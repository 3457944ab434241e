"""Building blocks of charts: escaped elements, axes, legends, figures.

Colours are the classes c0, c1, ... of page.css, which has a light and a dark variant of each.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 480, 264
LEFT, TOP, BOTTOM = 50, 14, 44  # margins
NUM_COLORS = 6
MARKERS = (  # circle, square, diamond, triangle: lines differ in more than colour
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "M-3.1-3.1h6.2v6.2h-6.2z",
    "M0-4.6 4.6 0 0 4.6-4.6 0z",
    "M0-4.3 4.3 3.3h-8.6z",
)


@dataclasses.dataclass(frozen=True)
class Unit:
    """Formats values: briefly at the ticks of an axis, in full elsewhere."""

    tick: Callable[[float], str]
    value: Callable[[float], str]


def tag(name: str, *children: str, **attributes: str | float) -> Markup:
    """An element; attributes, and children that are not Markup, are escaped.

    >>> tag("text", "a < b", class_="tick", text_anchor="end", x=1.04)
    Markup('<text class="tick" text-anchor="end" x="1">a &lt; b</text>')
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value if isinstance(value, str) else pixels(value))
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, Markup("").join(children))


def pixels(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def color_class(color: int, dashed: bool = False) -> str:
    return f"c{color % NUM_COLORS}{' dashed' if dashed else ''}"


def marker(color: int, dashed: bool, x: float, y: float, *title: str) -> Markup:
    shape = MARKERS[color % len(MARKERS)]
    style = f"marker {color_class(color, dashed)}"
    return tag("path", *title, class_=style, d=shape, transform=f"translate({pixels(x)} {pixels(y)})")


def round_ticks(low: float, high: float, *, whole: bool = False, max_steps: int = 5) -> tuple[float, ...]:
    """Round numbers that cover a range, in max_steps steps or a few more.

    Args:
      whole: use whole numbers only.

    >>> round_ticks(0.452, 0.776)
    (0.4, 0.5, 0.6000000000000001, 0.7000000000000001, 0.8)
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / max_steps))
    step = next((factor * power for factor in (1, 2, 5) if span <= max_steps * factor * power * 1.000001), 10 * power)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return tuple(step * index for index in range(first, max(last, first + 1) + 1))


@dataclasses.dataclass(frozen=True)
class Frame:
    """Maps data to pixels.

    Attributes:
      x_range: the smallest and the largest x.
      y_ticks: the y axis spans the first to the last.
      inset: pixels between x_range and the ends of the axis, on each side.
      right: the margin.
    """

    x_range: tuple[float, float]
    y_ticks: Sequence[float]
    unit: Unit
    inset: float = 0.0
    right: float = 10.0

    def x(self, value: float) -> float:
        low, high = self.x_range
        width = WIDTH - LEFT - self.right - 2 * self.inset
        return LEFT + self.inset + width * ((value - low) / (high - low) if high > low else 0.5)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    def axes(self, x_ticks: Iterable[tuple[float, str]], x_name: str) -> Markup:
        """Grid lines, the ticks of both axes, and the name of the x axis."""
        parts = []
        for value in self.y_ticks:
            y = self.y(value)
            parts.append(tag("line", class_="grid", x1=LEFT, x2=WIDTH - self.right, y1=y, y2=y))
            text = self.unit.tick(value)
            parts.append(tag("text", text, class_="tick", x=LEFT - 8, y=y + 4, text_anchor="end"))
        baseline = HEIGHT - BOTTOM + 18
        for value, label in x_ticks:
            parts.append(tag("text", label, class_="tick", x=self.x(value), y=baseline, text_anchor="middle"))
        middle = (LEFT + WIDTH - self.right) / 2
        parts.append(tag("text", x_name, class_="tick axis", x=middle, y=HEIGHT - 6, text_anchor="middle"))
        return Markup("").join(parts)


def legend(keys: Sequence[tuple[str, Markup]]) -> Markup:
    """Names with their symbols; empty for a single one, which the title names."""
    if len(keys) < 2:
        return Markup("")
    items = (
        tag("li", tag("svg", symbol, viewBox="0 0 24 12", width=24, height=12, aria_hidden="true"), name)
        for name, symbol in keys
    )
    return tag("ul", *items, class_="legend")


def figure(
    title: str,
    parts: Iterable[str],
    *,
    keys: Sequence[tuple[str, Markup]],
    summary: str,
    note: str,
    height: float = HEIGHT,
) -> Markup:
    """A chart with a title; `summary` gives its values as text for screen readers."""
    description = tag("title", title), tag("desc", summary)
    return tag(
        "figure",
        tag("figcaption", title),
        legend(keys),
        tag("svg", *description, *parts, viewBox=f"0 0 {WIDTH} {pixels(height)}", role="img"),
        tag("p", note, class_="note") if note else "",
    )
