"""The two kinds of steps of a pipeline: those that select among traces, and those that trim a trace.

A step is a frozen dataclass whose fields are its options.
"""

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT
from tpt_jax.prune.candidate import Candidate
from tpt_jax.records import Trace, Verdict

# What a step must see to decide about a trace: the trace and earlier samples of its question; all samples of its
# question; all traces of the round. From narrow to wide.
Scope = Literal["trace", "question", "round"]
SCOPES: tuple[Scope, ...] = ("trace", "question", "round")

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Span = tuple[int, int]  # of a text: start and end, in characters


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """The traces of a question, or of a round, that a step decides about; by question order and sample.

    Attributes:
      candidates: those that all earlier steps kept.
      values: what the step measured in each.
      sampled: all, whatever earlier steps did; unfinished ones too.
      seed: of random draws.
    """

    candidates: Sequence[Candidate]
    values: Sequence[Any]
    sampled: Sequence[Candidate]
    seed: int


class Step(abc.ABC):
    """A step that selects.

    Attributes:
      name: in a config.
      needs: fields of a Trace that it reads and that a stored trace may lack.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    @abc.abstractmethod
    def scope(self) -> Scope:
        """What the step must see: it gets groups of a question's traces, or one of the round's."""

    def require(self) -> None:  # noqa: B027 most steps need nothing
        """Makes sure that the step can be used.

        Raises:
          UserError: it cannot.
        """

    def measure(self, trace: Trace, verdict: Verdict) -> Any:
        """What the step looks at, besides question, sample and verdict: a plain JSON value, small if possible."""
        return None

    @abc.abstractmethod
    def keep(self, group: Group) -> Iterable[int]:
        """The indices of the candidates to keep; a pure function. With scope "trace", later ones change nothing."""


class TraceStep(Step):
    """A step whose decision about a trace needs no more than the trace and earlier ones."""

    @property
    def scope(self) -> Scope:
        return "trace"


class QuestionStep(Step):
    """A step that needs all samples of a question."""

    @property
    def scope(self) -> Scope:
        return "question"


class RoundStep(Step):
    """A step that needs all traces of a round."""

    @property
    def scope(self) -> Scope:
        return "round"


@dataclass(frozen=True, config=STRICT)
class Ranking(QuestionStep):
    """Keeps the first traces of each question in an order of what was measured; of equals, the earlier samples.

    Attributes:
      count: how many of each question.
    """

    count: PositiveInt = 1

    def rank(self, values: Sequence[Any]) -> Sequence[Any]:
        """Sort keys, one a trace; the smallest are kept."""
        return values

    def keep(self, group: Group) -> Iterable[int]:
        keys = self.rank(group.values)
        return sorted(range(len(keys)), key=lambda index: keys[index])[: self.count]


class Trim(abc.ABC):
    """A step that shortens the traces that the others kept.

    Attributes:
      name: in a config.
      needs: as those of a Step.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()

    @abc.abstractmethod
    def drop(self, trace: Trace) -> Sequence[Span]:
        """The parts of the completion to drop."""


AnyStep = Step | Trim
