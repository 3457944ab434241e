"""Signs of collapse, by hand-made traces and by brute force."""

import itertools
import random
import statistics

import pytest

from tpt_jax.evaluation import evaluate_traces, paired_change
from tpt_jax.loop.monitors import Monitors, WatchedAnswer, tally, to_metrics, warn_of_collapse
from tpt_jax.loop.monitors import monitor as monitor_answers
from tpt_jax.loop.selection import difficulty, training_rates
from tpt_jax.prune.candidate import Candidate
from tpt_jax.records import JudgedTrace, Trace, Verdict


def judged(question: str, sample: int, text: str, answer: str | None, *, right: bool) -> JudgedTrace:
    trace = Trace(question, sample, text, (1, 2, 3), entropy=2.0)
    return JudgedTrace(trace, Verdict(answer, right, right))


BASE = [
    judged("a", 0, "1 + 2 = 3", "3", right=True),
    judged("a", 1, "2 + 2 = 4", "4", right=False),
    judged("a", 2, "9", "9", right=False),
    judged("a", 3, "1 + 2 = 3!", "3", right=True),
    *(judged("b", sample, f"{sample} + 0 = {sample}", str(sample), right=sample == 3) for sample in range(4)),
    *(judged("c", sample, "no idea", None, right=False) for sample in range(4)),
]
NARROW = [  # "a" is always right, "b" never, "c" as before
    *(judged("a", sample, "1 + 2 = 3", "3", right=True) for sample in range(4)),
    *(judged("b", sample, "0 + 0 = 0", "0", right=False) for sample in range(4)),
    *BASE[-4:],
]


def monitor(traces: list[JudgedTrace], base: list[JudgedTrace]) -> Monitors:
    return monitor_answers([*map(WatchedAnswer.of, traces)], tally(map(WatchedAnswer.of, base)))


def candidates(traces: list[JudgedTrace]) -> list[Candidate]:
    return [Candidate.of(each.trace, each.verdict) for each in traces]


def test_variety_and_changes_by_hand() -> None:
    before, after = monitor(BASE, []), monitor(NARROW, BASE)
    assert before.distinct_answers == pytest.approx((3 / 4 + 4 / 4 + 1 / 4) / 3)
    assert before.distinct_calculations == pytest.approx((3 / 4 + 4 / 4 + 1 / 4) / 3)  # 1+2=3, 2+2=4, none
    assert after.distinct_answers == after.distinct_calculations == pytest.approx(1 / 4)
    assert before.mean_token_entropy == 2.0 / 4  # three tokens and the end of turn
    assert before.change is None
    assert (after.num_won, after.num_lost) == (1, 1)
    assert after.change is not None
    assert after.change.mean == pytest.approx((0.5 - 0.25 + 0) / 3)
    assert after.change_at_k is not None
    assert after.change_at_k.mean == pytest.approx((0 - 1 + 0) / 3)


def test_a_fall_of_pass_at_k_behind_a_rise_of_pass_at_1_is_put_in_words() -> None:
    def metrics(traces: list[JudgedTrace]) -> dict:
        return {"round": 2, "num_samples": 4, **to_metrics(monitor(traces, BASE))}

    warning = warn_of_collapse(metrics(NARROW))
    assert warning is not None
    assert "round 2: Pass@1 has risen by 8.3 points since the base model, but Pass@4 has fallen by 33.3" in warning
    assert "which may be chance" in warning  # three questions
    assert warn_of_collapse(metrics(BASE)) is None
    worse = [judged(each.trace.id, each.trace.sample, "", None, right=False) for each in BASE]
    assert warn_of_collapse(metrics(worse)) is None  # both fall: the first table says so


def test_pass_at_every_power_of_two_by_enumeration() -> None:
    generator = random.Random(0)
    rights = {f"q{index}": [generator.random() < 0.4 for _ in range(6)] for index in range(9)}
    traces = [judged(name, sample, "", "", right=each) for name in rights for sample, each in enumerate(rights[name])]
    evaluation = evaluate_traces(traces, k=2)
    assert list(evaluation.pass_at) == [1, 2, 4, 6]
    for k, rate in evaluation.pass_at.items():
        draws = [any(drawn) for verdicts in rights.values() for drawn in itertools.combinations(verdicts, k)]
        assert rate == pytest.approx(statistics.fmean(draws))
    assert evaluation.intervals["pass_at_2"] == evaluation.intervals["pass_at_k"]


def test_a_paired_interval_is_that_of_the_mean_difference() -> None:
    before, after = {"a": 0.0, "b": 0.5, "c": 0.25}, {"a": 0.5, "b": 0.5, "c": 1.0}
    change = paired_change(before, after)
    assert change is not None
    differences = [0.5, 0.0, 0.75]
    error = statistics.stdev(differences) / 3**0.5
    assert change.mean == pytest.approx(statistics.fmean(differences))
    assert change.interval == pytest.approx((change.mean - 1.959964 * error, change.mean + 1.959964 * error))
    assert paired_change(before, {"a": 1.0}) is None


def test_rates_on_training_questions_are_not_biased_by_asking_until_one_is_right() -> None:
    """Of each question the samples up to the first right one, or four: their first samples are a fair estimate."""
    generator, traces, truth = random.Random(1), [], []
    for index in range(4000):
        rate = generator.choice([0.1, 0.5, 0.9])
        truth.append(rate)
        for sample in range(4):
            right = generator.random() < rate
            traces.append(judged(f"q{index}", sample, "", "", right=right))
            if right:
                break
    fair = statistics.fmean(training_rates(candidates(traces), first_samples_only=True))
    assert fair == pytest.approx(statistics.fmean(truth), abs=0.02)
    assert sum(each.verdict.correct for each in traces) / len(traces) < fair - 0.05  # hard questions have more


def test_difficulty_is_the_number_of_samples_to_the_first_right_one() -> None:
    firsts = {"a": 0, "b": 1, "c": 3, "d": 4, "e": 2, "f": None}
    traces = [
        judged(name, sample, "", "", right=sample == first) for name, first in firsts.items() for sample in range(5)
    ]
    kept = [each for each in traces if each.verdict.correct or (each.trace.id == "f" and each.trace.sample == 0)]
    assert difficulty(candidates(traces), candidates(kept)) == {"1": 1, "2": 1, "3-4": 2, "5-8": 1, "none": 1}
