"""Pass@k, Maj@k and their intervals."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self, TypeVar

import numpy as np

from tpt_jax.errors import UserError
from tpt_jax.records import JudgedTrace, Verdict

Z_95 = 1.959964  # two-sided 95% quantile of the normal distribution


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What the figures look at in a judged trace: some 300 bytes, however long the trace is.

    Attributes:
      id: of the question.
      num_tokens: sampled tokens, without the end of turn.
      is_truncated: cut at the length limit.
      has_ended: the model ended it itself; False if it was cut at the length limit or at a stop string.
    """

    id: str
    sample: int
    verdict: Verdict
    num_tokens: int
    is_truncated: bool
    has_ended: bool

    @classmethod
    def of(cls, judged: JudgedTrace) -> Self:
        trace, is_truncated = judged.trace, judged.trace.finish_reason == "length"
        has_ended = not is_truncated and trace.stop_string is None
        return cls(trace.id, trace.sample, judged.verdict, len(trace.token_ids), is_truncated, has_ended)


AnyAnswer = TypeVar("AnyAnswer", bound=Answer)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A model's results on held-out questions; rates are 0 to 1.

    Attributes:
      k: the k of pass_at_k and strict_pass_at_k.
      pass_at: Pass@k for k = 1, 2, 4, ... and the number of samples.
      intervals: 95% intervals over questions, by metric name; those of `pass_at` are "pass_at_2" and so on.
      mean_tokens: sampled tokens per trace, without the end of turn.
      num_truncated: traces cut at the length limit.
      num_ended: traces that the model ended itself; the others were cut at the length limit or at a stop string.
      maj_at_k: majority vote among all samples of a question; None if the checker extracts no answers to vote for.
      num_unknown: questions left out of all figures, because their reference answers cannot be read.
    """

    num_questions: int
    num_samples: int
    k: int
    pass_at_1: float
    pass_at_k: float
    strict_pass_at_1: float
    strict_pass_at_k: float
    pass_at: dict[int, float]
    intervals: dict[str, tuple[float, float]]
    mean_tokens: float
    num_truncated: int
    num_ended: int
    maj_at_k: float | None = None
    num_unknown: int = 0


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The probability that at least one of k samples, drawn from num_samples without replacement, is right.

    Unbiased: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1).
    """
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def maj_at_k(judged: Sequence[JudgedTrace | Answer]) -> float:
    """The probability that the most frequent answer is right, ties broken at random; traces without one do not vote."""
    votes = collections.Counter(each.verdict.extracted for each in judged if each.verdict.extracted is not None)
    right = {each.verdict.extracted for each in judged if each.verdict.correct}
    max_votes = max(votes.values(), default=0)
    leaders = [answer for answer, count in votes.items() if count == max_votes]
    return sum(answer in right for answer in leaders) / len(leaders) if leaders else 0.0


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95% confidence interval for the mean, from its standard error.

    Give one value per question: samples of one question share its difficulty, so a rate over all traces would seem more
    certain than it is (Miller 2024, arXiv 2411.00640, section 2.2). A single value gives the interval from 0 to 1.
    """
    if len(values) < 2:
        return 0.0, 1.0
    mean = float(np.mean(values))
    margin = Z_95 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return max(0.0, mean - margin), min(1.0, mean + margin)


@dataclasses.dataclass(frozen=True)
class PairedChange:
    """The change of a mean over the same questions, and its 95% interval, in the unit of the values."""

    mean: float
    interval: tuple[float, float]


def paired_change(before: Mapping[str, float], after: Mapping[str, float]) -> PairedChange | None:
    """The mean of the questions' own changes, from their values by id.

    Much of an evaluation's uncertainty is its choice of questions. It cancels when both evaluations ask the same ones,
    so the change is known better than two separate intervals suggest (Miller 2024, arXiv 2411.00640, section 4). None
    if the questions differ, or there are fewer than two.
    """
    if len(before) < 2 or before.keys() != after.keys():
        return None
    changes = [after[name] - value for name, value in before.items()]
    mean, margin = statistics.fmean(changes), Z_95 * statistics.stdev(changes) / math.sqrt(len(changes))
    return PairedChange(mean, (mean - margin, mean + margin))


def evaluate_traces(judged: Iterable[JudgedTrace], *, k: int) -> Evaluation:
    """Computes all figures from judged traces, in any order; see `evaluate_answers`."""
    return evaluate_answers(map(Answer.of, judged), k=k)


def evaluate_answers(answers: Iterable[Answer], *, k: int) -> Evaluation:
    """Computes all figures from what they need of the judged traces, in any order.

    Raises:
      UserError: there are no traces, no reference answer can be read, questions differ in their number of samples, or k
        exceeds it.
    """
    by_question = group_by_question(answers)
    if not by_question:
        raise UserError("no traces to evaluate; give at least one")
    questions = [group for group in by_question.values() if not any(each.verdict.unknown for each in group)]
    if not questions:
        raise UserError("no reference answer can be read; name another checker, or fix the questions' answers")
    num_samples = len(questions[0])
    if any(len(group) != num_samples for group in questions):
        raise UserError("questions have unequal numbers of traces; give the same number for each")
    if not 1 <= k <= num_samples:
        raise UserError(f"k ({k}) must be from 1 to {num_samples}, the number of samples per question")

    def rates(is_right: Callable[[Answer], bool], k: int) -> list[float]:
        return [pass_at_k(num_samples, sum(map(is_right, group)), k) for group in questions]

    def correct(answer: Answer) -> bool:
        return answer.verdict.correct

    def strict(answer: Answer) -> bool:
        return answer.verdict.strict

    ks = sorted({num_samples, *(2**power for power in range(num_samples.bit_length()))})
    curve = {f"pass_at_{each}": rates(correct, each) for each in ks}
    by_metric = {
        "pass_at_1": curve["pass_at_1"],
        "pass_at_k": rates(correct, k),
        "strict_pass_at_1": rates(strict, 1),
        "strict_pass_at_k": rates(strict, k),
    }
    counted = [each for group in questions for each in group]
    if not any(each.verdict.correct and each.verdict.extracted is None for each in counted):
        by_metric["maj_at_k"] = [maj_at_k(group) for group in questions]
    return Evaluation(
        num_questions=len(questions),
        num_samples=num_samples,
        k=k,
        **{name: float(np.mean(values)) for name, values in by_metric.items()},
        pass_at={each: float(np.mean(curve[f"pass_at_{each}"])) for each in ks},
        intervals={name: mean_interval(values) for name, values in {**curve, **by_metric}.items()},
        mean_tokens=sum(each.num_tokens for each in counted) / len(counted),
        num_truncated=sum(each.is_truncated for each in counted),
        num_ended=sum(each.has_ended for each in counted),
        num_unknown=len(by_question) - len(questions),
    )


def group_by_question(answers: Iterable[AnyAnswer]) -> dict[str, list[AnyAnswer]]:
    """Answers by question, sorted by id and sample: sums do not depend on the order in which traces were finished."""
    by_question: dict[str, list[AnyAnswer]] = collections.defaultdict(list)
    for each in sorted(answers, key=lambda each: (each.id, each.sample)):
        by_question[each.id].append(each)
    return by_question
