"""The records that flow between the stages: questions, traces, verdicts."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, Self, TypeVar, overload

FinishReason = Literal["stop", "length"]
TOKEN_FIELDS = ("token_ids", "token_logprobs", "token_entropies", "token_ends")  # of a Trace: one value a sampled token
CHECKERS_FAULT = "checker"  # prefix of reasons that are not the trace's fault
TraceName = tuple[str, int]  # question id and sample
Until = Literal["enough", "all"]  # when to stop sampling: once there is enough to train on, or never


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A question whose final answer is known.

    Attributes:
      answer: the reference answer; "" if `data` alone decides, as with unit tests.
      data: plain values that the checker needs besides; see the checker.
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
    token_ids: tuple[int, ...] = ()  # sampled tokens, without the end of turn; () if only the text is known
    logprob: float = 0.0  # sum over the sampled tokens, end of turn included, at temperature 1
    finish_reason: FinishReason = "stop"  # "length": cut at max_new_tokens, no end of turn
    stop_string: str | None = None  # the stop string that ended it; None if the model ended its turn itself
    entropy: float = 0.0  # sum of the next-token distributions' entropies over the sampled tokens, nats, temperature 1
    token_logprobs: tuple[float, ...] = ()  # of token_ids, at temperature 1, in float16; () if not kept
    token_entropies: tuple[float, ...] = ()  # as token_logprobs
    token_ends: tuple[int, ...] = ()  # where each of token_ids ends in the completion, in characters; () if not kept

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.id}/{self.sample}"

    @property
    def num_sampled(self) -> int:
        """The number of sampled tokens, the end of turn included."""
        return len(self.token_ids) + (self.finish_reason == "stop")


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """A checker's verdict on a trace: right, wrong, or unknown.

    Attributes:
      extracted: the final answer found, normalised; None if there is none.
      strict: right, and in the format that the prompt asked for.
      correct: right, in any format.
      reason: why it is not correct, unless the answer is simply wrong: "no answer", "time limit", ...
      unknown: neither right nor wrong, because the reference answer cannot be read; such a trace is never trained on,
        and counts in no rate.
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
        """The fields of both records in one object, without the lists that are empty."""
        trace = {name: value for name, value in dataclasses.asdict(self.trace).items() if value != ()}
        return {**trace, **dataclasses.asdict(self.verdict), "kept": self.kept}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        lists: dict[str, Any] = {name: tuple(line.get(name, ())) for name in TOKEN_FIELDS}
        trace = {field.name: line[field.name] for field in dataclasses.fields(Trace) if field.name not in lists}
        verdict = Verdict(**{field.name: line[field.name] for field in dataclasses.fields(Verdict)})
        return cls(Trace(**trace, **lists), verdict, line["kept"])


@dataclasses.dataclass(frozen=True)
class Shot:
    """A worked example for few-shot prompts: a question, and the completion a good model would write."""

    question: str
    completion: str


@dataclasses.dataclass(frozen=True)
class Generation:
    """The longest prompts and completions of a task, in tokens, unless the user says otherwise."""

    max_prompt_tokens: int = 256
    max_new_tokens: int = 512


CheckFunction = Callable[[Question, str], Verdict | bool | None]  # a user's own; None: the reference cannot be read
CheckerSpec = str | CheckFunction  # a name from checks.registry, "module:function", or the function itself


@dataclasses.dataclass(frozen=True)
class QuestionSet(Sequence[Question]):
    """Questions that are asked and judged alike: a split of a task, or part of one. A slice is a QuestionSet too.

    Attributes:
      instruction: placed after the question in every prompt; "" for none.
      checker: judges the answers.
      shots: worked examples that a prompt may begin with.
      template: chat template, as `prompt.template` in a config; None for the checkpoint's own.
      stop: texts before which an answer ends, as `prompt.stop`; None for those of the template.
      generation: how long prompts and completions may be.
      seconds_per_trace: a check that takes longer is killed.
    """

    questions: tuple[Question, ...]
    _: dataclasses.KW_ONLY
    instruction: str = ""
    checker: CheckerSpec = "numeric"
    shots: tuple[Shot, ...] = ()
    template: str | None = None
    stop: tuple[str, ...] | None = None
    generation: Generation = Generation()
    seconds_per_trace: float = 5.0

    def __len__(self) -> int:
        return len(self.questions)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Question | Self:
        return self.only(self.questions[index]) if isinstance(index, slice) else self.questions[index]

    def __iter__(self) -> Iterator[Question]:
        return iter(self.questions)

    def only(self, questions: Sequence[Question]) -> Self:
        """Other questions, asked and judged in the same way."""
        return dataclasses.replace(self, questions=tuple(questions))


Record = TypeVar("Record", Trace, JudgedTrace)


@dataclasses.dataclass(frozen=True)
class Traces(Sequence[Record], Generic[Record]):
    """Traces, judged or not, with the questions they answer.

    Attributes:
      num_dropped: how many traces a selection left out, by reason.
    """

    traces: tuple[Record, ...]
    questions: QuestionSet
    num_dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.traces)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Record | Self:
        if isinstance(index, slice):
            return dataclasses.replace(self, traces=self.traces[index], num_dropped={})
        return self.traces[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.traces)

    def __repr__(self) -> str:
        return f"<{len(self.traces):,} traces of {len({_id(trace) for trace in self.traces}):,} questions>"


def _id(trace: Trace | JudgedTrace) -> str:
    return trace.id if isinstance(trace, Trace) else trace.trace.id
