"""Runs the math checker on Math-Verify's own test cases and counts the verdicts that match.

    git clone https://github.com/huggingface/Math-Verify
    python benchmarks/math_verify_cases.py --cases Math-Verify

Takes from the checkout's parametrized tests those with a reference answer, a prediction and an expected verdict. Cases
that pass settings to the library, which our checker does not have, are also counted separately.
"""

import argparse
import contextlib
import dataclasses
import io
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tpt_jax.checks.answers.latex import check_math
from tpt_jax.records import Question

CASE_PARAMETERS = {"gold", "pred", "expected", "result"}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    gold: str
    pred: str
    expected: bool
    with_settings: bool


class Collector:
    """A pytest plugin that records the parameters of collected tests."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        for item in items:
            parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
            expected = parameters.get("expected", parameters.get("result"))
            gold, pred = parameters.get("gold"), parameters.get("pred")
            if isinstance(gold, str) and isinstance(pred, str) and expected in (0, 1):
                name = item.name.partition("[")[0]
                self.cases.append(Case(name, gold, pred, bool(expected), bool(parameters.keys() - CASE_PARAMETERS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True, help="a checkout of Math-Verify")
    args = parser.parse_args()
    cases = collect(args.cases)
    started = time.perf_counter()
    verdicts = [check_math(Question("", "", case.gold), case.pred) for case in cases]
    seconds = time.perf_counter() - started
    for case, verdict in zip(cases, verdicts, strict=True):
        if verdict.correct != case.expected:
            settings = ", with settings" if case.with_settings else ""
            print(f"{case.name}{settings}: expected {_word(case.expected)}, ours {_word(verdict.correct)}", end="")
            print(
                f" ({verdict.reason or 'compared'})\n  reference  {_tail(case.gold)}\n  prediction {_tail(case.pred)}"
            )
            print(f"  extracted  {verdict.extracted}")
    matches = [verdict.correct == case.expected for case, verdict in zip(cases, verdicts, strict=True)]
    without_settings = [match for case, match in zip(cases, matches, strict=True) if not case.with_settings]
    print(
        f"{sum(matches)} of {len(matches)} cases match; "
        f"{sum(without_settings)} of {len(without_settings)} without settings"
    )
    print(f"{len(cases) / seconds:,.0f} verdicts/s on one core")


def collect(checkout: Path) -> list[Case]:
    """Collects the cases from the tests of a checkout."""
    collector = Collector()
    with contextlib.redirect_stdout(io.StringIO()):
        tests = str(checkout.resolve() / "tests")
        options = [
            "--collect-only",
            "-q",
            "-c",
            "/dev/null",
            "--rootdir",
            str(checkout.resolve()),
            "-p",
            "no:cacheprovider",
        ]
        pytest.main([*options, tests], plugins=[collector])
    return collector.cases


def _word(correct: bool) -> str:
    return "correct" if correct else "wrong"


def _tail(text: str) -> str:
    return ascii(text if len(text) <= 160 else "..." + text[-160:])


if __name__ == "__main__":
    main()
