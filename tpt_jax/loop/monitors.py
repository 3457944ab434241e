"""Signs of collapse: a model trained on its own traces may get better at one answer and lose all others.

Computed from the traces on held-out questions, in every round, and compared with the base model's.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tpt_jax.evaluation import PairedChange, paired_change, pass_at_k
from tpt_jax.prune.calculations import equations
from tpt_jax.records import JudgedTrace

Questions = Mapping[str, Sequence[JudgedTrace]]  # traces by question


@dataclasses.dataclass(frozen=True)
class Monitors:
    """What a round's held-out traces show besides their rates; all about questions with known verdicts.

    Attributes:
      distinct_answers: distinct final answers of a question per sample, averaged over questions: 1 if all samples
        differ. Samples without an answer count as one answer.
      distinct_calculations: as distinct_answers, for the sequence of equations.
      mean_token_entropy: of the next-token distributions at temperature 1, over all sampled tokens, in nats.
      num_won, num_lost: questions of which a larger, or smaller, share of samples is right than with the base model.
      change: of Pass@1 since the base model, paired by question; None in round 0.
      change_at_k: likewise of Pass@k, for k = number of samples.
    """

    distinct_answers: float
    distinct_calculations: float
    mean_token_entropy: float
    num_won: int = 0
    num_lost: int = 0
    change: PairedChange | None = None
    change_at_k: PairedChange | None = None


def monitor(judged: Iterable[JudgedTrace], base: Iterable[JudgedTrace]) -> Monitors:
    """Looks at a round's traces on held-out questions.

    Args:
      base: those of the base model; empty for round 0 itself.
    """
    questions, before = _by_question(judged), _by_question(base)
    traces = [trace for group in questions.values() for trace in group]
    num_tokens = sum(each.trace.num_sampled for each in traces)
    rates, rates_before = _rates(questions, _share_right), _rates(before, _share_right)
    shared = rates.keys() & rates_before.keys()
    return Monitors(
        distinct_answers=_mean_distinct(questions, lambda each: each.verdict.extracted),
        distinct_calculations=_mean_distinct(questions, lambda each: tuple(equations(each.trace.completion))),
        mean_token_entropy=sum(each.trace.entropy for each in traces) / max(1, num_tokens),
        num_won=sum(rates[name] > rates_before[name] for name in shared),
        num_lost=sum(rates[name] < rates_before[name] for name in shared),
        change=paired_change(rates_before, rates),
        change_at_k=paired_change(_rates(before, _is_any_right), _rates(questions, _is_any_right)),
    )


def to_metrics(monitors: Monitors) -> dict[str, Any]:
    """As a round's metrics.json has them: numbers, and intervals under "paired"."""
    changes = {"pass_at_1": monitors.change, "pass_at_k": monitors.change_at_k}
    plain = {name: value for name, value in dataclasses.asdict(monitors).items() if not name.startswith("change")}
    paired = {name: [change.mean, *change.interval] for name, change in changes.items() if change is not None}
    return {**plain, "paired": paired}


def warn_of_collapse(metrics: Mapping[str, Any]) -> str | None:
    """A sentence if Pass@k has fallen since the base model while Pass@1 has risen; None otherwise."""
    paired = metrics["paired"]
    if "pass_at_k" not in paired or metrics["num_samples"] == 1:
        return None
    (rise, *_), (fall, low, high) = paired["pass_at_1"], paired["pass_at_k"]
    if rise <= 0 or fall >= 0:
        return None
    k, sure = metrics["num_samples"], "" if high < 0 else ", which may be chance"
    return (
        f"round {metrics['round']}: Pass@1 has risen by {100 * rise:.1f} points since the base model, but Pass@{k} has "
        f"fallen by {-100 * fall:.1f} (95% interval of the change: {100 * low:+.1f} to {100 * high:+.1f}{sure}): the "
        "model repeats itself more. Fewer training steps, more questions, or steps of prune.steps that keep different "
        "solutions (unique_calculations, diverse) may slow this down"
    )


def _by_question(judged: Iterable[JudgedTrace]) -> Questions:
    questions: dict[str, list[JudgedTrace]] = collections.defaultdict(list)
    for each in judged:
        questions[each.trace.id].append(each)
    return {name: group for name, group in questions.items() if not any(each.verdict.unknown for each in group)}


def _rates(questions: Questions, rate: Callable[[Sequence[JudgedTrace]], float]) -> dict[str, float]:
    return {name: rate(group) for name, group in questions.items()}


def _share_right(group: Sequence[JudgedTrace]) -> float:
    return pass_at_k(len(group), sum(each.verdict.correct for each in group), 1)


def _is_any_right(group: Sequence[JudgedTrace]) -> float:
    return float(any(each.verdict.correct for each in group))


def _mean_distinct(questions: Questions, look: Callable[[JudgedTrace], Any]) -> float:
    shares = [len({look(each) for each in group}) / len(group) for group in questions.values()]
    return sum(shares) / max(1, len(shares))
