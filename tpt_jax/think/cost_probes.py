"""The decode step and the prefill of think/slots.py compiled on their own, to count what each costs.

Never run. The sampling program has both inside loops whose trip counts are not fixed, so its cost cannot be counted.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.attention import KVCache
from tpt_jax.models.transformer import abstract_parameters
from tpt_jax.runtime.sharding import Layout
from tpt_jax.think.shard_specs import cache_spec, map_over_shards, prompt_specs, queue_specs, slot_specs
from tpt_jax.think.slot_program import SlotProgram
from tpt_jax.think.slots import decode_step, prefill_prompts
from tpt_jax.think.state import Prompts, Queue, Slots


def compile_decode_step(config: ModelConfig, layout: Layout, program: SlotProgram) -> jax.stages.Compiled:
    """Compiles one decode step; its branch for the longest traces reads the whole KV cache."""
    graph, _ = abstract_parameters(config)

    def step(parameters: nnx.State, prompts: Prompts, queue: Queue, slots: Slots, *, layout: Layout) -> Slots:
        model = nnx.merge(graph, parameters)
        return decode_step(model, prompts, queue, slots, shape=program.shape, stop_ids=program.stop_ids, layout=layout)

    specs = slot_specs(config, program.shape, layout)
    run = map_over_shards(step, layout, (P(), prompt_specs(layout), queue_specs(layout), specs), specs)
    jitted = jax.jit(run, donate_argnums=3, out_shardings=_shardings(program.abstract_slots))
    inputs = (program.parameters, program.abstract_prompts, program.abstract_queue, program.abstract_slots)
    return jitted.lower(*inputs).compile()


def compile_prefill(config: ModelConfig, layout: Layout, program: SlotProgram) -> jax.stages.Compiled:
    """Compiles the prefill of prefill_rows prompts into the prompt pool."""
    graph, _ = abstract_parameters(config)

    def prefill(
        parameters: nnx.State,
        prompts: Prompts,
        queue: Queue,
        pool: list[KVCache],
        prefix: list[KVCache],
        first: jax.Array,
        *,
        layout: Layout,
    ) -> list[KVCache]:
        model = nnx.merge(graph, parameters)
        return prefill_prompts(model, prompts, queue, pool, prefix, first, shape=program.shape, layout=layout)

    slots = program.abstract_slots
    first = jax.ShapeDtypeStruct((), jnp.int32, sharding=layout.replicated)
    pool_spec = cache_spec(layout)
    in_specs = (P(), prompt_specs(layout), queue_specs(layout), pool_spec, P(), P())
    run = map_over_shards(prefill, layout, in_specs, pool_spec)
    jitted = jax.jit(run, donate_argnums=3, out_shardings=_shardings(slots.pool))
    requested = (program.abstract_prompts, program.abstract_queue)
    return jitted.lower(program.parameters, *requested, slots.pool, slots.prefix, first).compile()


def least_step_bytes(program: SlotProgram) -> int:
    """Bytes that a decode step must read on one device: the weights, the KV cache and the shared prefix, once each."""
    inputs = (program.parameters, program.abstract_slots.caches, program.abstract_slots.prefix)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(inputs))


def _shardings(abstract: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, abstract)
