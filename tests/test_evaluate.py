"""Pass@k and Maj@k against enumeration."""

import itertools
import statistics
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpt_jax.errors import UserError
from tpt_jax.evaluation import evaluate_traces, maj_at_k, mean_interval, pass_at_k
from tpt_jax.records import FinishReason, JudgedTrace, Trace, Verdict


def judged(name: str, answers: list[str | None], right: str) -> list[JudgedTrace]:
    return [
        JudgedTrace(Trace(name, sample, str(answer)), Verdict(answer, strict=False, correct=answer == right))
        for sample, answer in enumerate(answers)
    ]


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_trace(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    expected = np.mean([any(subset) for subset in itertools.combinations(right, k)])
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(expected)


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=8))
def test_maj_at_k_breaks_ties_at_random(answers: list[str | None]) -> None:
    votes = Counter(answer for answer in answers if answer)
    tied = [answer for answer, count in votes.items() if count == max(votes.values())]
    expected = np.mean([answer == "1" for answer in tied]) if tied else 0.0
    assert maj_at_k(judged("q", answers, "1")) == pytest.approx(expected)


def test_figures_of_two_questions() -> None:
    figures = evaluate_traces([*judged("a", ["1", "1", "2", None], "1"), *judged("b", ["5", "4", "4", "3"], "3")], k=2)
    assert figures.pass_at_1 == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert figures.pass_at_k == pytest.approx((5 / 6 + 3 / 6) / 2)
    assert figures.maj_at_k == pytest.approx(0.5)
    assert figures.strict_pass_at_1 == 0.0
    assert (figures.num_questions, figures.num_samples, figures.k) == (2, 4, 2)


def test_there_is_no_vote_if_a_correct_trace_has_no_answer() -> None:
    right = JudgedTrace(Trace("a", 0, "yes"), Verdict(None, strict=True, correct=True))
    figures = evaluate_traces([right, *judged("b", ["5"], "3")], k=1)
    assert figures.maj_at_k is None
    assert "maj_at_k" not in figures.intervals
    assert figures.pass_at_1 == 0.5


def test_strict_rates_and_counts_leave_unreadable_questions_out() -> None:
    def trace(name: str, sample: int, num_tokens: int, verdict: Verdict, finish_reason: FinishReason) -> JudgedTrace:
        stop_string = "Question:" if name == "b" and finish_reason == "stop" and num_tokens else None
        made = Trace(name, sample, "", (1,) * num_tokens, finish_reason=finish_reason, stop_string=stop_string)
        return JudgedTrace(made, verdict)

    strict, format_only = Verdict("1", strict=True, correct=True), Verdict("1", strict=False, correct=True)
    figures = evaluate_traces(
        [
            trace("a", 0, 4, strict, "stop"),
            trace("a", 1, 7, format_only, "length"),
            trace("b", 0, 1, Verdict("2", strict=False, correct=False), "stop"),
            trace("b", 1, 0, format_only, "stop"),
            trace("c", 0, 90, Verdict.unreadable(), "length"),
            trace("c", 1, 90, strict, "length"),
        ],
        k=2,
    )
    assert (figures.pass_at_1, figures.pass_at_k) == (0.75, 1.0)
    assert (figures.strict_pass_at_1, figures.strict_pass_at_k) == (0.25, 0.5)
    assert (figures.num_questions, figures.num_unknown, figures.num_truncated, figures.mean_tokens) == (2, 1, 1, 3.0)
    assert figures.num_ended == 2  # one of four is cut at the limit, one at a stop string


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_the_interval_is_the_mean_and_its_standard_error(values: list[float]) -> None:
    margin = statistics.NormalDist().inv_cdf(0.975) * statistics.stdev(values) / len(values) ** 0.5
    low, high = max(0.0, statistics.fmean(values) - margin), min(1.0, statistics.fmean(values) + margin)
    assert mean_interval(values) == pytest.approx((low, high), abs=1e-6)


def test_one_value_gives_the_widest_interval() -> None:
    assert mean_interval([0.5]) == (0.0, 1.0)


def test_intervals_cover_the_true_rate() -> None:
    """About 95% of 400 simulated evaluations with clustered samples do."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        means = rng.binomial(4, rng.beta(2, 1, size=200)) / 4
        low, high = mean_interval(means.tolist())
        covered += low <= 2 / 3 <= high
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize(("traces", "k"), [([], 1), (judged("a", ["1"], "1"), 2), (judged("a", ["1"], "1"), 0)])
def test_no_traces_and_a_k_out_of_range_are_refused(traces: list[JudgedTrace], k: int) -> None:
    with pytest.raises(UserError):
        evaluate_traces(traces, k=k)


def test_figures_do_not_depend_on_the_order_of_traces() -> None:
    """They are the same to the bit, so that it does not matter which trace was finished first."""
    rng = np.random.default_rng(0)
    traces = [
        trace
        for index in range(50)
        for trace in judged(f"q{index}", [*map(str, rng.integers(0, 3, 7))], str(index % 3))
    ]
    shuffled = [traces[index] for index in rng.permutation(len(traces))]
    assert evaluate_traces(shuffled, k=3) == evaluate_traces(traces, k=3)


def test_unequal_numbers_of_samples_are_refused() -> None:
    with pytest.raises(UserError, match="unequal"):
        evaluate_traces([*judged("a", ["1", "2"], "1"), *judged("b", ["1"], "1")], k=1)
