"""Kinds of charts: lines with error bars, curves, grouped and stacked bars, histograms, intervals beside zero."""

import dataclasses
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from tpt_jax.report import svg
from tpt_jax.report.svg import Frame, Unit, color_class, figure, marker, round_ticks, tag

VALUES_MARGIN = 52.0  # right of a line chart, for the last values
LABEL_HEIGHT = 15.0
DODGE = 5.0  # horizontal distance between the error bars of neighbouring lines
MARK_WIDTH = 64.0  # of a mark's name
MAX_MARKERS = 40  # per line; more would hide it
MAX_BINS = 36  # of a histogram, roughly
ROW_HEIGHT, ROW_MARGIN = 38.0, 22.0  # of a row of intervals: its name above its interval
MAX_ROW_NAME = 62  # characters that fit above it


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    y: float
    interval: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """A named line; `dashed` marks a variant of the solid line of the same colour."""

    name: str
    points: Sequence[Point]
    color: int = 0
    dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Layer:
    """A named value for each bar; None if it is unknown."""

    name: str
    values: Sequence[float | None]
    color: int = 0


def line_chart(
    title: str, lines: Sequence[Line], *, unit: Unit, x_name: str, from_zero: bool = False, note: str = ""
) -> Markup:
    """Lines over whole numbers, with error bars and the last value of each; every line has at least one point."""
    points = [point for line in lines for point in line.points]
    heights = [y for point in points for y in (point.y, *(point.interval or ()))]
    first, last = min(point.x for point in points), max(point.x for point in points)
    y_ticks = round_ticks(0.0 if from_zero else min(heights), max(heights))
    frame = Frame((first, last), y_ticks, unit, inset=22, right=VALUES_MARGIN)
    spacing = (frame.x(last) - frame.x(first)) / (last - first) if last > first else svg.WIDTH
    dodge = min(DODGE, 0.6 * spacing / len(lines))
    shifts = [dodge * (index - (len(lines) - 1) / 2) for index in range(len(lines))]
    parts = [frame.axes(((x, f"{x:.0f}") for x in _whole_ticks(first, last)), x_name)]
    for draw in (_intervals, _line):
        parts += [draw(frame, line, shift) for line, shift in zip(lines, shifts, strict=True)]
    parts.append(_last_values(frame, lines))
    keys = [(line.name, _key(line)) for line in lines]
    return figure(title, parts, keys=keys, summary=_lines_as_text(lines, unit, x_name), note=note)


def curve_chart(
    title: str, curve: Sequence[Point], marks: Iterable[tuple[float, str]], *, unit: Unit, x_name: str, note: str = ""
) -> Markup:
    """One line of many points; vertical marks divide it into named sections."""
    heights = [point.y for point in curve]
    x_ticks = round_ticks(curve[0].x, curve[-1].x, whole=True)
    frame = Frame((curve[0].x, curve[-1].x), round_ticks(min(heights), max(heights)), unit)
    parts = [frame.axes(((x, f"{x:,.0f}") for x in x_ticks if curve[0].x <= x <= curve[-1].x), x_name)]
    free_from = 0.0  # where the last mark's name ends
    for x, name in marks:
        parts.append(
            tag("line", class_="mark", x1=frame.x(x), x2=frame.x(x), y1=svg.TOP - 8, y2=svg.HEIGHT - svg.BOTTOM)
        )
        if frame.x(x) >= free_from:
            parts.append(tag("text", name, class_="tick", x=frame.x(x) + 5, y=svg.TOP - 4))
            free_from = frame.x(x) + MARK_WIDTH
    parts.append(_path(frame, curve, color_class(0)))
    summary = f"From {unit.value(curve[0].y)} to {unit.value(curve[-1].y)}."
    return figure(title, parts, keys=(), summary=summary, note=note)


def grouped_bars(
    title: str, labels: Sequence[str], layers: Sequence[Layer], *, unit: Unit, x_name: str, note: str = ""
) -> Markup:
    """A group of bars for each label, with one bar per layer."""
    values = [value for layer in layers for value in layer.values if value is not None]
    frame = _bar_frame(labels, max(values, default=1.0), unit)
    width = _bar_spacing(labels) * 0.8 / len(layers)
    parts = [frame.axes(_thinned(labels), x_name)]
    for index, label in enumerate(labels):
        left = frame.x(index) - width * len(layers) / 2
        for position, layer in enumerate(layers):
            x, value = left + position * width, layer.values[index]
            if value is not None:
                parts.append(_bar(frame, layer, label, (x + 0.5, width - 1), (0.0, value)))
                parts.append(_bar_label(frame, unit.tick(value), x + width / 2, value, width))
    return figure(title, parts, keys=_bar_keys(layers), summary=_bars_as_text(labels, layers, unit), note=note)


def stacked_bars(
    title: str, labels: Sequence[str], layers: Sequence[Layer], *, unit: Unit, x_name: str, note: str = ""
) -> Markup:
    """One bar for each label, its layers stacked, with their sum above."""
    sums = [sum(layer.values[index] or 0.0 for layer in layers) for index in range(len(labels))]
    frame = _bar_frame(labels, max(sums), unit)
    width = min(64.0, _bar_spacing(labels) * 0.62)
    parts = [frame.axes(_thinned(labels), x_name)]
    for index, label in enumerate(labels):
        base = 0.0
        for layer in layers:
            value = layer.values[index]
            if value is not None:
                parts.append(_bar(frame, layer, label, (frame.x(index) - width / 2, width), (base, base + value)))
                base += value
        parts.append(_bar_label(frame, unit.tick(base), frame.x(index), base, _bar_spacing(labels) * 0.6))
    return figure(title, parts, keys=_bar_keys(layers), summary=_bars_as_text(labels, layers, unit), note=note)


def histogram(title: str, groups: Sequence[tuple[str, Sequence[int]]], *, unit: Unit, x_name: str) -> Markup:
    """The distribution of whole numbers, as shares of each group; the groups overlap."""
    all_values = [value for _, values in groups for value in values]
    edges = round_ticks(min(all_values), max(all_values) + 1, whole=True, max_steps=MAX_BINS)
    shares = [_shares(values, edges) for _, values in groups]
    top = max(max(group_shares) for group_shares in shares)
    frame = Frame((edges[0], edges[-1]), round_ticks(0.0, top), unit)
    x_ticks = round_ticks(edges[0], edges[-1], whole=True)
    parts = [frame.axes(((x, f"{x:,.0f}") for x in x_ticks if edges[0] <= x <= edges[-1]), x_name)]
    keys = []
    for index, (name, _) in enumerate(groups):
        steps = [Point(x, share) for i, share in enumerate(shares[index]) for x in edges[i : i + 2]]
        outline = [Point(edges[0], 0.0), *steps, Point(edges[-1], 0.0)]
        style = f"{'outline' if index else 'area'} {color_class(index)}"
        parts.append(_path(frame, outline, style))
        keys.append((name, tag("polyline", class_=f"line {style}", points="4,12 4,2 20,2 20,12")))
    means = "; ".join(f"{name}: mean {sum(values) / len(values):.0f}" for name, values in groups)
    return figure(title, parts, keys=keys, summary=f"{x_name}. {means}.", note="")


def interval_rows(title: str, rows: Sequence[tuple[str, Point]], *, unit: Unit, x_name: str, note: str = "") -> Markup:
    """A row for each named difference, with its interval beside a line at zero; y is the difference, x the colour."""
    ends = [end for _, point in rows for end in (point.y, *(point.interval or ()))]
    ticks = round_ticks(min(0.0, *ends), max(0.0, *ends))
    height = svg.TOP + ROW_HEIGHT * len(rows) + svg.BOTTOM

    def x(value: float) -> float:
        return ROW_MARGIN + (svg.WIDTH - 2 * ROW_MARGIN) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = []
    for tick in ticks:
        style = "zero" if abs(tick) < 1e-12 else "grid"
        parts.append(tag("line", class_=style, x1=x(tick), x2=x(tick), y1=svg.TOP, y2=height - svg.BOTTOM))
        parts.append(
            tag("text", unit.tick(tick), class_="tick", x=x(tick), y=height - svg.BOTTOM + 18, text_anchor="middle")
        )
    parts.append(tag("text", x_name, class_="tick axis", x=svg.WIDTH / 2, y=height - 6, text_anchor="middle"))
    for index, (name, point) in enumerate(rows):
        top, color = svg.TOP + ROW_HEIGHT * index, round(point.x)
        short = name if len(name) <= MAX_ROW_NAME else f"{name[:MAX_ROW_NAME]}…"
        parts.append(tag("text", short, class_="tick", x=ROW_MARGIN, y=top + 13))
        y = top + 25
        if point.interval is not None:
            low, high = map(x, point.interval)
            parts.append(tag("line", class_=f"interval {color_class(color)}", x1=low, x2=high, y1=y, y2=y))
        parts.append(marker(color, False, x(point.y), y, tag("title", _row_as_text(name, point, unit))))
    summary = " ".join(f"{_row_as_text(name, point, unit)}." for name, point in rows)
    return figure(title, parts, keys=(), summary=summary, note=note, height=height)


def _row_as_text(name: str, point: Point, unit: Unit) -> str:
    interval = f" ({' to '.join(map(unit.value, point.interval))})" if point.interval else ""
    return f"{name}: {unit.value(point.y)}{interval}"


# Lines.


def _line(frame: Frame, line: Line, shift: float) -> Markup:
    parts = [_path(frame, line.points, color_class(line.color, line.dashed), shift)]
    for point in line.points if len(line.points) <= MAX_MARKERS else ():
        interval = f" ({' to '.join(map(frame.unit.value, point.interval))})" if point.interval else ""
        text = tag("title", f"{line.name}, {point.x:.0f}: {frame.unit.value(point.y)}{interval}")
        parts.append(marker(line.color, line.dashed, frame.x(point.x) + shift, frame.y(point.y), text))
    return Markup("").join(parts)


def _path(frame: Frame, points: Sequence[Point], style: str, shift: float = 0.0) -> Markup:
    pairs = (f"{svg.pixels(frame.x(point.x) + shift)},{svg.pixels(frame.y(point.y))}" for point in points)
    return tag("polyline", class_=f"line {style}", points=" ".join(pairs))


def _intervals(frame: Frame, line: Line, shift: float) -> Markup:
    style = f"interval {color_class(line.color, line.dashed)}"
    bars = []
    for point in line.points:
        if point.interval is not None:
            x, low, high = frame.x(point.x) + shift, *map(frame.y, point.interval)
            bars.append(tag("line", class_=style, x1=x, x2=x, y1=low, y2=high))
    return Markup("").join(bars)


def _last_values(frame: Frame, lines: Sequence[Line]) -> Markup:
    """The value at the end of each line; values that would overlap are moved apart."""
    ends = sorted(((frame.y(line.points[-1].y), line) for line in lines), key=lambda end: end[0])
    heights: list[float] = []
    for y, _ in ends:
        heights.append(max(y, heights[-1] + LABEL_HEIGHT) if heights else y)
    overflow = max(0.0, heights[-1] - (svg.HEIGHT - svg.BOTTOM)) if heights else 0.0
    x = svg.WIDTH - VALUES_MARGIN + 6
    return Markup("").join(
        tag(
            "text",
            frame.unit.value(line.points[-1].y),
            class_=f"value {color_class(line.color)}",
            x=x,
            y=y - overflow + 4,
        )
        for y, (_, line) in zip(heights, ends, strict=True)
    )


def _key(line: Line) -> Markup:
    stroke = tag("line", class_=f"line {color_class(line.color, line.dashed)}", x1=0, x2=24, y1=6, y2=6)
    return stroke + marker(line.color, line.dashed, 12, 6)


def _lines_as_text(lines: Sequence[Line], unit: Unit, x_name: str) -> str:
    return " ".join(
        f"{line.name}, by {x_name}: {', '.join(f'{point.x:.0f}: {unit.value(point.y)}' for point in line.points)}."
        for line in lines
    )


def _whole_ticks(first: float, last: float) -> list[float]:
    return [x for x in round_ticks(first, last, whole=True, max_steps=10) if first <= x <= last]


# Bars.


def _bar_frame(labels: Sequence[str], top: float, unit: Unit) -> Frame:
    return Frame((0, len(labels) - 1), round_ticks(0.0, top or 1.0), unit, inset=_bar_spacing(labels) / 2)


def _bar_spacing(labels: Sequence[str]) -> float:
    return (svg.WIDTH - svg.LEFT - 10) / len(labels)


def _bar(frame: Frame, layer: Layer, label: str, extent: tuple[float, float], span: tuple[float, float]) -> Markup:
    """A rectangle.

    Args:
      extent: its left edge and width, in pixels.
      span: its lower and upper value.
    """
    (x, width), (low, high) = extent, span
    text = tag("title", f"{layer.name}, {label}: {frame.unit.value(high - low)}")
    top = frame.y(high)
    style = f"bar {color_class(layer.color)}"
    return tag("rect", text, class_=style, x=x, y=top, width=width, height=frame.y(low) - top)


def _bar_label(frame: Frame, text: str, x: float, value: float, width: float) -> Markup:
    """The value above a bar; empty if it is too wide."""
    fits = width >= 6.2 * len(text)
    return tag("text", text, class_="value", x=x, y=frame.y(value) - 5, text_anchor="middle") if fits else Markup("")


def _thinned(labels: Sequence[str]) -> list[tuple[float, str]]:
    stride = -(-len(labels) // 10)
    return [(float(index), labels[index]) for index in range(0, len(labels), stride)]


def _bar_keys(layers: Sequence[Layer]) -> list[tuple[str, Markup]]:
    def square(color: int) -> Markup:
        return tag("rect", class_=f"bar {color_class(color)}", x=0, y=1, width=24, height=10)

    return [(layer.name, square(layer.color)) for layer in layers]


def _bars_as_text(labels: Sequence[str], layers: Sequence[Layer], unit: Unit) -> str:
    def values(layer: Layer) -> str:
        pairs = zip(labels, layer.values, strict=True)
        return ", ".join(f"{label}: {unit.value(value)}" for label, value in pairs if value is not None)

    return " ".join(f"{layer.name}: {values(layer)}." for layer in layers)


def _shares(values: Sequence[int], edges: Sequence[float]) -> list[float]:
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(int((value - edges[0]) / (edges[1] - edges[0])), len(counts) - 1)] += 1
    return [number / len(values) for number in counts]
