"""Sums up a run in numbers and a sentence that claims no more than the intervals allow."""

import dataclasses
from collections.abc import Sequence

from tpt_jax.evaluation import paired_change
from tpt_jax.report import words
from tpt_jax.report.read import Rate, RoundResult, Run
from tpt_jax.report.traces import HeldOut, Tally


@dataclasses.dataclass(frozen=True)
class Change:
    """The difference of a rate between two evaluations; no interval unless both asked the same questions."""

    difference: float
    interval: tuple[float, float] | None

    @property
    def in_points(self) -> str:
        return words.points(self.difference)

    @property
    def interval_in_points(self) -> str:
        return " to ".join(map(words.points, self.interval)) if self.interval else ""

    @property
    def may_be_chance(self) -> bool:
        return self.interval is not None and self.interval[0] <= 0 <= self.interval[1]


@dataclasses.dataclass(frozen=True)
class Headline:
    """The first and the last round with a known Pass@1, and the change between them; None if unknown.

    Attributes:
      warning: a sentence if Pass@k has fallen while Pass@1 has risen; else "".
    """

    first: RoundResult | None
    last: RoundResult | None
    change: Change | None
    sentence: str
    warning: str = ""


def headline(run: Run) -> Headline:
    """Sums up a run."""
    evaluated = [result for result in run.rounds if "pass_at_1" in result.rates]
    if not evaluated:
        return Headline(None, None, None, "No round has finished yet.")
    first, last = evaluated[0], evaluated[-1]
    if first is last:
        return Headline(first, None, None, "No other round to compare with yet.")
    before, after = first.rates["pass_at_1"], last.rates["pass_at_1"]
    same_rounds = [held_out.round for held_out in run.held_out] == [first.index, last.index]
    change = Change(after.value - before.value, paired_interval(*run.held_out) if same_rounds else None)
    return Headline(first, last, change, _conclusion(before, after, change), _collapse(run, last))


def _collapse(run: Run, last: RoundResult) -> str:
    rise, fall = last.change, last.change_at_k
    if rise is None or fall is None or rise.value <= 0 or fall.value >= 0:
        return ""
    low, high = map(words.points, fall.interval or (0.0, 0.0))
    chance = "; it may be chance" if fall.interval and fall.interval[1] >= 0 else ""
    return (
        f"Pass@{run.k} has fallen by {words.points(-fall.value).removeprefix('+')} points since the base model while "
        f"Pass@1 has risen (95% interval of the change, paired by question: {low} to {high}{chance}): the model "
        "repeats itself more, and more samples help it less."
    )


def facts(run: Run) -> list[str]:
    """What was run and evaluated, as short phrases."""
    numbers = run.rounds[-1].numbers if run.rounds else {}
    phrases = [
        run.task and f"task {run.task}",
        run.model and f"model {run.model}",
        f"{run.num_done} of {run.num_planned} rounds finished" if run.num_planned is not None else "",
        f"{words.count(numbers['num_questions'])} held-out questions" if "num_questions" in numbers else "",
        f"{words.count(numbers['num_samples'])} samples each" if "num_samples" in numbers else "",
        f"traces to train on sampled with int8 {' and '.join(run.int8_parts)}" if run.int8_parts else "",
    ]
    return [phrase for phrase in phrases if phrase]


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run is doing: a sentence, and the share of the stage that is done if it is known."""

    sentence: str
    share: float | None = None


def progress(run: Run) -> Progress:
    """What a run that goes on is doing now, by the last line of its curves."""
    at = run.curves.position
    if at is None:
        return Progress("The run goes on.")
    numbers = at.numbers
    rate = f", {words.number(numbers['tokens_per_second'])} tokens/s" if "tokens_per_second" in numbers else ""
    if at.phase == "train":
        loss = f", loss {numbers['loss']:.4g}" if "loss" in numbers else ""
        return Progress(f"Round {at.round} trains: {words.count(at.step + 1)} steps{loss}{rate}.")
    done, expected = numbers.get("traces", 0.0), max(1.0, numbers.get("expected_traces", 1.0))
    busy = f", {words.percent(numbers['slots_busy'])} of slots busy" if "slots_busy" in numbers else ""
    verb = "thinks" if at.phase == "think" else "is evaluated"
    sentence = f"Round {at.round} {verb}: {words.count(done)} of {words.count(expected)} traces{rate}{busy}."
    return Progress(sentence, min(1.0, done / expected))


def comparison(runs: Sequence[Run]) -> list[str]:
    """A sentence for each further run: the first run against it, after the last round that both finished."""
    return [sentence for other in runs[1:] if (sentence := _compare(runs[0], other))]


def paired_interval(before: HeldOut, after: HeldOut) -> tuple[float, float] | None:
    """A 95% interval for the change of Pass@1 on the same questions; None if they differ or are unknown."""
    if not _same_questions(before, after):
        return None
    rates = [{name: _rate(tally) for name, tally in each.tallies.items()} for each in (before, after)]
    change = paired_change(*rates)
    return None if change is None else change.interval


def _rate(tally: Tally) -> float:
    return tally.num_correct / tally.num_samples


def _same_questions(one: HeldOut, other: HeldOut) -> bool:
    """Compares the texts too: with another seed the same ids may name other questions."""
    return one.tallies.keys() == other.tallies.keys() == one.questions.keys() and one.questions == other.questions


def _conclusion(before: Rate, after: Rate, change: Change) -> str:
    if change.may_be_chance:
        return "The change may be due to chance: its 95% interval includes zero."
    if change.interval is not None:
        verb = "improved" if change.difference > 0 else "got worse"
        return f"The model {verb}: the 95% interval of the change excludes zero."
    if before.interval is None or after.interval is None:
        return "Without intervals, this change cannot be told from chance."
    if before.interval[1] < after.interval[0] or after.interval[1] < before.interval[0]:
        return "The two 95% intervals do not overlap."
    return "The change may be due to chance: the two 95% intervals overlap."


def _compare(run: Run, other: Run) -> str | None:
    rates, other_rates = (
        {result.index: result.rates["pass_at_1"].value for result in each.rounds if "pass_at_1" in result.rates}
        for each in (run, other)
    )
    common = rates.keys() & other_rates.keys()
    if not common:
        return None
    last = max(common)
    ends = [held_out for each in (other, run) for held_out in each.held_out[-1:] if held_out.round == last]
    change = Change(rates[last] - other_rates[last], paired_interval(*ends) if len(ends) == 2 else None)
    distance = words.points(abs(change.difference)).removeprefix("+")
    side = "above" if change.difference >= 0 else "below"
    place = f"After round {last}" if last else "In round 0"
    text = f"{place}, Pass@1 of {run.label} is {distance} points {side} that of {other.label}"
    if change.interval is None:
        return f"{text}."
    text += f" (95% interval of the difference: {change.interval_in_points}, paired by question)."
    return f"{text} The difference may be due to chance: the interval includes zero." if change.may_be_chance else text
