"""Measures programs judged per second, with and without the sandbox.

    python benchmarks/sandbox.py [--programs 400]

The programs are short, like most that a model writes, and every fourth is wrong. Each is judged by three unit tests,
which start two processes, or by one input, which starts one. They go through the checker pool, whose start-up is not
counted: with one worker on one core, one worker on all cores, and one worker per core. The programs themselves take
almost no time; a longer one would add its own.
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
            for used_cores, num_workers in ((cores[:1], 1), (cores, 1), (cores, len(cores))):
                os.sched_setaffinity(0, used_cores)
                rate = measure(checker, num_workers, pairs)
                print(
                    f"{label:12} {checker:22} {len(used_cores)} cores, {num_workers} workers: {rate:6.1f} programs/s",
                    flush=True,
                )


def measure(checker: str, num_workers: int, pairs: list[tuple[Question, Trace]]) -> float:
    """Programs judged per second once all workers have started."""
    with CheckerPool(checker, num_workers, seconds_per_trace=5.0) as pool:
        list(pool.judge(pairs[:1] * 64 * num_workers))
        started = time.perf_counter()
        verdicts = list(pool.judge(pairs))
        seconds = time.perf_counter() - started
    num_wrong = sum(not verdict.correct for verdict in verdicts)
    if num_wrong != len(range(0, len(pairs), 4)):
        raise RuntimeError(f"{num_wrong} of {len(pairs)} programs were judged wrong; every fourth should be")
    return len(pairs) / seconds


if __name__ == "__main__":
    main()
