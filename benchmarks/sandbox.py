"""How many of a model's programs are judged a second, in the sandbox and without it.

    python benchmarks/sandbox.py [--programs 400]

The programs are short and right or wrong, as most are that a model writes; each is judged by three tests, for which two
processes are started, or by one input, for which one is. All go through the pool, its start not counted: with one
worker and with one a processor core, and on a single core. What a program itself takes comes on top.
"""

import argparse
import os
import time

from tpt_jax.checks.code import sandbox
from tpt_jax.checks.pool import CheckerPool
from tpt_jax.records import Question, Trace

TESTS = {"tests": [f"assert largest({items}) == {max(items)}" for items in ([3, 1, 2], [5], [-1, -7])]}
INPUTS = {"inputs": ["3 1 2"], "outputs": ["3"]}
FUNCTION = "```python\ndef largest(items):\n    return {}(items)\n```"
SCRIPT = "```python\nprint({}(map(int, input().split())))\n```"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=400)
    args = parser.parse_args()
    sandbox.require()
    cores = sorted(os.sched_getaffinity(0))
    for label, data, program in (("three tests", TESTS, FUNCTION), ("one input", INPUTS, SCRIPT)):
        question = Question("largest", "", "", data)
        completions = [program.format("min" if index % 4 == 0 else "max") for index in range(args.programs)]
        pairs = [(question, Trace("largest", index, text)) for index, text in enumerate(completions)]
        for checker in ("code", "code_without_sandbox"):
            for used, workers in ((cores[:1], 1), (cores, 1), (cores, len(cores))):
                os.sched_setaffinity(0, used)
                rate = measure(checker, workers, pairs)
                print(
                    f"{label:12} {checker:22} {len(used)} cores, {workers} workers: {rate:6.1f} programs/s", flush=True
                )


def measure(checker: str, workers: int, pairs: list[tuple[Question, Trace]]) -> float:
    """Programs a second, once the workers are there."""
    with CheckerPool(checker, workers, seconds_per_trace=5.0) as pool:
        list(pool.judge(pairs[:1] * 64 * workers))
        started = time.perf_counter()
        verdicts = list(pool.judge(pairs))
        seconds = time.perf_counter() - started
    wrong = sum(not verdict.correct for verdict in verdicts)
    if wrong != len(range(0, len(pairs), 4)):
        raise RuntimeError(f"{wrong} of {len(pairs)} programs were called wrong; every fourth is")
    return len(pairs) / seconds


if __name__ == "__main__":
    main()
