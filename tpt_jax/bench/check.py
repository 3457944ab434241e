"""Measures how many verdicts per second the checker workers of this machine give."""

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator, Sequence

from tpt_jax.checks.pool import CheckerPool
from tpt_jax.records import Question, Trace

NUM_VERDICTS = 10_000
NUM_CODE_VERDICTS = 200  # a program takes far longer to run than an answer to compare


@dataclasses.dataclass(frozen=True)
class CheckerSpeed:
    num_workers: int
    verdicts_per_second: float
    startup_seconds: float  # not part of the rate


def measure(
    pairs: Sequence[tuple[Question, Trace]],
    checker: str,
    *,
    seconds_per_trace: float,
    num_workers: int | None = None,
    num_verdicts: int | None = None,
) -> Iterator[CheckerSpeed]:
    """Judges traces with one worker, then with all of them.

    Args:
      num_workers: None for one per processor core.
      num_verdicts: traces are repeated or left out to reach this number; None for a number that suits the checker.
    """
    count = num_verdicts or (NUM_CODE_VERDICTS if checker.startswith("code") else NUM_VERDICTS)
    workload = list(itertools.islice(itertools.cycle(pairs), count))
    for workers in sorted({1, num_workers or os.cpu_count() or 1}):
        with CheckerPool(checker, workers, seconds_per_trace) as pool:
            started = time.perf_counter()
            pool.wait_until_ready()
            ready = time.perf_counter()
            list(pool.judge(workload))
            seconds = time.perf_counter() - ready
        yield CheckerSpeed(workers, len(workload) / seconds, ready - started)
