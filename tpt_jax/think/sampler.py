"""The compiled programs of the think stage: the reshard and, for each slot shape, the sampling programs.

All are compiled ahead of time from shapes alone; called with another shape or sharding, they raise instead of
recompiling.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from tpt_jax.config import LoRAConfig
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.decoding_weights import DecodingWeights
from tpt_jax.models.masters import abstract_masters
from tpt_jax.runtime.memory import explain_out_of_memory, free_bytes
from tpt_jax.runtime.sharding import DECODE_RULES, TRAIN_RULES, Layout
from tpt_jax.think.fitting_slots import compile_fitting, fewer_slots
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
    lora: LoRAConfig | None = None,
    resident: int = 0,
) -> SamplerProgram:
    """Compiles the reshard, and the sampling programs for each shape.

    Args:
      shapes: one data shard's slots, by the config section they are for.
      lora: adapters of the parameters that the reshard gets.
      resident: bytes of arrays that will be on each device while it samples, and are not there yet.

    Raises:
      UserError: the model does not divide over the mesh, or a program does not fit in memory.
    """
    source, target = Layout(mesh, TRAIN_RULES), Layout(mesh, DECODE_RULES)
    dtype = jnp.dtype(compute_dtype)
    parameters: dict[DecodingWeights, nnx.State] = {}
    slots: dict[str, SlotProgram] = {}
    room = free_bytes(mesh) - resident if any(shape.auto_slots for shape in shapes.values()) else 0

    def compile_shape(shape: SlotShape, section: str) -> SlotProgram:
        advise = functools.partial(fewer_slots, section=section, shape=shape, config=config, layout=target, dtype=dtype)
        with explain_out_of_memory(advise):
            return compile_slots(config, target, dtype, shape, stop_ids, parameters.get(shape.weights))

    for section, shape in shapes.items():
        compile_section = functools.partial(compile_shape, section=section)
        if shape.auto_slots:
            slots[section] = compile_fitting(
                compile_section, section, shape, config, target, dtype, room=room, resident=resident
            )
        else:
            slots[section] = compile_section(shape)
        # All shapes share the memory layouts chosen for the first.
        parameters[shape.weights] = slots[section].parameters
    masters = abstract_masters(config, source, lora)[1]
    reshards = {weights: compile_reshard(masters, copy) for weights, copy in parameters.items()}
    return SamplerProgram(target, {section: reshards[shape.weights] for section, shape in shapes.items()}, slots)
