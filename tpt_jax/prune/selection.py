"""Which judged traces are kept: a pure function of the traces, the limits and the seed, whatever order they come in."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence

from tpt_jax.records import JudgedTrace, Keep


@dataclasses.dataclass(frozen=True)
class Selection:
    """The kept traces, by question and sample, and how many others were dropped for which reason."""

    kept: tuple[JudgedTrace, ...]
    num_dropped: dict[str, int]


def select(
    judged: Sequence[JudgedTrace],
    *,
    max_per_question: int | None,
    max_traces: int | None,
    seed: int,
    use: Keep,
    is_held_out: Callable[[str], bool] = lambda name: False,
) -> Selection:
    """Keeps finished traces with the wanted verdict, each text once, within the limits; what is over a limit is drawn.

    An unfinished trace is never kept: it has no end of turn, and would teach the model not to stop. The paper keeps one
    a question and 2,000 a round (arXiv 2504.18116, section 4).

    Args:
      use: the verdict that counts; "any" keeps right and wrong alike, but nothing of which neither is known.
      is_held_out: whether the question of that id is one that is evaluated.
    """
    dropped: dict[str, int] = {}

    def count_dropped(traces: list[JudgedTrace], kept: list[JudgedTrace], reason: str) -> list[JudgedTrace]:
        dropped[reason] = len(traces) - len(kept)
        return kept

    wanted: Callable[[JudgedTrace], bool] = {
        "correct": lambda trace: trace.verdict.correct,
        "strict": lambda trace: trace.verdict.strict,
        "any": lambda trace: True,
    }[use]
    # In the order of a draw, so that "the first n" is a random choice that the input's order has no part in.
    traces = sorted(judged, key=lambda trace: _draw(trace, seed))
    traces = count_dropped(traces, [trace for trace in traces if trace.trace.finish_reason == "stop"], "unfinished")
    traces = count_dropped(traces, [trace for trace in traces if not is_held_out(trace.trace.id)], "held out")
    traces = count_dropped(traces, [trace for trace in traces if not trace.verdict.unknown], "unknown")
    traces = count_dropped(traces, [trace for trace in traces if wanted(trace)], "wrong")
    first_of_text: dict[tuple[str, str], JudgedTrace] = {}
    for trace in traces:
        first_of_text.setdefault((trace.trace.id, trace.trace.completion), trace)
    traces = count_dropped(traces, list(first_of_text.values()), "duplicate")
    traces = count_dropped(traces, _first_of_each(traces, max_per_question), "over max_per_question")
    traces = count_dropped(traces, traces[:max_traces], "over max_traces")
    ordered = sorted(traces, key=lambda trace: (trace.trace.id, trace.trace.sample))
    return Selection(tuple(dataclasses.replace(trace, kept=True) for trace in ordered), dropped)


def _draw(trace: JudgedTrace, seed: int) -> bytes:
    """A random number of the trace's own, the same on every machine."""
    return hashlib.sha256(f"{seed}/{trace.trace.id}/{trace.trace.sample}".encode("utf-8", "surrogatepass")).digest()


def _first_of_each(traces: Iterable[JudgedTrace], limit: int | None) -> list[JudgedTrace]:
    counts: dict[str, int] = {}
    kept = []
    for trace in traces:
        counts[trace.trace.id] = counts.get(trace.trace.id, 0) + 1
        if limit is None or counts[trace.trace.id] <= limit:
            kept.append(trace)
    return kept
