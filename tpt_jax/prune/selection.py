"""Selects the traces to train on: a pure function of judged traces, limits and seed, but not of the input's order."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import Self

from tpt_jax.records import FinishReason, JudgedTrace, Keep, Trace, Verdict


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """What a selection looks at in a judged trace: about 200 bytes, however long the trace is.

    Attributes:
      verdict: without the extracted answer, and shared with other candidates.
      text: a checksum of the completion and its question's id: equal for duplicates.
    """

    id: str  # of the question
    sample: int
    finish_reason: FinishReason
    verdict: Verdict
    text: bytes

    @classmethod
    def of(cls, trace: Trace, verdict: Verdict) -> Self:
        text = _encoded(f"{len(trace.id)} {trace.id}{trace.completion}")
        shared = _without_answer(verdict.strict, verdict.correct, verdict.reason, verdict.unknown)
        return cls(trace.id, trace.sample, trace.finish_reason, shared, hashlib.blake2b(text, digest_size=16).digest())


@functools.lru_cache
def _without_answer(strict: bool, correct: bool, reason: str, unknown: bool) -> Verdict:
    return Verdict(None, strict, correct, reason, unknown)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The indices of the kept candidates, ordered by question and sample, and the number of dropped ones by reason."""

    kept: list[int]
    num_dropped: dict[str, int]


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
    """Selects among traces in memory, as `choose`."""
    choice = choose(
        [Candidate.of(each.trace, each.verdict) for each in judged],
        max_per_question=max_per_question,
        max_traces=max_traces,
        seed=seed,
        keep=keep,
        is_held_out=is_held_out,
    )
    return Selection(tuple(dataclasses.replace(judged[index], kept=True) for index in choice.kept), choice.num_dropped)


def choose(
    candidates: Sequence[Candidate],
    *,
    max_per_question: int | None,
    max_traces: int | None,
    seed: int,
    keep: Keep,
    is_held_out: Callable[[str], bool] = lambda name: False,
) -> Choice:
    """Keeps finished traces with the wanted verdict, no two with the same text; chooses randomly within the limits.

    Unfinished traces are never kept: they have no end of turn, and would teach the model not to stop. The paper keeps
    one trace per question and 2,000 per round (arXiv 2504.18116, section 4).

    Args:
      keep: the wanted verdict; "any" keeps correct and wrong traces alike, but none whose verdict is unknown.
      is_held_out: whether the question with this id is held out for evaluation.
    """
    num_dropped: dict[str, int] = {}

    def count_dropped(indices: Sequence[int], kept: list[int], reason: str) -> list[int]:
        num_dropped[reason] = len(indices) - len(kept)
        return kept

    def only(indices: Sequence[int], is_usable: Callable[[Candidate], bool], reason: str) -> list[int]:
        return count_dropped(indices, [index for index in indices if is_usable(candidates[index])], reason)

    is_wanted: Callable[[Candidate], bool] = {
        "correct": lambda trace: trace.verdict.correct,
        "strict": lambda trace: trace.verdict.strict,
        "any": lambda trace: True,
    }[keep]
    indices = only(range(len(candidates)), lambda trace: trace.finish_reason == "stop", "unfinished")
    indices = only(indices, lambda trace: not is_held_out(trace.id), "held out")
    indices = only(indices, lambda trace: not trace.verdict.unknown, "unknown")
    indices = only(indices, is_wanted, "wrong")
    # In random order, so that the first n are a random choice, independent of the input's order.
    indices.sort(key=lambda index: _random_key(candidates[index], seed))
    indices = only(indices, _Firsts(lambda trace: trace.text, 1), "duplicate")
    indices = only(indices, _Firsts(lambda trace: trace.id, max_per_question), "over max_per_question")
    indices = count_dropped(indices, indices[:max_traces], "over max_traces")
    indices.sort(key=lambda index: (candidates[index].id, candidates[index].sample))
    return Choice(indices, num_dropped)


def _random_key(trace: Candidate, seed: int) -> bytes:
    """Random bytes that depend only on seed, question and sample, the same on every machine."""
    return hashlib.sha256(_encoded(f"{seed}/{trace.id}/{trace.sample}")).digest()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class _Firsts:
    """Whether a trace is among the first n with its key, among those it was called with; None for no limit."""

    def __init__(self, key: Callable[[Candidate], Hashable], limit: int | None):
        self._key, self._limit = key, limit
        self._counts: dict[Hashable, int] = {}

    def __call__(self, trace: Candidate) -> bool:
        key = self._key(trace)
        count = self._counts[key] = self._counts.get(key, 0) + 1
        return self._limit is None or count <= self._limit
