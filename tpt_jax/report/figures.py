"""The charts of one run, and of several runs together; a chart without data is left out."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from tpt_jax.report import words
from tpt_jax.report.charts import Layer, Line, Point, curve_chart, grouped_bars, histogram, line_chart, stacked_bars
from tpt_jax.report.read import STAGES, Run
from tpt_jax.report.svg import Unit

PERCENT = Unit(lambda value: f"{100 * value:.3g}%", words.percent)
COUNT = Unit(words.compact, words.count)
TOKENS = Unit(words.compact, words.number)
LOSS = Unit(words.number, lambda value: f"{value:.4g}")
SMALL = Unit(lambda value: f"{value:.2g}", lambda value: f"{value:.3g}")
CURVE_CHARTS = (
    ("loss", "Training loss", LOSS),
    ("learning_rate", "Learning rate", SMALL),
    ("grad_norm", "Norm of the gradient, before clipping", LOSS),
    ("tokens_per_second", "Training speed, in tokens per second", TOKENS),
)
ROUND_AXIS = "round (0: base model)"
TIME_UNITS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
VERDICT_COLORS = (0, 2, 5, 1, 3, 4)  # the two kinds of correct, the most frequent other kind in grey, the rest
SAME_RATE = 0.0005  # rates closer than this are printed alike


def run_charts(run: Run, *, is_running: bool = False) -> list[Markup]:
    """The charts in a run's own section; while it goes on, first those that change all the time."""
    curves = _curves(run)
    charts = (
        *(curves if is_running else ()),
        _pass_rates(run),
        _pass_at_curves(run),
        _variety(run),
        _verdicts(run, "evaluate", "Verdicts on held-out traces"),
        _training_traces(run),
        _verdicts(run, "think", "Verdicts on traces sampled for training"),
        _mean_lengths(run),
        _length_histogram(run),
        _seconds(run),
        *(() if is_running else curves),
    )
    return [chart for chart in charts if chart is not None]


def comparison_charts(runs: Sequence[Run]) -> list[Markup]:
    """Charts with one line per run."""
    k = runs[0].k if len({run.k for run in runs}) == 1 else "k"
    rates = (("pass_at_1", "Pass@1"), ("pass_at_k", f"Pass@{k}"), ("maj_at_k", f"Maj@{k}"))
    charts = [
        _line_chart(
            f"{title} on held-out questions",
            [_rate_line(run, metric, run.label, color) for color, run in enumerate(runs)],
            unit=PERCENT,
        )
        for metric, title in rates
    ]
    shares = [Line(run.label, list(_correct_shares(run)), color) for color, run in enumerate(runs)]
    charts.append(_line_chart("Pass@1 on training questions", shares, unit=PERCENT, x_name="round"))
    return [chart for chart in charts if chart is not None]


def time_scale(longest: float) -> tuple[int, str]:
    """The unit for an axis of times up to the longest one, in seconds: its length, and its name."""
    return next((size, name) for size, name in TIME_UNITS if longest >= 2 * size or size == 1)


def _line_chart(title: str, lines: Sequence[Line], *, x_name: str = ROUND_AXIS, **settings: Any) -> Markup | None:
    with_points = [line for line in lines if line.points]
    return line_chart(title, with_points, x_name=x_name, **settings) if with_points else None


def _rate_line(run: Run, metric: str, name: str, color: int, *, dashed: bool = False) -> Line:
    rates = ((result.index, result.rates.get(metric)) for result in run.rounds)
    return Line(name, [Point(index, rate.value, rate.interval) for index, rate in rates if rate], color, dashed)


def _correct_shares(run: Run) -> Iterator[Point]:
    for result in run.rounds:
        rate = result.training_number("train_pass_at_1")
        if rate is not None:
            yield Point(result.index, rate)


def _pass_rates(run: Run) -> Markup | None:
    lines, strict_lines = [], []
    for color, (metric, name) in enumerate((("pass_at_1", "Pass@1"), ("pass_at_k", f"Pass@{run.k}"))):
        line = _rate_line(run, metric, name, color)
        strict = _rate_line(run, f"strict_{metric}", f"{name}, strict", color, dashed=True)
        rates = {point.x: point.y for point in line.points}
        differs = any(abs(rates.get(point.x, math.inf) - point.y) >= SAME_RATE for point in strict.points)
        lines.append(line)
        strict_lines += [strict] if differs else []
    note = "Error bars: 95% intervals over questions."
    if strict_lines:
        note += " Strict: correct, and in the format that the prompt requests."
    elif any("strict_pass_at_1" in result.rates for result in run.rounds):
        note += " The strict rates (correct, and in the requested format) are the same."
    title = f"Pass@1 and Pass@{run.k} on held-out questions"
    return _line_chart(title, [*lines, *strict_lines], unit=PERCENT, note=note)


def _pass_at_curves(run: Run) -> Markup | None:
    """Pass@k over k, of the base model and of the last round: a model that repeats itself has a flatter curve."""
    results = [result for result in run.rounds if len(result.pass_at) > 1]
    ends = results[:1] + results[1:][-1:]
    lines = [
        Line(
            words.stage_of_model(result.index),
            [Point(k, rate.value, rate.interval) for k, rate in sorted(result.pass_at.items())],
            color,
        )
        for color, result in enumerate(ends)
    ]
    return _line_chart("Pass@k on held-out questions, by number of samples", lines, unit=PERCENT, x_name="samples")


def _variety(run: Run) -> Markup | None:
    kinds = (("distinct_answers", "answers"), ("distinct_calculations", "calculations"))
    lines = []
    for color, (key, name) in enumerate(kinds):
        values = ((result.index, result.numbers.get(key)) for result in run.rounds)
        lines.append(Line(name, [Point(index, value) for index, value in values if value is not None], color))
    title = "Distinct answers and calculations per sample of a held-out question"
    return _line_chart(title, lines, unit=PERCENT, from_zero=True)


def _training_traces(run: Run) -> Markup | None:
    results = [result for result in run.rounds if result.training_number("num_traces")]
    if not results:
        return None
    metrics = (("sampled", "num_traces", 5), ("correct", "num_correct", 0), ("kept", "num_kept", 2))
    layers = [Layer(name, [result.training_number(key) for result in results], color) for name, key, color in metrics]
    labels = [str(result.index) for result in results]
    return grouped_bars("Traces sampled for training", labels, layers, unit=COUNT, x_name="round")


def _verdicts(run: Run, sampling: str, title: str) -> Markup | None:
    """A bar per round, from correct in the requested format down to no answer: format and reasoning apart."""
    results = [result for result in run.rounds if result.verdicts[sampling]]
    labels = list(dict.fromkeys(label for result in results for label in result.verdicts[sampling]))
    if not labels:
        return None
    shown, rest = labels[: len(VERDICT_COLORS) - 1], labels[len(VERDICT_COLORS) - 1 :]
    counts = [result.verdicts[sampling] for result in results]
    layers = [
        Layer(words.label(label), [count.get(label, 0.0) for count in counts], color)
        for label, color in zip(shown, VERDICT_COLORS, strict=False)
    ]
    if rest:
        others = [sum(count.get(label, 0.0) for label in rest) for count in counts]
        layers.append(Layer("other", others, VERDICT_COLORS[-1]))
    layers = [layer for layer in layers if any(layer.values)] or layers
    x_name = ROUND_AXIS if sampling == "evaluate" else "round"
    return stacked_bars(title, [str(result.index) for result in results], layers, unit=COUNT, x_name=x_name)


def _mean_lengths(run: Run) -> Markup | None:
    lines = []
    for color, (key, name) in enumerate((("mean_tokens", "held-out"), ("mean_think_tokens", "training"))):
        means = ((result.index, result.numbers.get(key)) for result in run.rounds)
        lines.append(Line(f"{name} questions", [Point(index, mean) for index, mean in means if mean], color))
    return _line_chart("Mean trace length, in tokens", lines, unit=TOKENS, from_zero=True)


def _length_histogram(run: Run) -> Markup | None:
    groups = [(f"round {held_out.round}", held_out.lengths) for held_out in run.held_out if held_out.lengths]
    if not groups:
        return None
    return histogram("Trace lengths on held-out questions", groups, unit=PERCENT, x_name="tokens per trace")


def _seconds(run: Run) -> Markup | None:
    timed = {stage for result in run.rounds for stage in result.seconds}
    if not timed:
        return None
    size, name = time_scale(max(sum(result.seconds.values()) for result in run.rounds))
    scaled = [{stage: seconds / size for stage, seconds in result.seconds.items()} for result in run.rounds]
    layers = [
        Layer(stage, [values.get(stage) for values in scaled], color)
        for color, stage in enumerate(STAGES)
        if stage in timed  # filtered last: a stage keeps its colour
    ]
    unit = Unit(words.number, lambda value: words.duration(value * size))
    labels = [str(result.index) for result in run.rounds]
    return stacked_bars(f"Time per stage, in {name}", labels, layers, unit=unit, x_name=ROUND_AXIS)


def _curves(run: Run) -> list[Markup]:
    """The curves of training; those that an older run did not log are left out."""
    charts = (_curve(run, name, title, unit) for name, title, unit in CURVE_CHARTS)
    return [chart for chart in charts if chart is not None]


def _curve(run: Run, name: str, title: str, unit: Unit) -> Markup | None:
    points: list[Point] = []
    marks: list[tuple[float, str]] = []
    curves, first_step = run.curves, 0
    for index, values in curves.points[name].items():
        marks.append((first_step, f"round {index}"))
        steps = range(first_step, first_step + curves.num_steps[index], curves.stride)
        points += [Point(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
        first_step += curves.num_steps[index]
    if not points:
        return None
    notes = [f"Each point is the mean of {curves.stride} steps."] if curves.stride > 1 else []
    if name == "loss" and curves.num_not_finite:
        notes.append(f"The loss was not finite in {curves.num_not_finite:,} of {first_step:,} steps.")
    return curve_chart(title, points, marks, unit=unit, x_name="step", note=" ".join(notes))
