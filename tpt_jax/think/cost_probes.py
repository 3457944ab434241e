"""Sampling's parts compiled by themselves, to see what each costs: one decoding step, one prefill.

Only to be looked at: the sampling program of slots.py has both in loops, which no count of costs sees through.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.transformer import abstract_parameters
from tpt_jax.runtime.sharding import Layout
from tpt_jax.think import cache as kv_cache
from tpt_jax.think.compile import SlotProgram
from tpt_jax.think.sampling import sample_tokens


@dataclasses.dataclass(frozen=True)
class Part:
    """A compiled part.

    Attributes:
      least_bytes: of the weights and the cache that it is given, on one device: to be read at least once.
    """

    compiled: jax.stages.Compiled
    least_bytes: int


def compile_step(config: ModelConfig, layout: Layout, program: SlotProgram) -> Part:
    """One decoding step, as the program's chunk has it, with a cache that is full."""
    shape = program.shape
    graph, _ = abstract_parameters(config)

    def step(parameters: Any, caches: Any, tokens: Any, positions: Any, keys: Any) -> Any:
        model = nnx.merge(graph, parameters)
        pasts = [[(cache, kv_cache.entry_positions(cache.key.shape[3], positions))] for cache in caches]
        hidden, new = model.decode(tokens, positions, pasts, layout=layout.within_shard())
        keys = jax.random.wrap_key_data(keys)
        chosen, logprobs = sample_tokens(model.logits(hidden), keys, positions, jnp.float32(1), shape.filters)
        written = [kv_cache.write_tokens(cache, *made, positions) for cache, made in zip(caches, new, strict=True)]
        return written, chosen, logprobs

    rows = shape.num_slots * layout.batch_ways
    caches = _caches(config, rows, kv_cache.layer_sizes(config, shape.cache_length), program)
    integers = jax.ShapeDtypeStruct((rows,), jnp.int32)
    others = (integers, integers, jax.ShapeDtypeStruct((rows, 2), jnp.uint32))
    return _compile(step, layout, program, caches, others, num_results=2)


def compile_prefill(config: ModelConfig, layout: Layout, program: SlotProgram) -> Part:
    """As many prompts as the program prefills at a time, each as long as the longest."""
    shape = program.shape
    graph, _ = abstract_parameters(config)

    def prefill(parameters: Any, pool: Any, prompts: Any, lengths: Any) -> Any:
        model = nnx.merge(graph, parameters)
        columns = jnp.arange(shape.max_prompt_tokens, dtype=jnp.int32)
        filled = columns[None] < lengths[:, None]
        positions = jnp.broadcast_to(columns, filled.shape)
        made = model.prefill(prompts, positions, filled.astype(jnp.int32), layout=layout.within_shard())
        return ([kv_cache.write_prompts(part, *new, jnp.int32(0)) for part, new in zip(pool, made, strict=True)],)

    rows = shape.prefill_rows * layout.batch_ways
    pool = _caches(config, rows, [shape.max_prompt_tokens] * config.period, program)
    others = (
        jax.ShapeDtypeStruct((rows, shape.max_prompt_tokens), jnp.int32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    return _compile(prefill, layout, program, pool, others, num_results=0)


def _caches(config: ModelConfig, rows: int, sizes: list[int], program: SlotProgram) -> Any:
    dtype = jax.tree.leaves(program.parameters)[0].dtype
    kind = program.shape.cache_type
    return jax.eval_shape(lambda: kv_cache.empty(config, rows, sizes, dtype, kind))


def _compile(
    function: Callable[..., Any],
    layout: Layout,
    program: SlotProgram,
    caches: Any,
    others: tuple[jax.ShapeDtypeStruct, ...],
    num_results: int,
) -> Part:
    """A function of (parameters, caches, others by row) to (caches, *results by row), written for one data shard.

    Weights lie in memory as the program has them.
    """
    axes = layout.rules["batch"]
    stacked, by_row = P(None, axes), P(axes)
    run = jax.shard_map(
        function,
        mesh=layout.mesh,
        in_specs=(P(), stacked, *(by_row for _ in others)),
        out_specs=(stacked, *(by_row for _ in range(num_results))),
        axis_names=set(axes),
        check_vma=False,
    )

    def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = layout.sharding((None, "batch", "kv_heads", None, None)[: x.ndim], x.shape)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    by_rows = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(layout.mesh, by_row)) for x in others]
    inputs = (program.parameters, jax.tree.map(placed, caches))
    compiled = jax.jit(run, donate_argnums=1).lower(*inputs, *by_rows).compile()
    least = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(inputs))
    return Part(compiled, least)
