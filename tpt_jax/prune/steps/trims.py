"""Steps that trim a trace: they drop parts of its completion."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import pydantic
from pydantic.dataclasses import dataclass

from tpt_jax.checks.answers.ending import answer_span
from tpt_jax.errors import STRICT
from tpt_jax.prune.reasoning_steps import reasoning_steps, tokens_of
from tpt_jax.prune.step import Span, Trim
from tpt_jax.records import Trace


@dataclass(frozen=True, config=STRICT)
class TrimAfterAnswer(Trim):
    """Drops the text after the final answer: repetitions, checks, invented questions.

    A trace that announces no answer, as a program does, stays whole. Chen et al. (arXiv 2412.21187) train on traces
    that end with their first right solution; here nothing before the last answer is dropped.
    """

    name: ClassVar[str] = "trim_after_answer"

    def drop(self, trace: Trace) -> Sequence[Span]:
        span = answer_span(trace.completion)
        return [] if span is None else [(span[1], len(trace.completion))]


@dataclass(frozen=True, config=STRICT)
class TrimSteps(Trim):
    """Drops whole reasoning steps, those of lowest entropy first, as long as a share of the tokens is left.

    A step's entropy is the sum of its tokens' entropies (Li et al., Compressing Chain-of-Thought in LLMs via Step
    Entropy, arXiv 2508.03346; they put a token in place of a dropped step, we put nothing). Steps that hold the final
    answer are never dropped; if none is announced, the last step is not.

    Attributes:
      share: of the tokens of the whole completion; at least so many stay.
    """

    share: Annotated[float, pydantic.Field(gt=0, lt=1)]

    name: ClassVar[str] = "trim_steps"
    needs: ClassVar[frozenset[str]] = frozenset({"token_entropies", "token_ends"})

    def drop(self, trace: Trace) -> Sequence[Span]:
        steps = reasoning_steps(trace.completion)
        answer = answer_span(trace.completion)
        start, end = answer if answer is not None else steps[-1] if steps else (0, 0)
        tokens = {step: tokens_of(step, trace.token_ends) for step in steps}
        droppable = [step for step in steps if step[1] <= start or step[0] >= end]
        droppable.sort(key=lambda step: sum(trace.token_entropies[index] for index in tokens[step]))
        num_left, dropped = len(trace.token_ends), []
        for step in droppable:
            num_left -= len(tokens[step])
            if num_left < self.share * len(trace.token_ends):
                break
            dropped.append(step)
        return dropped
