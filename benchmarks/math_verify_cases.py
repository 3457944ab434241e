"""How many of Math-Verify's own test cases the math checker decides as they expect.

    git clone https://github.com/huggingface/Math-Verify
    python benchmarks/math_verify_cases.py --cases Math-Verify

The cases are what pytest collects from the checkout's tests: those with a reference, a prediction and what is expected
of the two. Settings that a case gives the library are not ours to give: such cases are counted apart.
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

PLAIN = {"gold", "pred", "expected", "result"}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    gold: str
    pred: str
    expected: bool
    with_settings: bool


class Collector:
    """A pytest plugin that keeps the parameters of what is collected."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        for item in items:
            given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
            expected = given.get("expected", given.get("result"))
            gold, pred = given.get("gold"), given.get("pred")
            if isinstance(gold, str) and isinstance(pred, str) and expected in (0, 1):
                name = item.name.partition("[")[0]
                self.cases.append(Case(name, gold, pred, bool(expected), bool(given.keys() - PLAIN)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True, help="a checkout of Math-Verify")
    args = parser.parse_args()
    cases = collect(args.cases)
    started = time.perf_counter()
    ours = [check_math(Question("", "", case.gold), case.pred) for case in cases]
    seconds = time.perf_counter() - started
    for case, verdict in zip(cases, ours, strict=True):
        if verdict.correct != case.expected:
            settings = ", with settings" if case.with_settings else ""
            print(f"{case.name}{settings}: expected {_word(case.expected)}, ours {_word(verdict.correct)}", end="")
            print(f" ({verdict.reason or 'compared'})\n  reference  {_end(case.gold)}\n  prediction {_end(case.pred)}")
            print(f"  extracted  {verdict.extracted}")
    agreed = [verdict.correct == case.expected for case, verdict in zip(cases, ours, strict=True)]
    plain = [agrees for case, agrees in zip(cases, agreed, strict=True) if not case.with_settings]
    print(f"{sum(agreed)} of {len(agreed)} cases agree; {sum(plain)} of the {len(plain)} without settings")
    print(f"{len(cases) / seconds:,.0f} verdicts/s on one core")


def collect(checkout: Path) -> list[Case]:
    """The cases in a checkout's tests."""
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


def _word(right: bool) -> str:
    return "right" if right else "wrong"


def _end(text: str) -> str:
    return ascii(text if len(text) <= 160 else "..." + text[-160:])


if __name__ == "__main__":
    main()
