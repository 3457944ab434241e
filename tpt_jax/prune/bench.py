"""`tpt bench check`: how many verdicts a second this machine gives; a pod should never wait for them."""

import argparse
import os
import time

from tpt_jax.arguments import positive
from tpt_jax.prune.command import add_input_arguments, read_input


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_input_arguments(parser)
    parser.add_argument("--num_verdicts", type=positive, default=10_000, help="the traces are judged again if need be")


def main(args: argparse.Namespace) -> int:
    """Judges the traces with one worker, then with all; the workers' start is off the clock."""
    given = read_input(args)
    pairs = [(given.questions[trace.id], trace) for _, trace in given.lines]
    pairs = (pairs * -(-args.num_verdicts // len(pairs)))[: args.num_verdicts]
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
