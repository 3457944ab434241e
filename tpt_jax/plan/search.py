"""Finds the most slots and the most rows that fit in memory."""

import dataclasses

from tpt_jax.config import Sampling
from tpt_jax.plan.phases import Compiler
from tpt_jax.runtime.largest import largest_that_fits
from tpt_jax.runtime.memory import peak_bytes
from tpt_jax.think.fitting_slots import SLOTS_UNIT, bytes_per_slot


def most_slots(compiler: Compiler, sampling: Sampling, num_questions: int) -> int:
    """The largest num_slots that fits, for one sampling section of the config."""
    shape = compiler.slot_shape(sampling, num_questions)

    def needed(num_slots: int) -> float:
        trial = dataclasses.replace(shape, num_slots=num_slots, auto_slots=False)
        return peak_bytes(compiler.compile_shape(sampling, trial).decode_chunk)

    per_shard = largest_that_fits(
        needed,
        compiler.chip.memory - compiler.resident_while_sampling,
        start=shape.num_slots,
        unit=SLOTS_UNIT,
        per_unit=bytes_per_slot(shape, compiler.model, compiler.decode_layout, compiler.dtype),
    )
    return per_shard * compiler.decode_layout.batch_ways


def most_rows(compiler: Compiler) -> int:
    """The largest train.rows that fits."""
    train, ways = compiler.config.train, compiler.train_layout.batch_ways

    def needed(rows: int) -> float:
        return peak_bytes(compiler.compile_train_step(dataclasses.replace(train, rows=rows * ways)))

    return ways * largest_that_fits(needed, compiler.chip.memory, start=max(1, train.rows // ways))
