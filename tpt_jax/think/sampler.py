"""The compiled programs of the think stage: the reshard and, for each slot shape, the sampling programs.

All are compiled ahead of time from shapes alone; called with another shape or sharding, they raise instead of
recompiling.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.decoding_weights import DecodingWeights
from tpt_jax.models.transformer import abstract_parameters, place_abstract
from tpt_jax.runtime.memory import MemoryNeed, explain_out_of_memory
from tpt_jax.runtime.sharding import DECODE_RULES, TRAIN_RULES, Layout
from tpt_jax.think.reshard import Reshard, compile_reshard
from tpt_jax.think.slot_program import SlotProgram, compile_slots
from tpt_jax.think.state import SlotShape


@dataclasses.dataclass(frozen=True)
class SamplerProgram:
    """All programs that sampling needs.

    Attributes:
      reshards, slots: by the config section they were compiled for; sections with the same type of weights share a
        reshard.
    """

    layout: Layout
    reshards: Mapping[str, Reshard]
    slots: Mapping[str, SlotProgram]


def compile_sampler(
    config: ModelConfig,
    mesh: Mesh,
    *,
    compute_dtype: str,
    shapes: Mapping[str, SlotShape],
    stop_ids: tuple[int, ...],
) -> SamplerProgram:
    """Compiles the reshard, and the sampling programs for each shape.

    Args:
      shapes: one data shard's slots, by the config section they are for.

    Raises:
      UserError: the model does not divide over the mesh, or a program does not fit in memory.
    """
    source, target = Layout(mesh, TRAIN_RULES), Layout(mesh, DECODE_RULES)
    dtype = jnp.dtype(compute_dtype)
    parameters: dict[DecodingWeights, nnx.State] = {}
    slots: dict[str, SlotProgram] = {}
    for section, shape in shapes.items():
        advise = functools.partial(fewer_slots, section=section, shape=shape, config=config, layout=target, dtype=dtype)
        with explain_out_of_memory(advise):
            slots[section] = compile_slots(config, target, dtype, shape, stop_ids, parameters.get(shape.weights))
        # All shapes share the memory layouts chosen for the first.
        parameters[shape.weights] = slots[section].parameters
    masters = place_abstract(abstract_parameters(config)[1], source)
    reshards = {weights: compile_reshard(masters, copy) for weights, copy in parameters.items()}
    return SamplerProgram(target, {section: reshards[shape.weights] for section, shape in shapes.items()}, slots)


def fewer_slots(
    need: MemoryNeed | None, section: str, shape: SlotShape, config: ModelConfig, layout: Layout, dtype: jnp.dtype
) -> str:
    """The error message for a sampler that does not fit in memory, with the settings that would.

    Args:
      need: None if the compiler did not report its memory need.
      section: the config section that the sampler was compiled for.
    """
    slots, ways = shape.num_slots * layout.batch_ways, layout.batch_ways
    if need is None:
        return f"{section}.num_slots ({slots}): the sampler does not fit the devices; try {slots // 2 // ways * ways}"
    per_slot = shape.bytes_per_slot(config, dtype.itemsize) / layout.ways(layout.rules["kv_heads"])
    fitting = max(0, shape.num_slots - math.ceil((need.needed - need.available) / per_slot)) * ways
    types = {"cache_type": shape.cache_type, "weights": shape.weights}
    smaller = [f"{section}.{name}: int8" for name, current in types.items() if current != "int8"]
    advice = [f"{section}.num_slots: {fitting}", *smaller] if fitting else ["a larger mesh.tensor", *smaller]
    return f"{section}.num_slots ({slots}): the sampler needs {need} per device; try {', or '.join(advice)}"
