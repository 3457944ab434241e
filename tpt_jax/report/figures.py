"""Which charts a run has, and which several runs have together. What a run does not have yet is left out."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from tpt_jax.report import words
from tpt_jax.report.charts import Layer, Line, Point, curve_chart, grouped_bars, histogram, line_chart, stacked_bars
from tpt_jax.report.read import Run
from tpt_jax.report.svg import Unit

STAGES = ("think", "prune", "train", "evaluate", "checkpoint")
PERCENT = Unit(lambda value: f"{100 * value:.3g}%", words.percent)
COUNT = Unit(words.compact, words.count)
TOKENS = Unit(words.compact, words.figure)
LOSS = Unit(words.figure, lambda value: f"{value:.4g}")
ROUND = "round (0: the model as given)"
TIMES = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
MOST_LOSSES = 240  # points of the loss curve; more cannot be told apart
KIND_COLORS = (0, 2, 5, 1, 3, 4)  # of the verdicts in a chart: right ones, the commonest wrong kind in grey, others
SAME = 0.0005  # rates that are written alike


def run_charts(run: Run) -> list[Markup]:
    """The charts of a run's own section."""
    charts = (
        *(_passes(run), _verdicts(run, "evaluate", "What the checker said of the held-out traces")),
        *(_yield(run), _verdicts(run, "think", "What the checker said of the traces sampled for training")),
        *(_mean_lengths(run), _lengths(run), _seconds(run), _loss(run)),
    )
    return [chart for chart in charts if chart is not None]


def comparison_charts(runs: Sequence[Run]) -> list[Markup]:
    """One line a run, in the order in which they are given."""
    k = runs[0].k if len({run.k for run in runs}) == 1 else "k"
    rates = (("pass_at_1", "Pass@1"), ("pass_at_k", f"Pass@{k}"), ("maj_at_k", "Majority vote"))
    charts = [
        _lines(
            f"{title} on held-out questions",
            [_rate_line(run, metric, run.label, color) for color, run in enumerate(runs)],
            unit=PERCENT,
        )
        for metric, title in rates
    ]
    yields = [Line(run.label, list(_right_shares(run)), color) for color, run in enumerate(runs)]
    charts.append(_lines("Right answers among the traces sampled for training", yields, unit=PERCENT, x_name="round"))
    return [chart for chart in charts if chart is not None]


def _lines(title: str, lines: Sequence[Line], *, x_name: str = ROUND, **settings: Any) -> Markup | None:
    known = [line for line in lines if line.points]
    return line_chart(title, known, x_name=x_name, **settings) if known else None


def _rate_line(run: Run, metric: str, name: str, color: int, *, dashed: bool = False) -> Line:
    rates = ((of_round.index, of_round.rates.get(metric)) for of_round in run.rounds)
    return Line(name, [Point(index, rate.value, rate.interval) for index, rate in rates if rate], color, dashed)


def _right_shares(run: Run) -> Iterator[Point]:
    for of_round in run.rounds:
        traces, correct = of_round.thought("num_traces"), of_round.thought("num_correct")
        if traces and correct is not None:
            yield Point(of_round.index, correct / traces)


def _passes(run: Run) -> Markup | None:
    lines, strict_lines = [], []
    for color, (metric, name) in enumerate((("pass_at_1", "Pass@1"), ("pass_at_k", f"Pass@{run.k}"))):
        line = _rate_line(run, metric, name, color)
        strict = _rate_line(run, f"strict_{metric}", f"{name}, strict", color, dashed=True)
        rates = {point.x: point.y for point in line.points}
        differs = any(abs(rates.get(point.x, math.inf) - point.y) >= SAME for point in strict.points)
        lines.append(line)
        strict_lines += [strict] if differs else []
    note = "Upright bars: 95% intervals over questions."
    if strict_lines:
        note += " Strict: right, and in the format that the prompt asks for."
    elif any("strict_pass_at_1" in of_round.rates for of_round in run.rounds):
        note += " Counting only answers in the format asked for gives the same curves."
    return _lines(f"Pass@1 and Pass@{run.k} on held-out questions", [*lines, *strict_lines], unit=PERCENT, note=note)


def _yield(run: Run) -> Markup | None:
    rounds = [of_round for of_round in run.rounds if of_round.thought("num_traces")]
    if not rounds:
        return None
    names = (("sampled", "num_traces", 5), ("right", "num_correct", 0), ("kept", "num_kept", 2))
    layers = [Layer(name, [of_round.thought(key) for of_round in rounds], color) for name, key, color in names]
    labels = [str(of_round.index) for of_round in rounds]
    return grouped_bars("Traces of training questions", labels, layers, unit=COUNT, x_name="round")


def _verdicts(run: Run, stage: str, title: str) -> Markup | None:
    """Format and reasoning apart: a bar a round, from what is right in the asked format to what has no answer."""
    rounds = [of_round for of_round in run.rounds if of_round.verdicts[stage]]
    kinds = list(dict.fromkeys(kind for of_round in rounds for kind in of_round.verdicts[stage]))
    if not kinds:
        return None
    shown, rest = kinds[: len(KIND_COLORS) - 1], kinds[len(KIND_COLORS) - 1 :]
    counts = [of_round.verdicts[stage] for of_round in rounds]
    layers = [
        Layer(kind, [each.get(kind, 0.0) for each in counts], color)
        for kind, color in zip(shown, KIND_COLORS, strict=False)
    ]
    if rest:
        others = [sum(each.get(kind, 0.0) for kind in rest) for each in counts]
        layers.append(Layer("other", others, KIND_COLORS[-1]))
    labels = [str(of_round.index) for of_round in rounds]
    return stacked_bars(title, labels, layers, unit=COUNT, x_name=ROUND)


def _mean_lengths(run: Run) -> Markup | None:
    lines = []
    for color, (key, name) in enumerate((("mean_tokens", "held-out questions"), ("mean_think_tokens", "training"))):
        means = ((of_round.index, of_round.numbers.get(key)) for of_round in run.rounds)
        lines.append(Line(name, [Point(index, mean) for index, mean in means if mean], color))
    return _lines("Mean length of a trace, in tokens", lines, unit=TOKENS, from_zero=True)


def _lengths(run: Run) -> Markup | None:
    groups = [(f"round {held_out.round}", held_out.lengths) for held_out in run.held_out if held_out.lengths]
    return (
        histogram("How lengths are spread", groups, unit=PERCENT, x_name="tokens of a held-out trace")
        if groups
        else None
    )


def _seconds(run: Run) -> Markup | None:
    timed = {stage for of_round in run.rounds for stage in of_round.seconds}
    if not timed:
        return None
    longest = max(sum(of_round.seconds.values()) for of_round in run.rounds)
    size, name = next((size, name) for size, name in TIMES if longest >= 2 * size or size == 1)
    scaled = [{stage: seconds / size for stage, seconds in of_round.seconds.items()} for of_round in run.rounds]
    layers = [
        Layer(stage, [each.get(stage) for each in scaled], color)
        for color, stage in enumerate((*STAGES, *sorted(timed - set(STAGES))))
        if stage in timed  # a stage has its colour whichever others there are
    ]
    unit = Unit(words.figure, lambda value: words.duration(value * size))
    labels = [str(of_round.index) for of_round in run.rounds]
    return stacked_bars(f"Time by stage, in {name}", labels, layers, unit=unit, x_name=ROUND)


def _loss(run: Run) -> Markup | None:
    curve: list[Point] = []
    marks: list[tuple[float, str]] = []
    num_steps = sum(map(len, run.losses.values()))
    size = max(1, math.ceil(num_steps / MOST_LOSSES))
    begun = 0
    for index, losses in run.losses.items():
        marks.append((begun, f"round {index}"))
        for start in range(0, len(losses), size):
            finite = [loss for loss in losses[start : start + size] if loss is not None]
            if finite:
                curve.append(Point(begun + start, sum(finite) / len(finite)))
        begun += len(losses)
    if not curve:
        return None
    lost = sum(loss is None for losses in run.losses.values() for loss in losses)
    notes = [f"Each point is the mean of {size} steps."] if size > 1 else []
    notes += [f"In {lost:,} of {num_steps:,} steps the loss was not a finite number."] if lost else []
    return curve_chart("Training loss", curve, marks, unit=LOSS, x_name="step", note=" ".join(notes))
