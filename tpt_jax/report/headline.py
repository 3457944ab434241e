"""What a run came to, in a few honest words."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from tpt_jax.report import words
from tpt_jax.report.read import Rate, Round, Run
from tpt_jax.report.traces import HeldOut

Z_95 = statistics.NormalDist().inv_cdf(0.975)


@dataclasses.dataclass(frozen=True)
class Change:
    """How a rate differs between two evaluations; the interval is None where they cannot be compared by question."""

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
    """Of one run: Pass@1 at the start and at the end, None as far as it is not known."""

    first: Round | None
    last: Round | None
    change: Change | None
    sentence: str


def headline(run: Run) -> Headline:
    """Sums up a run."""
    known = [of_round for of_round in run.rounds if "pass_at_1" in of_round.rates]
    if not known:
        return Headline(None, None, None, "No round is finished yet.")
    first, last = known[0], known[-1]
    if first is last:
        return Headline(first, None, None, "There is nothing to compare this with yet.")
    ends = (run.rounds[0], run.rounds[-1])
    before, after = first.rates["pass_at_1"], last.rates["pass_at_1"]
    interval = paired_interval(*run.held_out) if (first, last) == ends and len(run.held_out) == 2 else None
    change = Change(after.value - before.value, interval)
    return Headline(first, last, change, _verdict(before, after, change))


def facts(run: Run) -> list[str]:
    """What the figures are about."""
    numbers = run.rounds[-1].numbers if run.rounds else {}
    known = [run.task, run.model]
    known.append(f"{run.num_done} of {run.num_planned} rounds done" if run.num_planned is not None else "")
    known.append(f"{words.count(numbers['num_questions'])} held-out questions" if "num_questions" in numbers else "")
    known.append(f"{words.count(numbers['num_samples'])} samples of each" if "num_samples" in numbers else "")
    return [fact for fact in known if fact]


def comparison(runs: Sequence[Run]) -> list[str]:
    """A sentence for each further run: how the first one did against it after the last round that both finished."""
    return [sentence for other in runs[1:] if (sentence := _against(runs[0], other))]


def paired_interval(before: HeldOut, after: HeldOut) -> tuple[float, float] | None:
    """A 95% interval for the change of Pass@1, by the differences question by question.

    Much of an evaluation's uncertainty is which questions it asks. Where two ask the same ones that cancels, and their
    difference is known better than two separate intervals make it seem (Miller 2024, arXiv 2411.00640, section 4).
    None where the questions are not the same, or not told.
    """
    if len(before.num_right) < 2 or not _same_questions(before, after):
        return None
    scores = ((held_out.num_right[name] for held_out in (before, after)) for name in before.num_right)
    differences = [after_right / after_all - right / all_ for (right, all_), (after_right, after_all) in scores]
    mean = statistics.fmean(differences)
    margin = Z_95 * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean - margin, mean + margin


def _same_questions(one: HeldOut, other: HeldOut) -> bool:
    """Ids alone do not tell: another seed may give them to other questions."""
    return one.num_right.keys() == other.num_right.keys() == one.questions.keys() and one.questions == other.questions


def _verdict(before: Rate, after: Rate, change: Change) -> str:
    if change.may_be_chance:
        return "This may be chance: the interval of the change includes zero."
    if change.interval is not None:
        word = "better" if change.difference > 0 else "worse"
        return f"The model has become {word}: the interval of the change excludes zero."
    if before.interval is None or after.interval is None:
        return "The intervals are not known."
    apart = before.interval[1] < after.interval[0] or after.interval[1] < before.interval[0]
    return "The two intervals do not overlap." if apart else "This may be chance: the two intervals overlap."


def _against(run: Run, other: Run) -> str | None:
    ours, theirs = (
        {of_round.index: of_round.rates["pass_at_1"].value for of_round in each.rounds if "pass_at_1" in of_round.rates}
        for each in (run, other)
    )
    common = ours.keys() & theirs.keys()
    if not common:
        return None
    last = max(common)
    ends = [held_out for each in (other, run) for held_out in each.held_out[-1:] if held_out.round == last]
    change = Change(ours[last] - theirs[last], paired_interval(*ends) if len(ends) == 2 else None)
    distance = words.points(abs(change.difference)).removeprefix("+")
    side = "above" if change.difference >= 0 else "below"
    text = f"After round {last}, {run.label} is {distance} points {side} {other.label} in Pass@1"
    if change.interval is None:
        return f"{text}."
    text += f" (95% interval {change.interval_in_points}, over the same held-out questions)."
    return f"{text} This may be chance: the interval includes zero." if change.may_be_chance else text
