"""Selects the traces to train on: a pure function of judged traces, limits and seed, but not of the input's order."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence

from tpt_jax.records import JudgedTrace, Keep


@dataclasses.dataclass(frozen=True)
class Selection:
    """The kept traces, sorted by question and sample, and the number of dropped ones by reason."""

    kept: tuple[JudgedTrace, ...]
    num_dropped: dict[str, int]


def select(
    judged: Sequence[JudgedTrace],
    *,
    max_per_question: int | None,
    max_traces: int | None,
    seed: int,
    keep: Keep,
    is_held_out: Callable[[str], bool] = lambda name: False,
) -> Selection:
    """Keeps finished traces with the wanted verdict, no two with the same text; chooses randomly within the limits.

    Unfinished traces are never kept: they have no end of turn, and would teach the model not to stop. The paper keeps
    one trace per question and 2,000 per round (arXiv 2504.18116, section 4).

    Args:
      keep: the wanted verdict; "any" keeps correct and wrong traces alike, but none whose verdict is unknown.
      is_held_out: whether the question with this id is held out for evaluation.
    """
    num_dropped: dict[str, int] = {}

    def count_dropped(traces: list[JudgedTrace], kept: list[JudgedTrace], reason: str) -> list[JudgedTrace]:
        num_dropped[reason] = len(traces) - len(kept)
        return kept

    is_wanted: Callable[[JudgedTrace], bool] = {
        "correct": lambda trace: trace.verdict.correct,
        "strict": lambda trace: trace.verdict.strict,
        "any": lambda trace: True,
    }[keep]
    # In random order, so that the first n are a random choice, independent of the input's order.
    traces = sorted(judged, key=lambda trace: _random_key(trace, seed))
    traces = count_dropped(traces, [trace for trace in traces if trace.trace.finish_reason == "stop"], "unfinished")
    traces = count_dropped(traces, [trace for trace in traces if not is_held_out(trace.trace.id)], "held out")
    traces = count_dropped(traces, [trace for trace in traces if not trace.verdict.unknown], "unknown")
    traces = count_dropped(traces, [trace for trace in traces if is_wanted(trace)], "wrong")
    by_text: dict[tuple[str, str], JudgedTrace] = {}
    for trace in traces:
        by_text.setdefault((trace.trace.id, trace.trace.completion), trace)
    traces = count_dropped(traces, list(by_text.values()), "duplicate")
    traces = count_dropped(traces, _first_per_question(traces, max_per_question), "over max_per_question")
    traces = count_dropped(traces, traces[:max_traces], "over max_traces")
    traces.sort(key=lambda trace: (trace.trace.id, trace.trace.sample))
    return Selection(tuple(dataclasses.replace(trace, kept=True) for trace in traces), num_dropped)


def _random_key(trace: JudgedTrace, seed: int) -> bytes:
    """Random bytes that depend only on seed, question and sample, the same on every machine."""
    return hashlib.sha256(f"{seed}/{trace.trace.id}/{trace.trace.sample}".encode("utf-8", "surrogatepass")).digest()


def _first_per_question(traces: Iterable[JudgedTrace], limit: int | None) -> list[JudgedTrace]:
    counts: dict[str, int] = {}
    kept = []
    for trace in traces:
        counts[trace.trace.id] = counts.get(trace.trace.id, 0) + 1
        if limit is None or counts[trace.trace.id] <= limit:
            kept.append(trace)
    return kept
