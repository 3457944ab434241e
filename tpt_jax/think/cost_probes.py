"""The decode steps and the prefill of think/slots.py compiled on their own, to count what each costs.

Never run. The sampling program has both inside loops whose trip counts are not fixed, so its cost cannot be counted.
"""

import functools
import math
from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import PartitionSpec as P

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.inference import InferenceTransformer, abstract_inference_parameters
from tpt_jax.runtime.sharding import Layout
from tpt_jax.think.prefill import prefill_batch
from tpt_jax.think.shard_specs import map_over_shards, prompt_specs, queue_specs, slot_specs
from tpt_jax.think.slot_program import SlotProgram
from tpt_jax.think.slots import decode_step
from tpt_jax.think.state import Prompts, Queue, Slots

# Of the compiled loop. What a chunk of steps does once, before and after its loop, is shared by as many.
NUM_DECODE_STEPS = 32


def compile_decode_steps(config: ModelConfig, layout: Layout, program: SlotProgram) -> jax.stages.Compiled:
    """Compiles a loop of NUM_DECODE_STEPS decode steps; a step's branch for the longest traces reads all caches.

    A single step would hide what the loop costs: a cache whose memory layout suits the reads but not the writes is
    copied from one to the other in every iteration.
    """

    def steps(model: InferenceTransformer, prompts: Prompts, queue: Queue, slots: Slots, layout: Layout) -> Slots:
        def step(_: jax.Array, slots: Slots) -> Slots:
            options = {"shape": program.shape, "stop_ids": program.stop_ids, "layout": layout}
            return decode_step(model, prompts, queue, slots, **options)

        return jax.lax.fori_loop(0, NUM_DECODE_STEPS, step, slots)

    return _compile(steps, config, layout, program)


def compile_prefill(config: ModelConfig, layout: Layout, program: SlotProgram) -> jax.stages.Compiled:
    """Compiles the prefill of one large batch of prompts."""
    size = program.shape.prefill_batches[1]
    return _compile(functools.partial(prefill_batch, size=size, shape=program.shape), config, layout, program)


def _compile(
    function: Callable[..., Slots], config: ModelConfig, layout: Layout, program: SlotProgram
) -> jax.stages.Compiled:
    graph, _ = abstract_inference_parameters(config, layout.mesh)

    def run_shard(parameters: nnx.State, prompts: Prompts, queue: Queue, slots: Slots, *, layout: Layout) -> Slots:
        return function(nnx.merge(graph, parameters), prompts, queue, slots, layout=layout)

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
