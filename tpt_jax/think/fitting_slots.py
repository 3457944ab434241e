"""How many slots fit in memory, and how many are of use: `num_slots: auto`."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.inference import abstract_inference_parameters
from tpt_jax.runtime.largest import largest_that_fits
from tpt_jax.runtime.memory import GIB, DoesNotFitError, MemoryNeed, peak_bytes
from tpt_jax.runtime.sharding import Layout
from tpt_jax.terminal import say
from tpt_jax.think.reshard import abstract_copy
from tpt_jax.think.slot_program import SlotProgram
from tpt_jax.think.state import SlotShape

SLOTS_UNIT = 8  # slots per shard, if there are that many: memory is taken in tiles of 8 rows
MAX_COMPILES = 4  # mostly two: a guess, and the number that its memory analysis leads to
FIRST_GUESS = 0.9  # of the slots whose caches fill the memory: the compiler's temporaries are not known yet
LOGITS_COPIES = 2  # in fp32: as they are, and as sampling changes them

# More slots per shard are of no use. On a CPU matrix products have their full rate with as many rows.
MOST_ON_CPU = 64
# Elsewhere products are bound by compute with this many rows: flops per byte are at most 560, on a v6e.
MOST_ROWS = 1024
# And once the caches are so many times as large as the weights, a step reads little else: twice the slots would raise
# the rate by 6%, for twice the time of a step.
MOST_CACHES = 8


def compile_fitting(
    compile_shape: Callable[[SlotShape], SlotProgram],
    section: str,
    shape: SlotShape,
    config: ModelConfig,
    layout: Layout,
    dtype: jnp.dtype,
    *,
    room: float,
    resident: int,
) -> SlotProgram:
    """Compiles a section's sampling programs with as many slots as are of use and fit in memory, and says how many.

    Args:
      compile_shape: may raise DoesNotFitError.
      shape: its num_slots is the number of traces that there may be at a time.
      room: bytes on each device for the program.
      resident: bytes of other arrays there.

    Raises:
      DoesNotFitError: not even one slot fits.
    """
    programs: dict[int, SlotProgram] = {}
    needs: dict[int, float] = {}

    def needed(num_slots: int) -> float:
        program = compile_shape(dataclasses.replace(shape, num_slots=num_slots, auto_slots=False))
        programs[num_slots], needs[num_slots] = program, peak_bytes(program.decode_chunk)
        return needs[num_slots]

    per_slot = bytes_per_slot(shape, config, layout, dtype)
    most = min(shape.num_slots, most_useful(shape, config, layout, dtype))
    guess = int(FIRST_GUESS * (room - weight_bytes(shape, config, layout, dtype)) / per_slot)
    count = largest_that_fits(
        needed,
        room,
        start=max(1, min(guess, most)),
        unit=SLOTS_UNIT,
        most=most,
        per_unit=per_slot,
        max_compiles=MAX_COMPILES,
    )
    if not count:
        need = MemoryNeed(needs[min(needs)] + resident, room + resident) if needs else None
        raise DoesNotFitError(fewer_slots(need, section, shape, config, layout, dtype, resident), need)
    if count < most:
        limit = "more do not fit"
    elif count < shape.num_slots:
        limit = "more would hardly be faster"
    else:
        limit = "there are no more traces at a time"
    say(
        f"{section}.num_slots: auto takes {count * layout.batch_ways}, {count} per shard, {limit}; sampling needs "
        f"{needs[count] / GIB:.2f} of {room / GIB:.2f} GiB per device, "
        f"{count * _cache_bytes(shape, config, layout, dtype) / GIB:.2f} of them for the slots' KV cache"
    )
    return programs[count]


def most_useful(shape: SlotShape, config: ModelConfig, layout: Layout, dtype: jnp.dtype) -> int:
    """The slots of a shard beyond which more would hardly be faster."""
    if layout.mesh.devices.flat[0].platform == "cpu":
        return MOST_ON_CPU
    caches = weight_bytes(shape, config, layout, dtype) / _cache_bytes(shape, config, layout, dtype)
    return max(1, min(MOST_ROWS, math.ceil(MOST_CACHES * caches)))


def weight_bytes(shape: SlotShape, config: ModelConfig, layout: Layout, dtype: jnp.dtype) -> int:
    """Size of the sampling copy of the weights on one device."""
    copy = abstract_copy(abstract_inference_parameters(config, layout.mesh)[1], layout, dtype, shape.weights)
    leaves = jax.tree.leaves(copy)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def bytes_per_slot(shape: SlotShape, config: ModelConfig, layout: Layout, dtype: jnp.dtype) -> float:
    """About what one more slot of a shard takes on a device: its KV cache, its part of the pool, and its logits."""
    pool_share = shape.max_prompt_tokens / 2 / shape.traces_per_prefill / shape.cache_length
    logits = LOGITS_COPIES * 4 * config.vocab_size / layout.ways(layout.rules["vocab"])
    return (1 + pool_share) * _cache_bytes(shape, config, layout, dtype) + logits


def _cache_bytes(shape: SlotShape, config: ModelConfig, layout: Layout, dtype: jnp.dtype) -> float:
    """Size of a slot's KV cache on one device; heads that do not divide over devices are on all of them."""
    ways = layout.ways(layout.rules["kv_heads"])
    return shape.bytes_per_slot(config, dtype.itemsize) / (1 if config.num_kv_heads % ways else ways)


def fewer_slots(
    need: MemoryNeed | None,
    section: str,
    shape: SlotShape,
    config: ModelConfig,
    layout: Layout,
    dtype: jnp.dtype,
    resident: int = 0,
) -> str:
    """The error message for a sampler that does not fit in memory, with the settings that would.

    Args:
      need: None if the compiler did not report its memory need.
      section: the config section that the sampler was compiled for.
      resident: bytes of the fp32 weights that `train.offload` would remove.
    """
    ways = layout.batch_ways
    types = {"cache_type": shape.cache_type, "weights": shape.weights}
    smaller = [f"{section}.{name}: int8" for name, current in types.items() if current != "int8"]
    smaller += ["train.offload: true"] if resident else []
    if shape.auto_slots:
        amount = f" needs {need} per device" if need else " does not fit the devices"
        advice = ", or ".join(["a larger mesh.tensor", *smaller])
        return f"{section}.num_slots (auto): not one slot fits, with it the sampler{amount}; try {advice}"
    slots = shape.num_slots * ways
    if need is None:
        return f"{section}.num_slots ({slots}): the sampler does not fit the devices; try {slots // 2 // ways * ways}"
    excess = (need.needed - need.available) / _cache_bytes(shape, config, layout, dtype)
    fitting = max(0, shape.num_slots - math.ceil(excess)) * ways
    advice = [f"{section}.num_slots: {fitting}", *smaller] if fitting else ["a larger mesh.tensor", *smaller]
    return f"{section}.num_slots ({slots}): the sampler needs {need} per device; try {', or '.join(advice)}"
