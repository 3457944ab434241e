"""Steps by how the samples of a question agree, with each other or with the reference answer."""

import collections
from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT
from tpt_jax.prune.order import checksum
from tpt_jax.prune.step import Group, QuestionStep, Share
from tpt_jax.records import Trace, Verdict


@dataclass(frozen=True, config=STRICT)
class Majority(QuestionStep):
    """Keeps the traces with the most frequent final answer of their question: the control without any ground truth.

    Counts the extracted answers of the traces left, so it goes before other steps. Of a tie none is kept: nothing but
    the reference answer could tell which one is right, and a draw would train on a guess. A trace without an answer has
    no vote. Majority votes as labels: Huang et al., Large Language Models Can Self-Improve (arXiv 2210.11610), and
    TTRL (Zuo et al., arXiv 2504.16084).
    """

    name: ClassVar[str] = "majority"

    def measure(self, trace: Trace, verdict: Verdict) -> Any:
        return None if verdict.extracted is None else checksum(verdict.extracted)

    def keep(self, group: Group) -> Iterable[int]:
        votes = collections.Counter(answer for answer in group.values if answer is not None)
        first, second = [*votes.most_common(2), (None, 0), (None, 0)][:2]
        if first[1] == second[1]:
            return []
        return [index for index, answer in enumerate(group.values) if answer == first[0]]


@dataclass(frozen=True, config=STRICT)
class PassRate(QuestionStep):
    """Keeps the traces of questions whose share of right samples is from `low` to `high`.

    All samples of the question count, wherever the step stands: unfinished ones as the checker judged them, but none of
    unknown verdict. {high: 0.75} leaves out what the model can do already; {low: 0.2} what is beyond it.
    DAPO (Yu et al., arXiv 2503.14476) leaves out the questions that are always or never solved.

    Attributes:
      low, high: both included.
    """

    low: Share = 0.0
    high: Share = 1.0

    name: ClassVar[str] = "pass_rate"

    def keep(self, group: Group) -> Iterable[int]:
        known = [each.verdict.correct for each in group.sampled if not each.verdict.unknown]
        is_within = known and self.low <= sum(known) / len(known) <= self.high
        return range(len(group.candidates)) if is_within else ()
