"""How the sampling state is split over the mesh: partition specs, shardings and abstract arrays.

Each data shard has its own slots, questions and traces and never waits for another. The programs are therefore written
for one data shard and mapped over the `data` and `fsdp` axes; XLA partitions them over `tensor`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.inference import num_layer_groups
from tpt_jax.runtime.sharding import Layout
from tpt_jax.think.state import Finished, Prompts, Queue, Slots, SlotShape


def map_over_shards(function: Callable[..., Any], layout: Layout, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Maps a function of one data shard, which takes its layout as the keyword `layout`, over all data shards."""

    def run_shard(*arguments: Any) -> Any:
        return function(*arguments, layout=layout.within_shard())

    axes = set(layout.rules["batch"])
    return jax.shard_map(
        run_shard, mesh=layout.mesh, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False
    )


def cache_spec(layout: Layout) -> P:
    """The spec of stacked caches, [L, B, K, S, H]."""
    return P(None, layout.rules["batch"])


def slot_specs(config: ModelConfig, shape: SlotShape, layout: Layout) -> Slots:
    num_groups = num_layer_groups(config, layout.mesh)
    caches: Any = [cache_spec(layout)] * num_groups
    prefix: Any = [P()] * num_groups if shape.num_prefix_tokens else []
    specs = _same_spec(Slots, P(layout.rules["batch"]))
    return Slots(**{**specs, "caches": caches, "pool": caches, "prefix": prefix})


def prompt_specs(layout: Layout) -> Prompts:
    replicated = dict.fromkeys(("stop_table", "seed", "round_index", "temperature"), P())
    return Prompts(**{**_same_spec(Prompts, P(layout.rules["batch"])), **replicated})


def queue_specs(layout: Layout) -> Queue:
    return Queue(**_same_spec(Queue, P(layout.rules["batch"])))


def finished_specs(layout: Layout) -> Finished:
    return Finished(**{**_same_spec(Finished, P(layout.rules["batch"])), "num_left": P()})


def _same_spec(record: type, spec: P) -> dict[str, Any]:
    return {field.name: spec for field in dataclasses.fields(record)}


def abstract_slots(slots: Slots, specs: Slots, layout: Layout) -> Slots:
    """Adds shardings to the shapes of slots: keys and values are split over their heads as well."""

    def place_cache(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return _with_sharding(x, layout.sharding((None, "batch", "kv_heads", None, None)[: x.ndim], x.shape))

    def place_prefix(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return _with_sharding(x, layout.sharding((None, "kv_heads", None, None)[: x.ndim], x.shape))

    fields: dict[str, Any] = {
        field.name: _with_sharding(getattr(slots, field.name), NamedSharding(layout.mesh, getattr(specs, field.name)))
        for field in dataclasses.fields(Slots)
        if field.name not in ("caches", "pool", "prefix")
    }
    return Slots(
        caches=jax.tree.map(place_cache, slots.caches),
        pool=jax.tree.map(place_cache, slots.pool),
        prefix=jax.tree.map(place_prefix, slots.prefix),
        **fields,
    )


def abstract_prompts(shape: SlotShape, vocab_size: int, layout: Layout) -> Prompts:
    """Shapes, types and shardings of the prompts that fit this shape, all data shards together."""
    questions = layout.batch_ways * shape.num_questions
    fields: dict[str, tuple[tuple[int, ...], Any]] = {
        "tokens": ((questions, shape.max_prompt_tokens), jnp.int32),
        "lengths": ((questions,), jnp.int32),
        "question_hashes": ((questions,), jnp.uint32),
        "stop_table": ((shape.num_stop_states, vocab_size), jnp.uint8),
        "seed": ((), jnp.uint32),
        "round_index": ((), jnp.uint32),
        "temperature": ((), jnp.float32),
    }
    return Prompts(**_abstract(fields, prompt_specs(layout), layout))


def abstract_queue(shape: SlotShape, layout: Layout) -> Queue:
    """Shapes, types and shardings of the queues that fit this shape, all data shards together."""
    shards = layout.batch_ways
    prefills, traces = shards * shape.num_prefills, shards * shape.num_traces
    fields: dict[str, tuple[tuple[int, ...], Any]] = {
        "prefill_questions": ((prefills,), jnp.int32),
        "trace_prefills": ((traces,), jnp.int32),
        "trace_samples": ((traces,), jnp.uint32),
        "trace_limits": ((traces,), jnp.int32),
        "is_cancelled": ((traces,), jnp.bool_),
        "num_prefills": ((shards,), jnp.int32),
        "num_traces": ((shards,), jnp.int32),
        "has_more": ((shards,), jnp.bool_),
    }
    return Queue(**_abstract(fields, queue_specs(layout), layout))


def _abstract(fields: dict[str, tuple[tuple[int, ...], Any]], specs: Prompts | Queue, layout: Layout) -> dict[str, Any]:
    return {
        name: jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(layout.mesh, getattr(specs, name)))
        for name, (dims, dtype) in fields.items()
    }


def _with_sharding(x: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
