"""Intervals over two levels of chance: which questions were asked, and which seed the training had.

An arm of a sweep has a rate y[s, q] for each seed s of S and each question q of Q; all seeds ask the same questions.
Another draw of either would have given another mean. In a model of independent effects of seed, question and rest,

    y[s, q] = mean + seed[s] + question[q] + rest[s, q]

the variance of the mean over both is var(seed) / S + var(question) / Q + var(rest) / (S Q). It is estimated by

    var_q(mean_s y) / Q  +  var_s(mean_q y) / S  -  var(rest) / (S Q)

and by no less than either of the first two terms, each of which contains the rest once (analysis of variance of crossed
random effects: Searle, Casella and McCulloch, Variance Components, 1992; the first term alone is the standard error
clustered by question: Miller 2024, arXiv 2411.00640, section 2.2). A few seeds say little about their variance, so the
interval has Student's quantile with Satterthwaite's degrees of freedom, V^2 / (Vq^2 / (Q - 1) + Vs^2 / df_s), where V
is the whole variance, Vq and Vs its first two terms, and df_s = S - 1.

Differences between two arms are taken for each seed and question before anything else: what makes a question hard
for both arms cancels (paired differences, Miller 2024, section 4). Their variance between seeds is pooled over all
arms, the interaction of arm and seed with (arms - 1)(S - 1) degrees of freedom: it is the same if seeds matter alike in
all arms. With one seed, intervals are over questions only.

In simulations, 95% intervals held in 94 to 98% of the cases with three to five seeds. With two seeds that differ much,
and no third arm to pool with, they held in 91%.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

CONFIDENCE = 0.95

Rates = Float[np.ndarray, "S Q"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its interval; None if there are too few values for one."""

    mean: float
    interval: tuple[float, float] | None

    @property
    def excludes_zero(self) -> bool:
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


@dataclasses.dataclass(frozen=True)
class _Spread:
    """The variance between means over questions, and its degrees of freedom."""

    variance: float
    freedom: int


def mean_rate(rates: Rates) -> Estimate:
    """An arm's mean rate, with a 95% interval over questions and seeds, within 0 and 1."""
    estimate = _estimate(rates, _between_seeds(rates), CONFIDENCE)
    if estimate.interval is None:
        return estimate
    return Estimate(estimate.mean, (max(0.0, estimate.interval[0]), min(1.0, estimate.interval[1])))


def paired_differences(arms: Sequence[Rates]) -> list[Estimate]:
    """The differences of all other arms to the first one; all intervals together hold with a probability of 95%.

    For m comparisons each interval has the level 1 - 0.05 / m (Bonferroni), so an arm whose interval excludes zero
    differs from the first one even though several were compared.

    Args:
      arms: rates of the same seeds and questions, in the same order.
    """
    level = 1 - (1 - CONFIDENCE) / max(1, len(arms) - 1)
    spread = _between_seeds_of_differences(arms)
    return [_estimate(rates - arms[0], spread, level) for rates in arms[1:]]


def _estimate(values: Rates, spread: _Spread | None, level: float) -> Estimate:
    from scipy.special import stdtrit

    num_seeds, num_questions = values.shape
    mean = float(values.mean())
    if num_questions < 2:
        return Estimate(mean, None)
    of_questions = float(values.mean(axis=0).var(ddof=1)) / num_questions
    variance, inverse_freedom = of_questions, of_questions**2 / (num_questions - 1)
    if spread is not None:
        of_seeds = spread.variance / num_seeds
        variance = max(of_questions, of_seeds, of_questions + of_seeds - _rest(values) / values.size)
        inverse_freedom += of_seeds**2 / spread.freedom
    if variance == 0:
        return Estimate(mean, (mean, mean))
    margin = float(stdtrit(variance**2 / inverse_freedom, (1 + level) / 2)) * math.sqrt(variance)
    return Estimate(mean, (mean - margin, mean + margin))


def _rest(values: Rates) -> float:
    """The variance that neither seed nor question explains."""
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    return float((rest**2).sum()) / ((values.shape[0] - 1) * (values.shape[1] - 1))


def _between_seeds(rates: Rates) -> _Spread | None:
    if len(rates) < 2:
        return None
    return _Spread(float(rates.mean(axis=1).var(ddof=1)), len(rates) - 1)


def _between_seeds_of_differences(arms: Sequence[Rates]) -> _Spread | None:
    """Twice the interaction of arm and seed, as a difference has the seed's effect on two arms."""
    means = np.stack([rates.mean(axis=1) for rates in arms])
    num_arms, num_seeds = means.shape
    if num_seeds < 2 or num_arms < 2:
        return None
    interaction = means - means.mean(axis=0) - means.mean(axis=1, keepdims=True) + means.mean()
    freedom = (num_arms - 1) * (num_seeds - 1)
    return _Spread(2 * float((interaction**2).sum()) / freedom, freedom)
