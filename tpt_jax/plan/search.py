"""Finds the most slots and the most rows that fit in memory."""

import dataclasses
from collections.abc import Callable

from tpt_jax.config import Sampling
from tpt_jax.plan.phases import Compiler
from tpt_jax.runtime.memory import DoesNotFitError

MAX_COMPILES = 7
TOLERANCE = 1.05  # stop once the smallest size that fails is within 5% of the largest that fits


def largest_that_fits(needed: Callable[[int], float], available: float, *, start: int, unit: int) -> int:
    """The largest multiple of `unit` that fits, to within TOLERANCE; 0 if none was found.

    Each try is a compilation. Memory grows about linearly with size, so two tries predict the next one.

    Args:
      needed: bytes needed for a size; may raise DoesNotFitError.
      start: the first size to try.
    """
    fits: dict[int, float] = {}
    fails: dict[int, float] = {}
    size = max(unit, start // unit * unit)
    for _ in range(MAX_COMPILES):
        try:
            need = needed(size)
        except DoesNotFitError as error:
            need = error.need.needed if error.need else float("inf")
        (fits if need <= available else fails)[size] = need
        below, above = max(fits, default=0), min(fails, default=None)
        if above is not None and (above - below <= unit or above <= below * TOLERANCE):
            break
        size = _next_size(fits, fails, available, unit)
        if size in fits or size in fails:
            break
    return max(fits, default=0)


def _next_size(fits: dict[int, float], fails: dict[int, float], available: float, unit: int) -> int:
    """Interpolates linearly between known needs; doubles or bisects while fewer than two are known."""
    below, above = max(fits, default=0), min(fails, default=None)
    known = {size: need for size, need in {**fits, **fails}.items() if need != float("inf")}
    if len(known) < 2:
        guess = 2 * below if above is None else (below + above) // 2
    else:
        (small, small_need), *_, (large, large_need) = sorted(known.items())
        slope = max((large_need - small_need) / (large - small), 1.0)
        guess = int(small + (available - small_need) / slope)
    guess = guess // unit * unit
    if above is None:
        return min(max(guess, below + unit), 8 * below)
    return min(max(guess, below + unit), above - unit) if above - below > unit else below


def most_slots(compiler: Compiler, sampling: Sampling, num_questions: int) -> int:
    """The largest num_slots that fits, for one sampling section of the config."""

    def needed(num_slots: int) -> float:
        section = dataclasses.replace(getattr(compiler.config, sampling), num_slots=num_slots)
        config = dataclasses.replace(compiler.config, **{sampling: section})
        trial = dataclasses.replace(compiler, config=config)
        program = trial.compile_sampler(sampling, trial.slot_shape(sampling, num_questions))
        return trial.sampling_memory(program).needed

    start = getattr(compiler.config, sampling).num_slots
    return largest_that_fits(needed, compiler.chip.memory, start=start, unit=8 * compiler.decode_layout.batch_ways)


def most_rows(compiler: Compiler) -> int:
    """The largest train.rows that fits."""

    def needed(rows: int) -> float:
        step = compiler.compile_train_step(dataclasses.replace(compiler.config.train, rows=rows))
        return compiler.training_memory(step).needed

    start, unit = compiler.config.train.rows, compiler.train_layout.batch_ways
    return largest_that_fits(needed, compiler.chip.memory, start=start, unit=unit)
