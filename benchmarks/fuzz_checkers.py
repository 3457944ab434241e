"""Ten thousand made-up traces through each checker: none may crash it, outlast its limit or be right by saying nothing.

    python benchmarks/fuzz_checkers.py [--checker numeric] [--num_traces 10000] [--num_code_traces 1000]

Hypothesis puts the traces together from marks, numbers, LaTeX, programs and stray characters, and judges them through
the same worker processes as a run. A crash would be a verdict "checker raised ..." or "checker died". Programs run in
the sandbox, which takes tens of milliseconds each; so there are fewer of them.
"""

import argparse
import collections
import sys
import time

from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from tpt_jax.checks.pool import CheckerPool
from tpt_jax.prune.summary import label
from tpt_jax.records import CHECKERS_FAULT, Question, Trace, Verdict
from tpt_jax.tasks.reasoning_gym import ReasoningGymConfig

SECONDS = 5.0  # for one trace
MARKS = (
    "####",
    "\\boxed{",
    "\\fbox{",
    "The answer is",
    "A:",
    "**",
    "<answer>",
    "</answer>",
    "Step 2:",
    "final answer:",
)
NUMBERS = ("18", "$18", "-7", "1,000", "3/4", "5%", "1e9", "9**9**9", "½", "1.5 million", "0.", "\u0663", "1" * 5_000)
LATEX = ("\\frac{1}{2}", "\\frac12", "\\sqrt{2}", "x = ", "\\{1, 2\\}", "(1, 2]", "\\text{cm}", "^{9^{9}}", "100000!")
BRACKETS = ("{", "}", "(", ")", "\\", "$", "\\left(", "\\begin{pmatrix}", "{" * 200, "(" * 200)
LETTERS = ("(C)", "B", "or", "and", "Paris", "not", "Option A", "no answer")
PROGRAM = "```python\ndef add(a, b):\n    return a + b\n```"
CODE = (PROGRAM, "```python\n", "```\n", "def add(a, b):\n    return ", "import os\n", "while True: pass\n", "exit()\n")
STRAY = ("\0", "\ud800", "\u202e", "\x1b[2J", "\r", "\t", "\n", "\n\n", "é", "\U0001d7cf")
PIECES = st.sampled_from((*MARKS, *NUMBERS, *LATEX, *BRACKETS, *LETTERS, *CODE, *STRAY))
TRACES = st.lists(st.one_of(PIECES, PIECES, st.text(max_size=12)), max_size=24).map(" ".join)
EMPTY = (
    "",
    " ",
    "\n",
    "####",
    "#### ",
    "\\boxed{}",
    "\\boxed{ }",
    "<answer></answer>",
    "The answer is",
    "```python\n```",
)


def questions() -> dict[str, Question]:
    """One for each checker."""
    procedural = ReasoningGymConfig("reasoning_gym", dataset="chain_sum", num_train=1, num_test=1).load().train[0]
    return {
        "numeric": Question("numeric", "9 + 9?", "18"),
        "math": Question("math", "Half of one?", "\\frac{1}{2}"),
        "choice": Question("choice", "Where?", "C", {"choices": ["Rome", "Bonn", "Paris", "Oslo"]}),
        "reasoning_gym": procedural,
        "code": Question("code", "Add two numbers.", "", {"tests": ["assert add(2, 3) == 5"]}),
    }


def traces_of(count: int) -> list[str]:
    """Drawn by hypothesis, the same ones each time; the empty ones come first."""
    drawn: list[str] = [*EMPTY]

    @seed(0)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate])
    @given(TRACES)
    def draw(trace: str) -> None:
        drawn.append(trace)

    draw()
    return drawn[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checker", action="append", help="only these; repeatable")
    parser.add_argument("--num_traces", type=int, default=10_000)
    parser.add_argument("--num_code_traces", type=int, default=1_000)
    args = parser.parse_args()
    faults = 0
    for checker, question in questions().items():
        if args.checker and checker not in args.checker:
            continue
        texts = traces_of(args.num_code_traces if checker == "code" else args.num_traces)
        with CheckerPool(checker, None, SECONDS) as pool:
            started = time.perf_counter()
            pairs = ((question, Trace(question.id, sample, text)) for sample, text in enumerate(texts))
            verdicts = list(pool.judge(pairs))
            seconds = time.perf_counter() - started
        faults += report(checker, texts, verdicts, seconds)
    sys.exit(faults > 0)


def report(checker: str, texts: list[str], verdicts: list[Verdict], seconds: float) -> int:
    """Prints what became of the traces, and what must not have, of which it gives the number."""
    empty = sum(verdict.correct for text, verdict in zip(texts, verdicts, strict=True) if text in EMPTY)
    crashed = sum(verdict.reason.startswith(CHECKERS_FAULT) for verdict in verdicts)
    kinds = collections.Counter(map(label, verdicts))
    print(
        f"{checker}: {len(texts):,} traces, {len(texts) / seconds:,.0f}/s; crashes {crashed}; empty and right {empty}"
    )
    print("  " + ", ".join(f"{kind} {number:,}" for kind, number in kinds.most_common()))
    if crashed or empty:
        for text, verdict in zip(texts, verdicts, strict=True):
            if verdict.reason.startswith(CHECKERS_FAULT) or (text in EMPTY and verdict.correct):
                print(f"  {verdict.reason}: {text!r:.300}")
    return crashed + empty


if __name__ == "__main__":
    main()
