"""What a sweep is said to have found: intervals that hold, sentences that claim no more, a page that stays a page."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from processes import CommandHere
from scipy import stats
from test_report import Page, add_round

from tpt_jax.config_parsing import read_tree
from tpt_jax.io.paths import to_path
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.loop.sweep_plan import SweepFolder, SweepPlan, make_plan
from tpt_jax.report.sweep_page import write_sweep_report
from tpt_jax.report.sweep_read import SweepResult
from tpt_jax.report.sweep_words import findings
from tpt_jax.report.two_level import mean_rate, paired_differences

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


# Intervals.


@pytest.mark.parametrize(
    ("num_arms", "num_seeds", "seed_spread"), [(2, 1, 0.0), (2, 3, 0.01), (4, 3, 0.03), (8, 3, 0.01), (3, 5, 0.02)]
)
def test_intervals_hold_as_often_as_they_say(num_arms: int, num_seeds: int, seed_spread: float) -> None:
    """Of equal arms: 95% of the means' intervals hold the mean, and in 95% of the sweeps all differences hold zero."""
    draw, num_draws, num_questions = np.random.default_rng(0).standard_normal, 500, 150
    holds = hold_together = 0
    for _ in range(num_draws):
        of_questions = 0.3 * draw((1, 1, num_questions)) + 0.1 * draw((num_arms, 1, num_questions))
        of_seeds = seed_spread * draw((num_arms, num_seeds, 1)) + 0.01 * draw((1, num_seeds, 1)) * (num_seeds > 1)
        rates = 0.5 + of_questions + of_seeds + 0.2 * draw((num_arms, num_seeds, num_questions))
        low, high = mean_rate(rates[0]).interval or (0, 1)
        holds += low <= 0.5 <= high
        hold_together += not any(each.excludes_zero for each in paired_differences(list(rates)))
    assert 0.93 <= holds / num_draws <= 0.985
    assert 0.93 <= hold_together / num_draws <= 0.985


def test_one_seed_gives_the_paired_t_interval() -> None:
    rates = np.random.default_rng(0).random((2, 1, 40))
    (difference,) = paired_differences(list(rates))
    expected = stats.ttest_1samp(rates[1, 0] - rates[0, 0], 0.0).confidence_interval(0.95)
    assert difference.interval == pytest.approx((expected.low, expected.high))


def test_seeds_alone_give_the_t_interval_over_seeds() -> None:
    """If all questions differ alike, only the seeds are left to chance."""
    of_seeds = np.array([0.2, 0.5, 0.3])
    rates = np.broadcast_to(of_seeds[:, None], (3, 50))
    expected = stats.t.interval(0.95, 2, of_seeds.mean(), stats.sem(of_seeds))
    assert mean_rate(rates).interval == pytest.approx((max(0, expected[0]), expected[1]))
    (difference,) = paired_differences([np.zeros((3, 50)), rates])
    assert difference.interval == pytest.approx(expected)


def test_an_arm_whose_questions_cancel_over_the_seeds_still_has_the_seeds_variance() -> None:
    """The estimate of its whole variance is below zero: the mean over seeds is the same for all questions."""
    noise = np.where(np.arange(30) % 2, 0.3, -0.3)
    first, other = np.zeros((2, 30)), np.broadcast_to([[0.04], [0.0]], (2, 30))
    cancelling = np.stack([noise, -noise])
    of_other, of_cancelling = (each.interval or (0, 0) for each in paired_differences([first, other, cancelling]))
    assert of_cancelling[1] - of_cancelling[0] == pytest.approx(of_other[1] - of_other[0])


def test_several_comparisons_widen_the_intervals() -> None:
    rates = np.random.default_rng(0).random((5, 1, 40))
    one, several = paired_differences(list(rates[:2]))[0], paired_differences(list(rates))[0]
    assert one.mean == several.mean
    assert one.interval is not None
    assert several.interval is not None
    assert several.interval[0] < one.interval[0] < one.interval[1] < several.interval[1]


# Findings and page.

HOSTILE = "</td><script>alert(1)</script> {{ 7 * 191 }} ‮"
NUM_CORRECT = {"first": 8, HOSTILE: 16, "worse": 1, "unclear": 9}  # of 20 questions, after the last round


@pytest.fixture(scope="module")
def plan() -> SweepPlan:
    arms = {name: {"train.max_steps": index + 1} for index, name in enumerate(NUM_CORRECT)}
    return make_plan(read_tree(QUICKSTART), {"num_rounds": 1}, arms=arms, seeds=2)


@pytest.fixture
def folder(plan: SweepPlan, tmp_path: Path) -> SweepFolder:
    """A sweep of finished runs, except for the second seed of the last arm."""
    folder = SweepFolder.open(tmp_path / "sweep", plan)
    folder.begin(plan)
    for arm in plan.arms:
        for seed in plan.seeds:
            run = RunFolder(folder.run(arm, seed))
            run.begin(plan.run_config(arm, seed))
            add_round(run, 0, 8)
            if (arm.name, seed) != ("unclear", 1):
                add_round(run, 1, NUM_CORRECT[arm.name] + seed)
    return folder


def finish(folder: SweepFolder, plan: SweepPlan) -> SweepResult:
    add_round(RunFolder(folder.run(plan.arms[-1], 1)), 1, NUM_CORRECT["unclear"])
    return write_sweep_report(folder, plan)


def test_findings_claim_what_the_intervals_allow(folder: SweepFolder, plan: SweepPlan) -> None:
    unfinished = findings(write_sweep_report(folder, plan))
    assert "Nothing can be said about “unclear” yet." in unfinished
    assert "all 2 together hold at 95%, so each one is at 97.50% (Bonferroni)" in unfinished[-1]
    better, worse, unclear, note = findings(finish(folder, plan))
    assert better.startswith("Better than “first”: “</td><script>")
    assert "by +40.0 points (" in better
    assert worse.startswith("Worse than “first”: “worse” by −35.0 points (−")
    assert unclear == "Whether “unclear” differs from “first” is open: the intervals of the differences include zero."
    assert "over 20 questions and 2 seeds; all 3 together hold at 95%" in note


def test_the_page_shows_every_arm_and_runs_nothing(folder: SweepFolder, plan: SweepPlan, tpt_here: CommandHere) -> None:
    finish(folder, plan)
    page = Page(Path(folder.report))
    assert "script" not in page.tags
    assert not [value for name, value in page.attributes if name.startswith("on") or "://" in value]
    assert "{{ 7 * 191 }} U+202E" in page.text
    for sentence in ("2 seeds each", "20 held-out questions", "Better than", "is open", "Pass@1 after the last round"):
        assert sentence in page.text
    links = [value for name, value in page.attributes if name == "href"]
    assert {link for link in links if link.startswith("#")} == {f"#arm-{number}" for number in (1, 2, 3, 4)}
    Path(folder.report).unlink()
    done = tpt_here("report", folder.path)  # writes the same page again
    assert done.stdout.strip() == str(folder.report)
    assert Path(folder.report).read_text() == page.source


def test_arms_that_answered_other_questions_are_not_compared(folder: SweepFolder, plan: SweepPlan) -> None:
    run = RunFolder(folder.run(plan.arms[2], 1))
    questions = [dataclasses.replace(each, question=f"{each.question}?") for each in run.questions(1)]
    run.write_questions(1, questions)
    result = finish(folder, plan)
    assert [arm.difference is None for arm in result.arms] == [True, False, True, False]


def test_runs_that_stop_early_are_done_and_compared_after_their_last_round(tmp_path: Path) -> None:
    arms = {"all rounds": {}, "early": {"early_stop": True}}
    plan = make_plan(read_tree(QUICKSTART), {"num_rounds": 3}, arms=arms, seeds=2)
    folder = SweepFolder.open(tmp_path / "sweep", plan)
    rounds = {
        ("all rounds", 0): (8, 9, 7, 9),
        ("all rounds", 1): (8, 9, 9, 9),
        ("early", 0): (8, 8),
        ("early", 1): (8, 9, 7),
    }
    for (name, seed), numbers in rounds.items():
        arm = next(arm for arm in plan.arms if arm.name == name)
        run = RunFolder(folder.run(arm, seed))
        run.begin(plan.run_config(arm, seed))
        for index, num_correct in enumerate(numbers):
            assert not run.is_finished(arm.config)
            add_round(run, index, num_correct)
        assert run.is_finished(arm.config)
    first, early = write_sweep_report(folder, plan).arms
    assert (first.is_done, early.is_done) == (True, True)
    assert first.final is not None
    assert early.final is not None
    assert early.difference is not None
    assert (first.final.mean, early.final.mean) == (9 / 20, 7.5 / 20)
    assert early.difference.mean == pytest.approx(-1.5 / 20)
    assert (first.best_round, early.best_round, len(early.curve)) == (1, 1, 2)


def test_a_sweep_that_has_not_begun_has_a_page(plan: SweepPlan, tmp_path: Path) -> None:
    folder = SweepFolder(to_path(tmp_path / "sweep"))
    result = write_sweep_report(folder, plan)
    assert "No other arm can be compared with “first” yet." in Page(Path(folder.report)).text
    assert all(arm.final is None for arm in result.arms)
