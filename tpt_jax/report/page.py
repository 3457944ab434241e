"""The page: a run's figures and traces into one HTML file, everything a model wrote escaped."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpt_jax.records import write_atomically
from tpt_jax.report.charts import Series, line_chart, stacked_bars
from tpt_jax.report.read import RunReport, read_run

LONGEST_TRACE = 6_000  # characters shown
STAGES = ("think", "prune", "train", "evaluate")


def write_report(run_dirs: Sequence[Path], output: Path) -> None:
    """Writes the report of one run, or of several side by side.

    Raises:
      UserError: a folder is not a run's.
    """
    import jinja2

    runs = [read_run(path) for path in run_dirs]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tpt_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "percent": _percent, "count": _count}
    page = environment.get_template("page.html").render(
        title=" and ".join(run.name for run in runs),
        runs=[{"run": run, "charts": _charts(run), "headline": _headline(run)} for run in runs],
        comparison=_comparison(runs) if len(runs) > 1 else None,
        stages=STAGES,
    )
    write_atomically(output, page)


def visible(text: str) -> str:
    """A text with characters that act on what is around them (controls, direction marks) shown as their code points."""
    cut = text[:LONGEST_TRACE]
    shown = "".join(
        character if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn")
        else f"[U+{ord(character):04X}]"
        for character in cut
    )
    left_out = len(text) - len(cut)
    return f"{shown}\n[{left_out:,} more characters]" if left_out else shown


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _count(value: float | None) -> str:
    return "–" if not value else f"{value:,.0f}"


def _headline(run: RunReport) -> str:
    if not run.rounds:
        return "No round is finished yet."
    first, last = run.rounds[0], run.rounds[-1]
    text = f"Pass@1 {_percent(first.get('pass_at_1'))}{_interval(first)}"
    if first is last:
        return f"{text} as given."
    gain = 100 * (last["pass_at_1"] - first["pass_at_1"])
    text += f" on {first.get('num_questions', 0)} held-out questions as given, {_percent(last['pass_at_1'])}{_interval(last)} after round {last['round']}: {gain:+.1f} points."
    (low, high), (last_low, last_high) = (metrics["intervals"]["pass_at_1"] for metrics in (first, last))
    overlap = low <= last_high and last_low <= high
    return f"{text} The intervals overlap: the change may be chance." if overlap else text


def _interval(metrics: Mapping[str, Any]) -> str:
    bounds = metrics.get("intervals", {}).get("pass_at_1")
    return f" ({100 * bounds[0]:.1f} to {100 * bounds[1]:.1f})" if bounds else ""


def _curve(run: RunReport, metric: str, name: str, *, dashed: bool = False) -> Series:
    bounds = [metrics.get("intervals", {}).get(metric, (None, None)) for metrics in run.rounds]
    known = all(None not in pair for pair in bounds)
    return Series(
        name,
        [metrics.get(metric) for metrics in run.rounds],
        low=[pair[0] for pair in bounds] if known else None,
        high=[pair[1] for pair in bounds] if known else None,
        dashed=dashed,
    )


def _labels(run: RunReport) -> list[str]:
    return [f"round {metrics['round']}" for metrics in run.rounds]


def _comparison(runs: Sequence[RunReport]) -> str:
    longest = max(runs, key=lambda run: len(run.rounds))
    return line_chart("Pass@1 on held-out questions", _labels(longest), [_curve(run, "pass_at_1", run.name) for run in runs], percent=True)


def _charts(run: RunReport) -> list[str]:
    if not run.rounds:
        return []
    labels = _labels(run)
    k = run.rounds[0].get("k", "k")

    def of(pick: Callable[[Mapping[str, Any]], float | None], name: str, *, thought: bool = False) -> Series:
        rounds = run.rounds[1:] if thought else run.rounds
        return Series(name, [pick(metrics) for metrics in rounds])

    charts = [
        line_chart(
            "Held-out questions: Pass@1 and Pass@k, with 95% intervals",
            labels,
            [
                _curve(run, "pass_at_1", "Pass@1"),
                _curve(run, "pass_at_k", f"Pass@{k}"),
                _curve(run, "strict_pass_at_1", "Pass@1, strict", dashed=True),
                _curve(run, "strict_pass_at_k", f"Pass@{k}, strict", dashed=True),
            ],
            percent=True,
        ),
        stacked_bars(
            "Seconds by stage",
            labels,
            [of(lambda metrics, stage=stage: metrics.get("seconds", {}).get(stage), stage) for stage in STAGES],
        ),
    ]
    if len(run.rounds) > 1:
        counts = (("num_traces", "sampled"), ("num_correct", "correct"), ("num_kept", "kept"))
        charts += [
            line_chart(
                "Traces of training questions",
                labels[1:],
                [of(lambda metrics, key=key: metrics.get(key), name, thought=True) for key, name in counts],
            ),
            line_chart(
                "Mean length, tokens",
                labels,
                [
                    of(lambda metrics: metrics.get("mean_tokens"), "held-out questions"),
                    of(lambda metrics: metrics.get("mean_think_tokens") or None, "training questions"),
                ],
            ),
        ]
    losses = [loss for index in sorted(run.losses) for loss in run.losses[index]]
    if losses:
        steps = [str(step) for step in range(len(losses))]
        charts.append(line_chart("Training loss by step, all rounds", steps, [Series("nats a completion token", losses)]))
    return charts
