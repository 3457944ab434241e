"""Pass@k and Maj@k against enumeration."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpt_jax.errors import UserError
from tpt_jax.evaluation import evaluate, maj_at_k, mean_interval, pass_at_k
from tpt_jax.records import JudgedTrace, Trace, Verdict


def judged(name: str, answers: list[str | None], right: str) -> list[JudgedTrace]:
    return [
        JudgedTrace(Trace(name, sample, str(answer)), Verdict(answer, strict=False, correct=answer == right))
        for sample, answer in enumerate(answers)
    ]


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    expected = np.mean([any(subset) for subset in itertools.combinations(right, k)])
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(expected)


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=8))
def test_maj_at_k_breaks_ties_at_random(answers: list[str | None]) -> None:
    votes = Counter(answer for answer in answers if answer)
    tied = [answer for answer, count in votes.items() if count == max(votes.values())]
    expected = np.mean([answer == "1" for answer in tied]) if tied else 0.0
    assert maj_at_k(judged("q", answers, "1")) == pytest.approx(expected)


def test_figures_of_a_small_set() -> None:
    figures = evaluate([*judged("a", ["1", "1", "2", None], "1"), *judged("b", ["5", "4", "4", "3"], "3")], k=2)
    assert figures.pass_at_1 == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert figures.pass_at_k == pytest.approx((5 / 6 + 3 / 6) / 2)
    assert figures.maj_at_k == pytest.approx(0.5)
    assert figures.strict_pass_at_1 == 0.0
    assert (figures.num_questions, figures.num_samples, figures.k) == (2, 4, 2)


def test_there_is_no_vote_where_right_traces_name_no_answer() -> None:
    right = JudgedTrace(Trace("a", 0, "yes"), Verdict(None, strict=True, correct=True))
    figures = evaluate([right, *judged("b", ["5"], "3")], k=1)
    assert figures.maj_at_k is None
    assert "maj_at_k" not in figures.intervals
    assert figures.pass_at_1 == 0.5


def test_intervals_cover_the_truth() -> None:
    """Of 400 made-up evaluations with clustered samples about 95% cover the true rate."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        means = rng.binomial(4, rng.beta(2, 1, size=200)) / 4
        low, high = mean_interval(means.tolist())
        covered += low <= 2 / 3 <= high
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize(("traces", "k"), [([], 1), (judged("a", ["1"], "1"), 2), (judged("a", ["1"], "1"), 0)])
def test_what_cannot_be_evaluated_is_refused(traces: list[JudgedTrace], k: int) -> None:
    with pytest.raises(UserError):
        evaluate(traces, k=k)


def test_unequal_samples_are_refused() -> None:
    with pytest.raises(UserError, match="unequal"):
        evaluate([*judged("a", ["1", "2"], "1"), *judged("b", ["1"], "1")], k=1)
