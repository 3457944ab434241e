"""What the verdicts on a set of traces come to: how often right, in which format, and why not."""

import collections
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.table import Table

from tpt_jax.evaluation import mean_interval, pass_at_k
from tpt_jax.prune.selection import Selection
from tpt_jax.records import CHECKERS_FAULT, JudgedTrace, Verdict
from tpt_jax.terminal import listed

STRICT = "right, in the format asked for"
FORMAT_ONLY = "right, in another format"
WRONG = "wrong answer"


def label(verdict: Verdict) -> str:
    """The one kind that a verdict is of; of those that are not right, its reason where it has one."""
    if verdict.correct:
        return STRICT if verdict.strict else FORMAT_ONLY
    return verdict.reason or WRONG


def count_labels(judged: Iterable[JudgedTrace]) -> dict[str, int]:
    """How many verdicts there are of each kind: the right ones first, then the commonest."""
    counts = collections.Counter(label(trace.verdict) for trace in judged)
    return {STRICT: counts.pop(STRICT, 0), FORMAT_ONLY: counts.pop(FORMAT_ONLY, 0), **dict(counts.most_common())}


def failed_on_all(judged: Iterable[JudgedTrace]) -> str | None:
    """Says so where the checker itself failed on every trace, as a broken one does; None where it did not."""
    reasons = {trace.verdict.reason for trace in judged}
    if not reasons or not all(reason.startswith(CHECKERS_FAULT) for reason in reasons):
        return None
    return f"it failed on every trace ({listed(sorted(reasons))})"


def print_summary(console: Console, judged: Sequence[JudgedTrace], selection: Selection) -> None:
    """Tables of the verdicts, of what is kept, and of Pass@1 and Pass@k under both verdicts."""
    table = Table("traces", "count", "share")
    table.columns[1].justify = table.columns[2].justify = "right"

    def row(text: str, number: int) -> None:
        table.add_row(text, f"{number:,}", f"{number / len(judged):.1%}")

    def rows(heading: str, chosen: list[JudgedTrace]) -> None:
        row(heading, len(chosen))
        for text, number in count_labels(chosen).items():
            if number:
                row(f"  {text}", number)

    rows("correct", [trace for trace in judged if trace.verdict.correct])
    rows("wrong", [trace for trace in judged if not trace.verdict.correct and not trace.verdict.unknown])
    rows("unknown", [trace for trace in judged if trace.verdict.unknown])
    row("truncated", sum(trace.trace.finish_reason == "length" for trace in judged))
    row("kept", len(selection.kept))
    for reason, number in selection.num_dropped.items():
        if number:
            row(f"  dropped: {reason}", number)
    console.print(table)
    _print_rates(console, [trace for trace in judged if not trace.verdict.unknown])


def _print_rates(console: Console, judged: Sequence[JudgedTrace]) -> None:
    """Of traces with a known verdict; k is the number of traces that every question has."""
    by_question: dict[str, list[JudgedTrace]] = collections.defaultdict(list)
    for trace in judged:
        by_question[trace.trace.id].append(trace)
    if not by_question:
        return
    questions = list(by_question.values())
    draws = sorted({1, min(map(len, questions))})
    table = Table("95% over questions", *(f"Pass@{k}" for k in draws))

    def rate(is_right: Callable[[JudgedTrace], bool], k: int) -> str:
        values = [pass_at_k(len(traces), sum(map(is_right, traces)), k) for traces in questions]
        low, high = mean_interval(values)
        return f"{sum(values) / len(values):.1%} ({low:.1%} to {high:.1%})"

    table.add_row("correct", *(rate(lambda trace: trace.verdict.correct, k) for k in draws))
    table.add_row("strict", *(rate(lambda trace: trace.verdict.strict, k) for k in draws))
    console.print(table)
    console.print(f"{len(judged):,} traces of {len(questions):,} questions", highlight=False)
