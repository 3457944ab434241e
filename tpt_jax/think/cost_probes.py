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
from tpt_jax.think.shard_specs import batch_specs, cache_spec, map_over_shards, slot_specs
from tpt_jax.think.slot_program import SlotProgram
from tpt_jax.think.slots import decode_step, prefill_questions
from tpt_jax.think.state import RequestBatch, Slots


def compile_decode_step(config: ModelConfig, layout: Layout, program: SlotProgram) -> jax.stages.Compiled:
    """Compiles one decode step; its branch for the longest traces reads the whole KV cache."""
    graph, _ = abstract_parameters(config)

    def step(parameters: nnx.State, batch: RequestBatch, slots: Slots, *, layout: Layout) -> Slots:
        model = nnx.merge(graph, parameters)
        return decode_step(model, batch, slots, shape=program.shape, stop_ids=program.stop_ids, layout=layout)

    specs = slot_specs(config, program.shape, layout)
    run = map_over_shards(step, layout, (P(), batch_specs(layout), specs), specs)
    jitted = jax.jit(run, donate_argnums=2, out_shardings=_shardings(program.abstract_slots))
    return jitted.lower(program.parameters, program.abstract_batch, program.abstract_slots).compile()


def compile_prefill(config: ModelConfig, layout: Layout, program: SlotProgram) -> jax.stages.Compiled:
    """Compiles the prefill of prefill_rows questions into the prompt pool."""
    graph, _ = abstract_parameters(config)

    def prefill(
        parameters: nnx.State,
        batch: RequestBatch,
        pool: list[KVCache],
        prefix: list[KVCache],
        first: jax.Array,
        *,
        layout: Layout,
    ) -> list[KVCache]:
        model = nnx.merge(graph, parameters)
        return prefill_questions(model, batch, pool, prefix, first, shape=program.shape, layout=layout)

    slots = program.abstract_slots
    first = jax.ShapeDtypeStruct((), jnp.int32, sharding=layout.replicated)
    pool_spec = cache_spec(layout)
    run = map_over_shards(prefill, layout, (P(), batch_specs(layout), pool_spec, P(), P()), pool_spec)
    jitted = jax.jit(run, donate_argnums=2, out_shardings=_shardings(slots.pool))
    return jitted.lower(program.parameters, program.abstract_batch, slots.pool, slots.prefix, first).compile()


def least_step_bytes(program: SlotProgram) -> int:
    """Bytes that a decode step must read on one device: the weights, the KV cache and the shared prefix, once each."""
    inputs = (program.parameters, program.abstract_slots.caches, program.abstract_slots.prefix)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(inputs))


def _shardings(abstract: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, abstract)
