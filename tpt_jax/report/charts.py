"""Charts as inline SVG: lines with intervals, and stacked bars. Colours come from the page's style sheet."""

import dataclasses
import math
from collections.abc import Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34  # margins, pixels


@dataclasses.dataclass(frozen=True)
class Series:
    """A line or a layer of bars; `low` and `high` are intervals. None where there is no value."""

    name: str
    values: Sequence[float | None]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False


@dataclasses.dataclass(frozen=True)
class _Scale:
    """Data to pixels."""

    num_points: int
    top: float
    inset: float

    def x(self, index: float) -> float:
        room = WIDTH - LEFT - RIGHT - 2 * self.inset
        return LEFT + self.inset + (room * index / (self.num_points - 1) if self.num_points > 1 else room / 2)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.top


def line_chart(title: str, labels: Sequence[str], series: Sequence[Series], *, percent: bool = False) -> Markup:
    """A line for each series over the labels of the x axis, with interval bars where they are given."""
    present = [value for one in series for value in (*one.values, *(one.high or ())) if value is not None]
    few = len(labels) <= 30
    scale = _Scale(len(labels), _ceiling(max(present, default=1.0)), inset=24 if few else 2)
    parts = [_axes(scale, labels, percent)]
    for color, one in enumerate(series):
        shift = 3.0 * (color - (len(series) - 1) / 2) if few else 0.0  # so that interval bars do not lie on each other
        points = [(scale.x(i) + shift, scale.y(v), v, i) for i, v in enumerate(one.values) if v is not None]
        style = f'class="line c{color}{" dashed" if one.dashed else ""}"'
        parts.append(f'<polyline {style} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)}"/>')
        for x, y, value, index in points if few else ():
            if one.low is not None and one.high is not None:
                low, high = scale.y(one.low[index]), scale.y(one.high[index])
                parts.append(f'<line class="interval c{color}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
            name = escape(f"{one.name}, {labels[index]}: {_number(value, percent)}")
            parts.append(f'<circle class="dot c{color}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{name}</title></circle>')
    return _figure(title, parts, series)


def stacked_bars(title: str, labels: Sequence[str], series: Sequence[Series]) -> Markup:
    """One bar a label, its layers one on another."""
    totals = [sum(one.values[i] or 0.0 for one in series) for i in range(len(labels))]
    scale = _Scale(len(labels), _ceiling(max(totals, default=1.0)), inset=40)
    width = min(56.0, (WIDTH - LEFT - RIGHT) / max(1, len(labels)) * 0.6)
    parts = [_axes(scale, labels, percent=False)]
    for index, label in enumerate(labels):
        base = 0.0
        for color, one in enumerate(series):
            value = one.values[index] or 0.0
            top, bottom = scale.y(base + value), scale.y(base)
            name = escape(f"{one.name}, {label}: {_number(value, percent=False)}")
            parts.append(
                f'<rect class="bar c{color}" x="{scale.x(index) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
                f'height="{max(0.0, bottom - top):.1f}"><title>{name}</title></rect>'
            )
            base += value
    return _figure(title, parts, series)


def _axes(scale: _Scale, labels: Sequence[str], percent: bool) -> str:
    parts = []
    for step in range(5):
        value = scale.top * step / 4
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value, percent)}</text>')
    stride = math.ceil(len(labels) / 8)
    for index in range(0, len(labels), stride):
        parts.append(
            f'<text class="tick" x="{scale.x(index):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">'
            f"{escape(labels[index])}</text>"
        )
    return "".join(parts)


def _figure(title: str, parts: Sequence[str], series: Sequence[Series]) -> Markup:
    legend = "".join(
        f'<span class="key"><svg width="22" height="10" aria-hidden="true"><line class="line c{color}'
        f'{" dashed" if one.dashed else ""}" x1="0" x2="22" y1="5" y2="5"/></svg>{escape(one.name)}</span>'
        for color, one in enumerate(series)
    )
    return Markup(  # noqa: S704 - every name and label above is escaped
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg><div class=\"legend\">{legend}</div></figure>"
    )


def _ceiling(value: float) -> float:
    """The next round number above, so that the four grid lines have short labels."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 4, 6, 8, 10) if factor * power >= value * 0.999)


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.3g}%" if percent else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
