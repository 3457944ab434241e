"""The decode step and the prefill of think/slots.py compiled on their own, to count what each costs.

Never run. The sampling program has both inside loops whose trip counts are not fixed, so its cost cannot be counted.
"""

import functools
import math
from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import PartitionSpec as P

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.inference import abstract_inference_parameters
from tpt_jax.runtime.sharding import Layout
from tpt_jax.think.prefill import prefill_batch
from tpt_jax.think.shard_specs import map_over_shards, prompt_specs, queue_specs, slot_specs
from tpt_jax.think.slot_program import SlotProgram
from tpt_jax.think.slots import decode_step
from tpt_jax.think.state import Prompts, Queue, Slots


def compile_decode_step(config: ModelConfig, layout: Layout, program: SlotProgram) -> jax.stages.Compiled:
    """Compiles one decode step; its branch for the longest traces reads the whole KV cache."""
    return _compile(functools.partial(decode_step, stop_ids=program.stop_ids), config, layout, program)


def compile_prefill(config: ModelConfig, layout: Layout, program: SlotProgram) -> jax.stages.Compiled:
    """Compiles the prefill of one large batch of prompts."""
    return _compile(functools.partial(prefill_batch, size=program.shape.prefill_batches[1]), config, layout, program)


def _compile(
    step: Callable[..., Slots], config: ModelConfig, layout: Layout, program: SlotProgram
) -> jax.stages.Compiled:
    graph, _ = abstract_inference_parameters(config, layout.mesh)

    def run_shard(parameters: nnx.State, prompts: Prompts, queue: Queue, slots: Slots, *, layout: Layout) -> Slots:
        return step(nnx.merge(graph, parameters), prompts, queue, slots, shape=program.shape, layout=layout)

    specs = slot_specs(config, program.shape, layout)
    run = map_over_shards(run_shard, layout, (P(), prompt_specs(layout), queue_specs(layout), specs), specs)
    shardings = jax.tree.map(lambda x: x.sharding, program.abstract_slots)
    jitted = jax.jit(run, donate_argnums=3, out_shardings=shardings)
    inputs = (program.parameters, program.abstract_prompts, program.abstract_queue, program.abstract_slots)
    return jitted.lower(*inputs).compile()


def least_step_bytes(program: SlotProgram) -> int:
    """Bytes that a decode step must read on one device: the weights, the KV cache and the shared prefix, once each."""
    inputs = (program.parameters, program.abstract_slots.caches, program.abstract_slots.prefix)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(inputs))
