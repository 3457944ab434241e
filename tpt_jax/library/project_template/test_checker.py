"""Tests of the checker; run them with `pytest`."""

import pytest
from checker import check

import tpt_jax as tpt

SUM = tpt.Question(id="sum", question="600 + 637 =", answer="1237")


@pytest.mark.parametrize("completion", ["1237", "600 + 637 = 1,237", "The answer is 1237."])
def test_right(completion: str) -> None:
    assert check(SUM, completion).correct


@pytest.mark.parametrize("completion", ["", "no idea", "1237 or 1238", "-1237"])
def test_wrong(completion: str) -> None:
    assert not check(SUM, completion).correct


def test_only_a_bare_number_is_strict() -> None:
    assert check(SUM, "1237").strict
    assert not check(SUM, "It is 1237.").strict


def test_an_unreadable_reference_is_neither() -> None:
    assert check(tpt.Question("broken", "600 + 637 =", "about a thousand"), "1237").unknown
