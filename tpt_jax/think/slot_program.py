"""Compiles the programs of think/slots.py for one slot shape, from shapes alone."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Format
from jax.experimental.layout import Layout as MemoryLayout
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.inference import abstract_inference_parameters
from tpt_jax.runtime.sharding import Layout, place
from tpt_jax.think.reshard import abstract_copy
from tpt_jax.think.shard_specs import (
    abstract_prompts,
    abstract_queue,
    abstract_slots,
    finished_specs,
    map_over_shards,
    prompt_specs,
    queue_specs,
    slot_specs,
)
from tpt_jax.think.slots import decode_chunk, start
from tpt_jax.think.state import Finished, Prompts, Queue, Slots, SlotShape

# Rows of a tile of a TPU's memory, by the type of the cache. If the part of a cache that is read is no whole number of
# tiles, XLA copies the cache, or fails; memory is taken in whole tiles anyway.
TPU_TILES = {"compute": 8, "int8": 32}
# Numbers in a row of a TPU's memory; XLA copies caches whose rows are shorter, at every step.
TPU_ROW = 128


@dataclasses.dataclass(frozen=True)
class SlotProgram:
    """The compiled sampling programs for one slot shape.

    Attributes:
      parameters: abstract decoding parameters, with their shardings and memory layouts.
      abstract_prompts, abstract_queue, abstract_slots: shapes and shardings of the other inputs of `decode_chunk`.
      start: (parameters, prefix) -> empty Slots.
      decode_chunk: (parameters, Prompts, Queue, Slots) -> (Slots, Finished); donates the slots.
    """

    shape: SlotShape
    stop_ids: tuple[int, ...]
    parameters: nnx.State
    abstract_prompts: Prompts
    abstract_queue: Queue
    abstract_slots: Slots
    start: jax.stages.Compiled
    decode_chunk: jax.stages.Compiled

    def place_prompts(self, prompts: Prompts) -> Prompts:
        """Puts the prompts on the devices; every host passes those of all shards."""
        return jax.tree.map(place, prompts, _shardings(self.abstract_prompts))

    def place_queue(self, queue: Queue) -> Queue:
        """Puts the queue on the devices; a host passes rows for all shards, of which it fills those on its devices."""
        return jax.tree.map(place, queue, _shardings(self.abstract_queue))

    def place_prefix(self, prefix: Sequence[int]) -> jax.Array:
        """Puts the shared prefix on every device."""
        replicated: Any = self.abstract_prompts.seed.sharding
        return place(np.asarray(prefix, np.int32), replicated)


def compile_slots(
    config: ModelConfig,
    layout: Layout,
    dtype: jnp.dtype,
    shape: SlotShape,
    stop_ids: tuple[int, ...],
    parameters: nnx.State | None = None,
) -> SlotProgram:
    """Compiles the start and the decode chunk for one slot shape.

    Args:
      dtype: of the decoding parameters that are not int8.
      parameters: `SlotProgram.parameters` of another shape with the same type of weights, whose memory layouts to use;
        None lets the compiler choose. With a layout that does not suit the matrix products, XLA copies the weight in
        every chunk.
    """
    shape = on_platform(shape, config, layout.mesh.devices.flat[0].platform)
    graph, abstract = abstract_inference_parameters(config, layout.mesh)
    specs, outputs = slot_specs(config, shape, layout), finished_specs(layout)
    run_start = map_over_shards(functools.partial(start, graph=graph, shape=shape), layout, (P(), P()), specs)

    def decode_and_sum(*arguments: Any, layout: Layout) -> tuple[Slots, Finished]:
        slots, finished = decode_chunk(*arguments, graph=graph, shape=shape, stop_ids=stop_ids, layout=layout)
        # A host only fetches its own shards, but every host must know when all shards are done.
        num_left = jax.lax.psum(finished.num_left, shard_axes)
        return slots, dataclasses.replace(finished, num_left=num_left)

    shard_axes = layout.rules["batch"]
    in_specs = (P(), prompt_specs(layout), queue_specs(layout), specs)
    run_chunk = map_over_shards(decode_and_sum, layout, in_specs, (specs, outputs))

    copy = abstract_copy(abstract, layout, dtype, shape.weights)
    weights = jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, weight.dtype), copy)
    prefix = jax.ShapeDtypeStruct((shape.num_prefix_tokens,), jnp.int32, sharding=layout.replicated)
    prompts, queue = abstract_prompts(shape, config.vocab_size, layout), abstract_queue(shape, layout)
    slots = abstract_slots(jax.eval_shape(run_start, weights, prefix), specs, layout)
    if parameters is None:
        formats = jax.tree.map(lambda weight: Format(MemoryLayout.AUTO, weight.sharding), copy)
    else:
        formats = jax.tree.map(lambda weight: weight.format, parameters)
    output_shardings = jax.tree.map(lambda spec: NamedSharding(layout.mesh, spec), outputs)
    chunk = (
        jax.jit(
            run_chunk,
            donate_argnums=3,
            in_shardings=(formats, _shardings(prompts), _shardings(queue), _shardings(slots)),
            out_shardings=(_shardings(slots), output_shardings),
        )
        .lower(weights, prompts, queue, slots)
        .compile()
    )
    placed = jax.tree.map(
        lambda weight, form: jax.ShapeDtypeStruct(weight.shape, weight.dtype, sharding=form),
        weights,
        chunk.input_formats[0][0],
    )
    compiled_start = jax.jit(run_start, out_shardings=_shardings(slots)).lower(placed, prefix).compile()
    return SlotProgram(shape, stop_ids, placed, prompts, queue, slots, compiled_start, chunk)


def on_platform(shape: SlotShape, config: ModelConfig, platform: str) -> SlotShape:
    """The shape as this platform's compiler handles it best."""
    if platform == "tpu":
        row_tokens = TPU_ROW // math.gcd(TPU_ROW, config.head_dim)
        return dataclasses.replace(shape, tile=TPU_TILES[shape.cache_type] * row_tokens, row_tokens=row_tokens)
    if platform == "cpu":  # where a part of the cache would be copied before it is read
        return dataclasses.replace(shape, num_live_lengths=1)
    return shape


def _shardings(abstract: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, abstract)
