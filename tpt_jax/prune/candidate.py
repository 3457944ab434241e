"""A candidate for training: what the steps of a pipeline look at in a judged trace."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

from tpt_jax.records import FinishReason, Trace, Verdict


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """What a pipeline looks at in a judged trace: about 250 bytes with two steps, however long the trace is.

    Attributes:
      verdict: without the extracted answer, and shared with other candidates.
      values: what each selecting step of the pipeline measured, in their order; plain JSON values.
    """

    id: str  # of the question
    sample: int
    finish_reason: FinishReason
    verdict: Verdict
    values: tuple[Any, ...] = ()

    @classmethod
    def of(cls, trace: Trace, verdict: Verdict, values: tuple[Any, ...] = ()) -> Self:
        shared = _without_answer(verdict.strict, verdict.correct, verdict.reason, verdict.unknown)
        return cls(trace.id, trace.sample, trace.finish_reason, shared, values)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a message to another host."""
        verdict = {name: getattr(self.verdict, name) for name in ("strict", "correct", "reason", "unknown")}
        return {
            "id": self.id,
            "sample": self.sample,
            "finish_reason": self.finish_reason,
            "verdict": verdict,
            "values": list(self.values),
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        verdict = _without_answer(**line["verdict"])
        return cls(line["id"], line["sample"], line["finish_reason"], verdict, tuple(line["values"]))


@functools.lru_cache
def _without_answer(strict: bool, correct: bool, reason: str, unknown: bool) -> Verdict:
    return Verdict(None, strict, correct, reason, unknown)
