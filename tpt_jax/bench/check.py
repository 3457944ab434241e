"""`tpt bench check`: how many verdicts a second this machine gives; a pod should never wait for them."""

import argparse
import os
import time

from tpt_jax.commands.arguments import positive
from tpt_jax.library.judge_file import add_input_arguments, read_input


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_input_arguments(parser)
    parser.add_argument(
        "--num_verdicts",
        type=positive,
        help="the traces are judged again if need be; 10,000 if not given, and for tasks of programs 200",
    )


def main(args: argparse.Namespace) -> int:
    """Judges the traces with one worker, then with all; the workers' start is off the clock."""
    given = read_input(args)
    pairs = [(given.questions[trace.id], trace) for _, trace in given.lines]
    count = args.num_verdicts or (200 if given.checker.startswith("code") else 10_000)
    pairs = (pairs * -(-count // len(pairs)))[:count]
    for num_workers in sorted({1, args.num_workers or os.cpu_count() or 1}):
        with given.pool(num_workers) as pool:
            started = time.perf_counter()
            pool.wait_until_ready()
            ready = time.perf_counter()
            list(pool.judge(pairs))
            rate = len(pairs) / (time.perf_counter() - ready)
        workers = "1 worker" if num_workers == 1 else f"{num_workers} workers"
        print(f"{given.checker}, {workers}: {rate:,.0f} verdicts/s; ready after {ready - started:.1f} s")
    return 0
