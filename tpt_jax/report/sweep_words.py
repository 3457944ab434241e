"""What a sweep found, in sentences that claim no more than the intervals allow, and as a table for the terminal."""

from collections.abc import Sequence

import rich.box
from rich.table import Table
from rich.text import Text

from tpt_jax.report import words
from tpt_jax.report.sweep_read import ArmResult, SweepResult
from tpt_jax.report.two_level import CONFIDENCE, Estimate


def findings(result: SweepResult) -> list[str]:
    """Which arms differ from the first one after the last round, and how sure that is."""
    first, *others = result.arms
    compared = [arm for arm in others if arm.difference is not None]
    if not others:
        return ["There is only one arm, so there is nothing to compare."]
    if not compared:
        return [f"No other arm can be compared with {quoted(first)} yet."]
    clear = [arm for arm in compared if _excludes_zero(arm)]
    left_out = [arm for arm in others if arm.difference is None]
    sentences = [
        _differing(f"Better than {quoted(first)}", [arm for arm in clear if _points(arm) > 0]),
        _differing(f"Worse than {quoted(first)}", [arm for arm in clear if _points(arm) < 0]),
        _undecided(first, [arm for arm in compared if not _excludes_zero(arm)]),
        f"Nothing can be said about {_listed(left_out)} yet." if left_out else "",
        intervals_note(result),
    ]
    return [sentence for sentence in sentences if sentence]


def intervals_note(result: SweepResult) -> str:
    """What the intervals of the differences cover."""
    number = result.num_comparisons
    seeds = f"{result.num_seeds} seeds" if result.num_seeds > 1 else "this seed only"
    questions = f"{words.count(result.num_questions)} questions" if result.num_questions else "questions"
    if number < 2:
        return f"The interval of the difference is paired by question, at 95%, over {questions} and {seeds}."
    return (
        f"The intervals of the differences are paired by question, over {questions} and {seeds}; all {number} together "
        f"hold at {CONFIDENCE:.0%}, so each one is at {1 - (1 - CONFIDENCE) / number:.2%} (Bonferroni)."
    )


def sweep_table(result: SweepResult) -> Table:
    """The arms so far, for the terminal; rates in percent, differences in points."""
    ks = {arm.k for arm in result.arms if arm.k is not None}
    table = Table(box=rich.box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("arm")
    k = ks.pop() if len(ks) == 1 else "k"
    for heading in ("Pass@1", "to the first", "best", f"Pass@{k}", "kept", "tokens", "time", "saved"):
        table.add_column(heading, justify="right", no_wrap=True)
    for arm in result.arms:
        table.add_row(
            Text(arm.name + status(arm)),
            _with_margin(arm.final, 100, ".1f"),
            _with_margin(arm.difference, 100, "+.1f"),
            words.DASH if arm.best_round is None else str(arm.best_round),
            words.DASH if arm.pass_at_k is None else f"{100 * arm.pass_at_k:.1f}",
            words.count(arm.mean_sum("num_kept")),
            words.DASH if (tokens := arm.mean_sum("tokens")) is None else words.compact(tokens),
            words.duration(arm.total("seconds")),
            words.duration(arm.total("seconds_saved")),
        )
    return table


def status(arm: ArmResult) -> str:
    """How far an arm is, unless it is done."""
    if arm.failures:
        return f" ({len(arm.failures)} failed)"
    if arm.is_done:
        return ""
    return f" ({len(arm.done)} of {len(arm.seeds)} runs)" if any(arm.runs.values()) else " (to do)"


def quoted(arm: ArmResult) -> str:
    return f"“{arm.name}”"


def _differing(verdict: str, arms: Sequence[ArmResult]) -> str:
    each = [f"{quoted(arm)} by {words.points(_points(arm))} points ({_interval(arm)})" for arm in arms]
    return f"{verdict}: {', '.join(each)}." if arms else ""


def _undecided(first: ArmResult, arms: Sequence[ArmResult]) -> str:
    if not arms:
        return ""
    verb = "differs" if len(arms) == 1 else "differ"
    return (
        f"Whether {_listed(arms)} {verb} from {quoted(first)} is open: the intervals of the differences include zero."
    )


def _listed(arms: Sequence[ArmResult]) -> str:
    *names, last = map(quoted, arms)
    return f"{', '.join(names)} and {last}" if names else last


def _points(arm: ArmResult) -> float:
    return arm.difference.mean if arm.difference is not None else 0.0


def _excludes_zero(arm: ArmResult) -> bool:
    return arm.difference is not None and arm.difference.excludes_zero


def _interval(arm: ArmResult) -> str:
    bounds = arm.difference.interval if arm.difference is not None else None
    return " to ".join(map(words.points, bounds)) if bounds else ""


def _with_margin(estimate: Estimate | None, scale: float, form: str) -> str:
    if estimate is None:
        return words.DASH
    text = format(scale * estimate.mean, form).replace("-", words.MINUS)
    if estimate.interval is None:
        return text
    return f"{text} ± {scale * (estimate.interval[1] - estimate.interval[0]) / 2:.1f}"
