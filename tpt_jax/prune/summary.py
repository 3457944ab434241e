"""Summaries of verdicts: counts by kind and reason, and the tables that `tpt prune` prints."""

import collections
from collections.abc import Callable, Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table

from tpt_jax.evaluation import Answer, mean_interval, pass_at_k
from tpt_jax.prune.candidate import Candidate
from tpt_jax.prune.pipeline import Choice
from tpt_jax.records import CHECKERS_FAULT, JudgedTrace, Verdict
from tpt_jax.terminal import listed

STRICT = "right, in the format asked for"
FORMAT_ONLY = "right, in another format"
WRONG = "wrong answer"


def label(verdict: Verdict) -> str:
    """The kind of a verdict: STRICT, FORMAT_ONLY, or else its reason or WRONG."""
    if verdict.correct:
        return STRICT if verdict.strict else FORMAT_ONLY
    return verdict.reason or WRONG


def count_labels(judged: Iterable[JudgedTrace | Candidate | Answer]) -> dict[str, int]:
    """The number of verdicts of each kind: correct kinds first, then the others from common to rare."""
    counts = collections.Counter(label(trace.verdict) for trace in judged)
    return {STRICT: counts.pop(STRICT, 0), FORMAT_ONLY: counts.pop(FORMAT_ONLY, 0), **dict(counts.most_common())}


def failed_on_all(judged: Iterable[JudgedTrace | Candidate]) -> str | None:
    """A message if the checker itself failed on every trace; None if it did not, or if there are no traces."""
    return always_failed({trace.verdict.reason for trace in judged})


def always_failed(reasons: Collection[str]) -> str | None:
    """As failed_on_all, by the reasons of all verdicts."""
    if not reasons or not all(reason.startswith(CHECKERS_FAULT) for reason in reasons):
        return None
    return f"it failed on every trace ({listed(sorted(reasons))})"


def print_summary(console: Console, judged: Sequence[Candidate], choice: Choice, num_trimmed: int = 0) -> None:
    """Prints tables of verdicts, kept and dropped traces, and Pass@1 and Pass@k for both verdicts."""
    table = Table("traces", "count", "share")
    table.columns[1].justify = table.columns[2].justify = "right"

    def add_row(text: str, count: int) -> None:
        table.add_row(text, f"{count:,}", f"{count / len(judged):.1%}")

    def add_kinds(heading: str, traces: list[Candidate]) -> None:
        add_row(heading, len(traces))
        for text, count in count_labels(traces).items():
            if count:
                add_row(f"  {text}", count)

    add_kinds("correct", [trace for trace in judged if trace.verdict.correct])
    add_kinds("wrong", [trace for trace in judged if not trace.verdict.correct and not trace.verdict.unknown])
    add_kinds("unknown", [trace for trace in judged if trace.verdict.unknown])
    add_row("truncated", sum(trace.finish_reason == "length" for trace in judged))
    add_row("kept", len(choice.kept))
    if num_trimmed:
        add_row("  trimmed", num_trimmed)
    for reason, count in choice.num_dropped.items():
        if count:
            add_row(f"  dropped: {reason}", count)
    console.print(table)
    _print_rates(console, [trace for trace in judged if not trace.verdict.unknown])


def _print_rates(console: Console, judged: Sequence[Candidate]) -> None:
    """Prints Pass@1 and Pass@k; k is the smallest number of traces of any question.

    Args:
      judged: traces whose verdict is known.
    """
    by_question: dict[str, list[Candidate]] = collections.defaultdict(list)
    for trace in judged:
        by_question[trace.id].append(trace)
    if not by_question:
        return
    questions = list(by_question.values())
    ks = sorted({1, min(map(len, questions))})
    table = Table("95% over questions", *(f"Pass@{k}" for k in ks))

    def rate(is_right: Callable[[Candidate], bool], k: int, groups: Sequence[Sequence[Candidate]] = questions) -> str:
        values = [pass_at_k(len(traces), sum(map(is_right, traces)), k) for traces in groups]
        low, high = mean_interval(values)
        return f"{sum(values) / len(values):.1%} ({low:.1%} to {high:.1%})"

    table.add_row("correct", *(rate(lambda trace: trace.verdict.correct, k) for k in ks))
    table.add_row("strict", *(rate(lambda trace: trace.verdict.strict, k) for k in ks))
    is_uneven = len({len(traces) for traces in questions}) > 1
    if is_uneven:
        firsts = [[min(traces, key=lambda trace: trace.sample)] for traces in questions]
        table.add_row("correct, first samples", rate(lambda trace: trace.verdict.correct, 1, firsts))
    console.print(table)
    if is_uneven:
        console.print(
            "Some questions have more traces than others. If they were sampled until a trace was right "
            "(think.until: enough), only their first samples give a fair rate.",
            highlight=False,
        )
    console.print(f"{len(judged):,} traces of {len(questions):,} questions", highlight=False)
