"""Reads what the table and the page of a sweep show, finished or not."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tpt_jax.io.paths import modified_at
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.loop.sweep_plan import Arm, SweepFolder, SweepPlan
from tpt_jax.report.traces import read_held_out
from tpt_jax.report.two_level import Estimate, Rates, mean_rate, paired_differences
from tpt_jax.report.words import plain

Asked = tuple[str, str]  # id and text: with other settings the same id may be another question


@dataclasses.dataclass(frozen=True)
class RoundFigures:
    """A finished round of one run.

    Attributes:
      rates: each held-out question's share of correct samples.
      seconds, seconds_saved: of its own stages, and of those taken over from other runs, where they were computed.
      tokens: sampled for training.
    """

    pass_at_k: float | None
    k: int | None
    rates: Mapping[Asked, float]
    num_kept: int
    tokens: int
    seconds: float
    seconds_saved: float


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """An arm's finished rounds, over its seeds.

    Attributes:
      runs: the figures of each seed's rounds, from round 0.
      reports: each seed's report, relative to the sweep's folder; only those that are written.
      done: the seeds whose rounds are all finished.
      failures: why runs failed, by seed.
      curve: Pass@1 of each round that all seeds have finished, over seeds and questions.
      final: Pass@1 after each run's last round, or after the last one that all have finished if some are not done.
      difference: to the first arm after the last round, over seeds and questions; None for the first one, and where the
        two cannot be paired.
    """

    name: str
    folder: str
    settings: Mapping[str, object]
    runs: Mapping[int, Sequence[RoundFigures]]
    reports: Mapping[int, str]
    seeds: Sequence[int]
    done: frozenset[int]
    failures: Mapping[int, str]
    curve: Sequence[Estimate]
    final: Estimate | None
    difference: Estimate | None = None

    @property
    def is_done(self) -> bool:
        """Whether all rounds of all seeds are finished."""
        return self.done.issuperset(self.seeds)

    @property
    def best_round(self) -> int | None:
        """The first round with the highest Pass@1."""
        means = [estimate.mean for estimate in self.curve]
        return means.index(max(means)) if means else None

    @property
    def pass_at_k(self) -> float | None:
        """Pass@k after the same rounds as `final`, over the seeds."""
        last = _last(self.runs.values(), self.is_done)
        known = [figures.pass_at_k for figures in last if figures.pass_at_k is not None]
        return float(np.mean(known)) if last and len(known) == len(last) else None

    @property
    def k(self) -> int | None:
        last = _last(self.runs.values(), self.is_done)
        return last[0].k if last else None

    def mean_sum(self, name: str) -> float | None:
        """A figure of the rounds, summed over each run's rounds, then averaged over the seeds."""
        sums = [sum(getattr(figures, name) for figures in rounds) for rounds in self.runs.values() if rounds]
        return float(np.mean(sums)) if sums else None

    def total(self, name: str) -> float:
        """A figure of the rounds, summed over all runs."""
        return sum(getattr(figures, name) for rounds in self.runs.values() for figures in rounds)


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """A sweep's results so far."""

    name: str
    arms: tuple[ArmResult, ...]

    @property
    def num_seeds(self) -> int:
        return len(self.arms[0].seeds)

    @property
    def num_questions(self) -> int | None:
        """Held-out questions; None if no round is finished, or the arms differ."""
        numbers = {len(rounds[0].rates) for arm in self.arms for rounds in arm.runs.values() if rounds}
        return numbers.pop() if len(numbers) == 1 else None

    @property
    def num_comparisons(self) -> int:
        return sum(arm.difference is not None for arm in self.arms)


def read_sweep(
    folder: SweepFolder, plan: SweepPlan, failures: Mapping[tuple[str, int], str] | None = None
) -> SweepResult:
    """Reads all finished rounds of a sweep.

    Args:
      failures: why runs failed, by arm and seed.
    """
    arms = [_read_arm(folder, plan, arm, failures or {}) for arm in plan.arms]
    return SweepResult(plan.name, tuple(_with_differences(arms)))


def _read_arm(folder: SweepFolder, plan: SweepPlan, arm: Arm, failures: Mapping[tuple[str, int], str]) -> ArmResult:
    runs: dict[int, Sequence[RoundFigures]] = {}
    reports: dict[int, str] = {}
    done: set[int] = set()
    for seed in plan.seeds:
        run = RunFolder(folder.run(arm, seed))
        finished = [index for index in run.round_indices() if run.is_done(index, "round")]
        runs[seed] = [_read_round(run, index) for index in finished if index <= arm.config.num_rounds]
        if run.is_finished(arm.config):
            done.add(seed)
        if run.report.is_file():
            reports[seed] = f"arms/{arm.folder}/seed-{seed}/{run.report.name}"
    return ArmResult(
        plain(arm.name),
        arm.folder,
        arm.settings,
        runs,
        reports,
        plan.seeds,
        frozenset(done),
        {seed: failures[arm.name, seed] for seed in plan.seeds if (arm.name, seed) in failures},
        _curve(list(runs.values())),
        mean_rate(rates) if (rates := _rates(_last(runs.values(), done.issuperset(plan.seeds)))) is not None else None,
    )


def _curve(runs: Sequence[Sequence[RoundFigures]]) -> list[Estimate]:
    """Pass@1 of each round that all runs have finished and asked the same questions in."""
    matrices = (_rates([rounds[index] for rounds in runs]) for index in range(min(map(len, runs))))
    return [mean_rate(matrix) for matrix in matrices if matrix is not None]


def _last(runs: Iterable[Sequence[RoundFigures]], is_done: bool) -> list[RoundFigures]:
    """Each run's last round if all are done, else the last one that all have finished; empty if there is none.

    Not the best one: chosen by the same questions, it would look better than it is.
    """
    rounds = list(runs)
    shortest = min(map(len, rounds))
    return [each[-1 if is_done else shortest - 1] for each in rounds] if shortest else []


def _rates(figures: Sequence[RoundFigures]) -> Rates | None:
    """The rates of the same questions, in the same order; None if the runs asked different ones."""
    asked = sorted(figures[0].rates) if figures else []
    if not asked or any(each.rates.keys() != figures[0].rates.keys() for each in figures):
        return None
    return np.array([[each.rates[question] for question in asked] for each in figures])


def _with_differences(arms: Sequence[ArmResult]) -> list[ArmResult]:
    """The arms with their differences to the first one, where all runs of both are finished and asked the same."""
    first, *others = arms
    if not first.is_done:
        return [*arms]
    rates = {arm.folder: _rates([rounds[-1] for rounds in arm.runs.values()]) for arm in arms if arm.is_done}
    asked = _asked(first)
    paired = [arm.folder for arm in others if rates.get(arm.folder) is not None and _asked(arm) == asked]
    matrices = [matrix for name in (first.folder, *paired) if (matrix := rates[name]) is not None]
    if len(matrices) < 2 or rates[first.folder] is None:
        return [*arms]
    differences = dict(zip(paired, paired_differences(matrices), strict=True))
    return [dataclasses.replace(arm, difference=differences.get(arm.folder)) for arm in arms]


def _asked(arm: ArmResult) -> set[Asked]:
    return {*arm.runs[arm.seeds[0]][-1].rates}


def _read_round(run: RunFolder, index: int) -> RoundFigures:
    metrics = run.metrics(index) or {}
    taken = {stage: noted for stage, noted in run.stage_keys(index).items() if noted.taken_from is not None}
    seconds = {stage: value for stage, value in metrics.get("seconds", {}).items() if stage not in taken}
    return RoundFigures(
        pass_at_k=metrics.get("pass_at_k"),
        k=metrics.get("k"),
        rates=_held_out_rates(run, index, modified_at(run.round_path(index) / "metrics.json")),
        num_kept=metrics.get("num_kept", 0),
        tokens=metrics.get("tokens", {}).get("think", 0),
        seconds=sum(seconds.values()),
        seconds_saved=sum(noted.seconds_saved for noted in taken.values()),
    )


@functools.cache
def _held_out_rates(run: RunFolder, index: int, written_at: float) -> Mapping[Asked, float]:
    """Kept in memory: a sweep reads its results after every arm, and a finished round does not change."""
    held_out = read_held_out(run, index)
    return {
        (name, held_out.questions[name].question): tally.num_correct / tally.num_samples
        for name, tally in held_out.tallies.items()
        if name in held_out.questions
    }
