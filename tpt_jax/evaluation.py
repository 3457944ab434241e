"""Pass@k, Maj@k and their intervals."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tpt_jax.errors import UserError
from tpt_jax.records import JudgedTrace

Z_95 = 1.959964  # of the normal distribution, two-sided


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a model does on held-out questions; rates are 0 to 1.

    Attributes:
      k: of pass_at_k and strict_pass_at_k.
      maj_at_k: of a vote among all samples of a question; None where the checker names no answers to vote for.
      intervals: 95% intervals over questions, by metric name.
      mean_tokens: sampled tokens a trace, end of turn not counted.
      num_truncated: traces cut at the length limit.
      num_unknown: questions left out of all figures, for their reference answers cannot be read.
    """

    num_questions: int
    num_samples: int
    k: int
    pass_at_1: float
    pass_at_k: float
    strict_pass_at_1: float
    strict_pass_at_k: float
    intervals: dict[str, tuple[float, float]]
    mean_tokens: float
    num_truncated: int
    maj_at_k: float | None = None
    num_unknown: int = 0


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The chance that at least one of k samples, drawn from num_samples without replacement, is right.

    Unbiased: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1).
    """
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def maj_at_k(traces: Sequence[JudgedTrace]) -> float:
    """The chance that the answer with most votes is right, ties broken at random; no answer is no vote."""
    votes = collections.Counter(judged.verdict.extracted for judged in traces if judged.verdict.extracted is not None)
    right = {judged.verdict.extracted for judged in traces if judged.verdict.correct}
    most = max(votes.values(), default=0)
    leaders = [answer for answer, count in votes.items() if count == most]
    return sum(answer in right for answer in leaders) / len(leaders) if leaders else 0.0


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95% interval for the mean, by its standard error.

    Questions are the independent unit: samples of one question share its difficulty, so a rate over all traces would
    seem more certain than it is (Miller 2024, arXiv 2411.00640, section 2.2). A single value gives the widest interval.
    """
    if len(values) < 2:
        return 0.0, 1.0
    mean = float(np.mean(values))
    margin = Z_95 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return max(0.0, mean - margin), min(1.0, mean + margin)


def evaluate(judged: Iterable[JudgedTrace], *, k: int) -> Evaluation:
    """The figures of a set of judged traces.

    Raises:
      UserError: there are none, questions differ in their number of samples, or k is larger than that.
    """
    by_question: dict[str, list[JudgedTrace]] = collections.defaultdict(list)
    for trace in judged:
        by_question[trace.trace.id].append(trace)
    if not by_question:
        raise UserError("there are no traces to evaluate; give at least one")
    questions = [traces for traces in by_question.values() if not any(trace.verdict.unknown for trace in traces)]
    if not questions:
        raise UserError("not one reference answer can be read; name another checker, or mend the questions' answers")
    num_samples = len(questions[0])
    if any(len(traces) != num_samples for traces in questions):
        raise UserError("questions have unequal numbers of traces; give as many of each")
    if not 1 <= k <= num_samples:
        raise UserError(f"k ({k}) must be from 1 to the {num_samples} samples of a question")

    def passes(is_right: Callable[[JudgedTrace], bool], draws: int) -> list[float]:
        return [pass_at_k(num_samples, sum(map(is_right, traces)), draws) for traces in questions]

    def correct(trace: JudgedTrace) -> bool:
        return trace.verdict.correct

    def strict(trace: JudgedTrace) -> bool:
        return trace.verdict.strict

    values = {
        "pass_at_1": passes(correct, 1),
        "pass_at_k": passes(correct, k),
        "strict_pass_at_1": passes(strict, 1),
        "strict_pass_at_k": passes(strict, k),
    }
    of_questions = [trace for traces in questions for trace in traces]
    if not any(trace.verdict.correct and trace.verdict.extracted is None for trace in of_questions):
        values["maj_at_k"] = [maj_at_k(traces) for traces in questions]
    traces = [trace.trace for trace in of_questions]
    return Evaluation(
        num_questions=len(questions),
        num_samples=num_samples,
        k=k,
        **{name: float(np.mean(of_each)) for name, of_each in values.items()},
        intervals={name: mean_interval(of_each) for name, of_each in values.items()},
        mean_tokens=sum(len(trace.token_ids) for trace in traces) / len(traces),
        num_truncated=sum(trace.finish_reason == "length" for trace in traces),
        num_unknown=len(by_question) - len(questions),
    )
