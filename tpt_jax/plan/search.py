"""The largest sampler and the largest training step that fit."""

import dataclasses
from collections.abc import Callable

from tpt_jax.config import Sampling
from tpt_jax.plan.phases import Compiler
from tpt_jax.runtime.memory import DoesNotFitError

MOST_COMPILES = 7
CLOSE_ENOUGH = 1.05  # a larger one of which only so much more would fit is not looked for


def largest(needed: Callable[[int], float], available: float, *, start: int, unit: int) -> int:
    """The largest multiple of the unit, or nearly, for which what is needed is available; 0 if none is found.

    Each try is a compilation: what two of them needed tells where to look next, for memory grows as a line does.

    Args:
      needed: bytes, for a size; raises DoesNotFitError where the compiler refuses.
    """
    fits: dict[int, float] = {}
    fails: dict[int, float] = {}
    size = max(unit, start // unit * unit)
    for _ in range(MOST_COMPILES):
        try:
            need = needed(size)
        except DoesNotFitError as error:
            need = error.need.needed if error.need else float("inf")
        (fits if need <= available else fails)[size] = need
        below, above = max(fits, default=0), min(fails, default=None)
        if above is not None and (above - below <= unit or above <= below * CLOSE_ENOUGH):
            break
        size = _next(fits, fails, available, unit)
        if size in fits or size in fails:
            break
    return max(fits, default=0)


def _next(fits: dict[int, float], fails: dict[int, float], available: float, unit: int) -> int:
    below, above = max(fits, default=0), min(fails, default=None)
    known = {size: need for size, need in {**fits, **fails}.items() if need != float("inf")}
    if len(known) < 2:
        guess = 2 * below if above is None else (below + above) // 2
    else:
        (small, least), *_, (large, most) = sorted(known.items())
        slope = max((most - least) / (large - small), 1.0)
        guess = int(small + (available - least) / slope)
    guess = guess // unit * unit
    if above is None:
        return min(max(guess, below + unit), 8 * below)
    return min(max(guess, below + unit), above - unit) if above - below > unit else below


def fit_slots(compiler: Compiler, sampling: Sampling, num_questions: int) -> int:
    """The most slots that a section of the config can have."""

    def needed(num_slots: int) -> float:
        section = dataclasses.replace(getattr(compiler.config, sampling), num_slots=num_slots)
        config = dataclasses.replace(compiler.config, **{sampling: section})
        trial = dataclasses.replace(compiler, config=config)
        return trial.sampling_memory(trial.slots(sampling, trial.shape(sampling, num_questions))).needed

    ways = compiler.decode_layout.batch_ways
    start = getattr(compiler.config, sampling).num_slots
    return largest(needed, compiler.chip.memory, start=start, unit=8 * ways)


def fit_rows(compiler: Compiler) -> int:
    """The most rows that a micro-batch can have."""

    def needed(rows: int) -> float:
        step = compiler.trainer(dataclasses.replace(compiler.config.train, rows=rows))
        return compiler.training_memory(step).needed

    ways = compiler.decode_layout.batch_ways
    return largest(needed, compiler.chip.memory, start=compiler.config.train.rows, unit=ways)
