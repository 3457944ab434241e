"""A pipeline of steps decides which judged traces are trained on.

It is a pure function of the traces, its options and its seed, whatever their order. Traces are taken in the order of
(question_order, sample): max_per_question keeps a question's first samples, max_traces the first questions. So a
sampler that asks in this order may stop as soon as it has enough, and ends with the same training set.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

from tpt_jax.prune.candidate import Candidate
from tpt_jax.prune.order import question_order
from tpt_jax.prune.step import SCOPES, AnyStep, Group, Scope, Step, Trim
from tpt_jax.records import Trace, Verdict

UNFINISHED, HELD_OUT, UNKNOWN = "unfinished", "held out", "unknown"  # the guards, before all steps
OVER_MAX_PER_QUESTION, OVER_MAX_TRACES = "over max_per_question", "over max_traces"


class Options(Protocol):
    """The part of a config that a pipeline is made from."""

    @property
    def steps(self) -> tuple[AnyStep, ...]: ...
    @property
    def max_per_question(self) -> int | None: ...
    @property
    def max_traces(self) -> int | None: ...


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a pipeline keeps.

    Attributes:
      kept: the indices of the kept candidates, ordered by question id and sample.
      num_dropped: the number of the others by what dropped them: the guards, each step, the limits, in this order.
    """

    kept: list[int]
    num_dropped: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Steps in order, and the limits after them.

    Three guards come before all steps. Unfinished traces are never kept: they have no end of turn, and would teach the
    model not to stop. Nor are traces of questions that are held out for evaluation, nor those whose verdict is unknown.

    Attributes:
      steps: those that select, then those that trim.
      max_per_question, max_traces: most traces kept per question and in all; None for no limit. The paper keeps one
        trace per question and 2,000 per round (arXiv 2504.18116, section 4).
      seed: of the questions' order and of random steps.
    """

    steps: tuple[AnyStep, ...]
    max_per_question: int | None = None
    max_traces: int | None = None
    seed: int = 0

    @classmethod
    def from_config(cls, config: Options, seed: int) -> Self:
        return cls(config.steps, config.max_per_question, config.max_traces, seed)

    @functools.cached_property
    def selecting(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if isinstance(step, Step))

    @functools.cached_property
    def trims(self) -> tuple[Trim, ...]:
        return tuple(step for step in self.steps if isinstance(step, Trim))

    @property
    def scope(self) -> Scope:
        """The widest scope of its steps."""
        return SCOPES[max((SCOPES.index(step.scope) for step in self.selecting), default=0)]

    @property
    def needs(self) -> frozenset[str]:
        """The fields of a Trace that the steps read and that a stored trace may lack."""
        return frozenset[str]().union(*(step.needs for step in self.steps))

    def require(self) -> None:
        """Makes sure that all steps can be used, before traces are sampled or judged.

        Raises:
          UserError: one of them cannot.
        """
        for step in self.selecting:
            step.require()

    def candidate(self, trace: Trace, verdict: Verdict) -> Candidate:
        """All that the pipeline looks at in a trace, measured while its text is at hand."""
        return Candidate.of(trace, verdict, tuple(step.measure(trace, verdict) for step in self.selecting))

    def candidate_in_question(self, trace: Trace, verdict: Verdict) -> Candidate:
        """As `candidate`, but without what only steps of scope "round" look at: enough for `keep_of_question`."""
        values = (None if step.scope == "round" else step.measure(trace, verdict) for step in self.selecting)
        return Candidate.of(trace, verdict, tuple(values))

    def keep_of_question(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """What the guards, the steps of scope "trace" and "question", and max_per_question keep, by sample.

        If the pipeline's scope is "trace", the candidates of later samples never change what is kept of earlier ones.

        Args:
          candidates: of one question, in any order.
        """
        sampled = sorted(candidates, key=lambda each: each.sample)
        left = [each for each in sampled if _guard(each) is None]
        for position, step in enumerate(self.selecting):
            if step.scope != "round":
                left = self._keep(position, left, sampled)
        return left[: self.max_per_question]

    def choose(
        self, candidates: Sequence[Candidate], is_held_out: Callable[[str], bool] = lambda name: False
    ) -> Choice:
        """Chooses among all candidates of a round, in any order.

        Args:
          is_held_out: whether the question with this id is held out for evaluation; asked once a question.
        """
        num_dropped: dict[str, int] = {UNFINISHED: 0, HELD_OUT: 0, UNKNOWN: 0}
        sampled = self._by_question(candidates)
        left: dict[str, list[Candidate]] = {}
        for name, traces in sampled.items():
            is_tested = is_held_out(name)
            left[name] = []
            for each in traces:
                reason = _guard(each) if each.finish_reason != "stop" or not is_tested else HELD_OUT
                if reason is None:
                    left[name].append(each)
                else:
                    num_dropped[reason] += 1
        for position, (label, step) in enumerate(zip(self._labels(), self.selecting, strict=True)):
            before = _count(left)
            left = self._keep_everywhere(position, step, left, sampled)
            num_dropped[label] = before - _count(left)
        before = _count(left)
        kept = [each for traces in left.values() for each in traces[: self.max_per_question]]
        num_dropped[OVER_MAX_PER_QUESTION] = before - len(kept)
        num_dropped[OVER_MAX_TRACES] = len(kept) - len(kept[: self.max_traces])
        chosen = {id(each) for each in kept[: self.max_traces]}  # smaller than their names
        indices = [index for index, each in enumerate(candidates) if id(each) in chosen]
        indices.sort(key=lambda index: (candidates[index].id, candidates[index].sample))
        return Choice(indices, num_dropped)

    def _by_question(self, candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
        """The candidates by question, in the pipeline's order."""
        found: dict[str, list[Candidate]] = {}
        for each in candidates:
            found.setdefault(each.id, []).append(each)
        return {name: sorted(found[name], key=lambda each: each.sample) for name in question_order(found, self.seed)}

    def _keep_everywhere(
        self, position: int, step: Step, left: Mapping[str, list[Candidate]], sampled: Mapping[str, list[Candidate]]
    ) -> dict[str, list[Candidate]]:
        """What a step keeps of each question, or of the round."""
        if step.scope != "round":
            return {name: self._keep(position, traces, sampled[name]) for name, traces in left.items() if traces}
        everything = list(itertools.chain.from_iterable(left.values()))
        kept = self._keep(position, everything, list(itertools.chain.from_iterable(sampled.values())))
        by_question: dict[str, list[Candidate]] = {}
        for each in kept:
            by_question.setdefault(each.id, []).append(each)
        return by_question

    def _keep(self, position: int, left: Sequence[Candidate], sampled: Sequence[Candidate]) -> list[Candidate]:
        group = Group(left, [each.values[position] for each in left], sampled, self.seed)
        return [left[index] for index in sorted({*self.selecting[position].keep(group)})]

    def _labels(self) -> list[str]:
        """The steps' names; a second step of a name is "name (2)"."""
        names = [step.name for step in self.selecting]
        counts = [names[: position + 1].count(name) for position, name in enumerate(names)]
        return [name if count == 1 else f"{name} ({count})" for name, count in zip(names, counts, strict=True)]


def _guard(candidate: Candidate) -> str | None:
    """Why a trace is never trained on; None if it may be."""
    if candidate.finish_reason != "stop":
        return UNFINISHED
    return UNKNOWN if candidate.verdict.unknown else None


def _count(traces: Mapping[str, Sequence[Any]]) -> int:
    return sum(map(len, traces.values()))
