"""What flows between the stages: questions, traces, verdicts."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

FinishReason = Literal["stop", "length"]
CHECKERS_FAULT = "checker"  # what the reasons begin with that are no fault of a trace
Keep = Literal["correct", "strict", "any"]  # which traces are trained on: right ones, right ones in form, all


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A question whose final answer is known.

    Attributes:
      answer: the reference; "" where `data` alone tells right from wrong, as unit tests do.
      data: what else the checker needs, plain values: see the checker.
    """

    id: str
    question: str
    answer: str
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """One sampled completion of a question's prompt, as the model wrote it."""

    id: str  # of the question
    sample: int  # 0 .. num_samples - 1
    completion: str  # decoded text, without the end of turn
    token_ids: tuple[int, ...] = ()  # sampled tokens, without the end of turn; () where only text is known
    logprob: float = 0.0  # sum over the sampled tokens, end of turn included, at temperature 1
    finish_reason: FinishReason = "stop"  # "length": cut at max_new_tokens, no end of turn

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.id}/{self.sample}"

    @property
    def num_sampled(self) -> int:
        """Tokens that were sampled, the end of turn included."""
        return len(self.token_ids) + (self.finish_reason == "stop")


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What the checker said of a trace: right, wrong, or unknown.

    Attributes:
      extracted: the final answer found, normalised; None where there is none.
      strict: right, and in the format that the prompt asked for.
      correct: right, format forgiven.
      reason: why not correct, where it is not plainly a wrong answer: "no answer", "time limit", ...
      unknown: neither right nor wrong, for the question's own reference cannot be read; such a trace is never trained
        on, and no rate counts it.
    """

    extracted: str | None
    strict: bool
    correct: bool
    reason: str = ""
    unknown: bool = False

    @classmethod
    def wrong(cls, reason: str, extracted: str | None = None) -> Self:
        return cls(extracted, strict=False, correct=False, reason=reason)

    @classmethod
    def not_known(cls, reason: str) -> Self:
        return cls(None, strict=False, correct=False, reason=reason, unknown=True)

    @classmethod
    def unreadable(cls) -> Self:
        return cls.not_known("unreadable reference answer")


@dataclasses.dataclass(frozen=True, slots=True)
class JudgedTrace:
    """A trace with its verdict; one JSON line holds the fields of both, and `kept`."""

    trace: Trace
    verdict: Verdict
    kept: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.trace), **dataclasses.asdict(self.verdict), "kept": self.kept}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        trace = Trace(**{field.name: line[field.name] for field in dataclasses.fields(Trace)})
        verdict = Verdict(**{field.name: line[field.name] for field in dataclasses.fields(Verdict)})
        trace = dataclasses.replace(trace, token_ids=tuple(trace.token_ids))
        return cls(trace, verdict, line["kept"])
