"""Steps by length: short solutions of a question, or those of usual length."""

import statistics
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT
from tpt_jax.prune.reasoning_steps import reasoning_steps
from tpt_jax.prune.step import Ranking
from tpt_jax.records import Trace, Verdict


def length(trace: Trace) -> int:
    """In tokens; in characters if only the text is known."""
    return len(trace.token_ids) or len(trace.completion)


@dataclass(frozen=True, config=STRICT)
class Shortest(Ranking):
    """Keeps the shortest traces of each question, in tokens, or in characters if only their text is known.

    As in Munkhbat et al., Self-Training Elicits Concise Reasoning (arXiv 2502.20122): best of n by length.
    """

    name: ClassVar[str] = "shortest"

    def measure(self, trace: Trace, verdict: Verdict) -> Any:
        return length(trace)


@dataclass(frozen=True, config=STRICT)
class MedianLength(Ranking):
    """Keeps the traces of each question nearest to the median length of those left; of two as near, the shorter.

    A control for `shortest`: it selects by length too, but makes traces no shorter.
    """

    name: ClassVar[str] = "median_length"

    def measure(self, trace: Trace, verdict: Verdict) -> Any:
        return length(trace)

    def rank(self, values: Sequence[Any]) -> Sequence[Any]:
        middle = statistics.median(values) if values else 0
        return [(abs(value - middle), value) for value in values]


@dataclass(frozen=True, config=STRICT)
class FewestSteps(Ranking):
    """Keeps the traces of each question with the fewest reasoning steps; of equals, the earlier sample.

    Step Pruner (Wu et al., arXiv 2510.03805) rewards few steps, and counts paragraphs; see reasoning_steps.py.
    """

    name: ClassVar[str] = "fewest_steps"

    def measure(self, trace: Trace, verdict: Verdict) -> Any:
        return len(reasoning_steps(trace.completion))
