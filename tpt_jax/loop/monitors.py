"""Signs of collapse: a model trained on its own traces may get better at one answer and lose all others.

Computed from the traces on held-out questions, in every round, and compared with the base model's.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

from tpt_jax.evaluation import Answer, AnyAnswer, PairedChange, group_by_question, paired_change, pass_at_k
from tpt_jax.prune.calculations import equations
from tpt_jax.prune.order import checksum
from tpt_jax.records import JudgedTrace


@dataclasses.dataclass(frozen=True, slots=True)
class WatchedAnswer(Answer):
    """What the monitors look at in a judged trace.

    Attributes:
      num_sampled: tokens, the end of turn included.
      entropy: sum over these, in nats.
      calculations: a checksum of the sequence of equations.
    """

    num_sampled: int
    entropy: float
    calculations: int

    @classmethod
    def of(cls, judged: JudgedTrace) -> Self:
        answer, trace = Answer.of(judged), judged.trace
        shared: dict[str, Any] = {field.name: getattr(answer, field.name) for field in dataclasses.fields(Answer)}
        calculations = checksum("\n".join(equations(trace.completion)))
        return cls(**shared, num_sampled=trace.num_sampled, entropy=trace.entropy, calculations=calculations)


class Tally(NamedTuple):
    """Right samples of a question, and all its samples."""

    num_correct: int
    num_samples: int


Questions = Mapping[str, Sequence[WatchedAnswer]]
Tallies = Mapping[str, Tally]  # of the questions whose verdicts are known, by id


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


def tally(answers: Iterable[Answer]) -> Tallies:
    """What a later round is compared with."""
    return {name: Tally(sum(each.verdict.correct for each in group), len(group)) for name, group in _known(answers)}


def monitor(answers: Sequence[WatchedAnswer], base: Tallies) -> Monitors:
    """Looks at a round's answers to held-out questions.

    Args:
      base: the tally of the base model; empty for round 0 itself.
    """
    questions, now = dict(_known(answers)), tally(answers)
    counted = [each for group in questions.values() for each in group]
    num_tokens = sum(each.num_sampled for each in counted)
    rates, rates_before = _rates(now, _share_right), _rates(base, _share_right)
    shared = rates.keys() & rates_before.keys()
    return Monitors(
        distinct_answers=_mean_distinct(questions, lambda each: each.verdict.extracted),
        distinct_calculations=_mean_distinct(questions, lambda each: each.calculations),
        mean_token_entropy=sum(each.entropy for each in counted) / max(1, num_tokens),
        num_won=sum(rates[name] > rates_before[name] for name in shared),
        num_lost=sum(rates[name] < rates_before[name] for name in shared),
        change=paired_change(rates_before, rates),
        change_at_k=paired_change(_rates(base, _is_any_right), _rates(now, _is_any_right)),
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


def _known(answers: Iterable[AnyAnswer]) -> Iterator[tuple[str, list[AnyAnswer]]]:
    """The questions whose verdicts are known, with their answers."""
    for name, group in group_by_question(answers).items():
        if not any(each.verdict.unknown for each in group):
            yield name, group


def _rates(tallies: Tallies, rate: Callable[[Tally], float]) -> dict[str, float]:
    return {name: rate(each) for name, each in tallies.items()}


def _share_right(tally: Tally) -> float:
    return pass_at_k(tally.num_samples, tally.num_correct, 1)


def _is_any_right(tally: Tally) -> float:
    return float(tally.num_correct > 0)


def _mean_distinct(questions: Questions, look: Callable[[WatchedAnswer], Any]) -> float:
    shares = [len({look(each) for each in group}) / len(group) for group in questions.values()]
    return sum(shares) / max(1, len(shares))
