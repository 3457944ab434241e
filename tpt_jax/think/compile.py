"""The sampling programs of think/slots.py, compiled from shapes alone."""

import dataclasses
import functools
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
from tpt_jax.models.transformer import abstract_parameters
from tpt_jax.runtime.sharding import Layout, place
from tpt_jax.think.slots import decode_chunk, start
from tpt_jax.think.state import Finished, RequestBatch, Slots, SlotShape

# Entries of a cache that stand together in memory: XLA's TPU compiler copies caches of another length, or fails, and
# whole tiles are taken in any case.
TPU_TILE = 8


@dataclasses.dataclass(frozen=True)
class SlotProgram:
    """The phases that sample, for one shape.

    Attributes:
      parameters: shapes of the decoding parameters, with their shardings and their layout in memory.
      start: decoding parameters and the prompts' common prefix to empty slots.
      decode_chunk: (parameters, RequestBatch, Slots) to (Slots, Finished); the slots are donated.
    """

    shape: SlotShape
    parameters: nnx.State
    start: jax.stages.Compiled
    decode_chunk: jax.stages.Compiled
    work_shardings: RequestBatch

    def place(self, work: RequestBatch) -> RequestBatch:
        """A phase's work, which every host has whole, on the devices."""
        return jax.tree.map(place, work, self.work_shardings)

    def place_prefix(self, prefix: Sequence[int]) -> jax.Array:
        """What all prompts begin with, on the devices."""
        sharding: Any = self.work_shardings.seed  # a field that every device has whole, as it has the prefix
        return place(np.asarray(prefix, np.int32), sharding)


def compile_slots(
    config: ModelConfig,
    layout: Layout,
    dtype: jnp.dtype,
    shape: SlotShape,
    stop_ids: tuple[int, ...],
    parameters: nnx.State | None = None,
) -> SlotProgram:
    """Compiles the start and the chunk of decoding for slots of one shape.

    Each data shard has its own slots, questions and traces and never waits for another: over `data` and `fsdp` the
    program is written shard by shard; over `tensor` XLA splits it.

    Args:
      parameters: the layout of the weights in memory, from another shape's program; the compiler's choice if not given.
        A weight in another layout would be copied into the one that a matrix product wants, chunk after chunk.
    """
    if layout.mesh.devices.flat[0].platform == "tpu":
        shape = dataclasses.replace(shape, tile=TPU_TILE)
    graph, abstract = abstract_parameters(config)
    batch, everywhere = P(layout.rules["batch"]), P()
    slot_specs, work_specs = _slot_specs(config, shape, layout), _work_specs(layout)
    work_shardings = jax.tree.map(lambda spec: NamedSharding(layout.mesh, spec), work_specs)
    run_start = _by_shard(
        functools.partial(start, graph=graph, shape=shape), layout, (everywhere, everywhere), slot_specs
    )
    finished_specs = Finished(**{**_each_field(Finished, batch), "num_left": everywhere})

    def chunk_and_total(*arguments: Any, layout: Layout) -> tuple[Slots, Finished]:
        slots, finished = decode_chunk(*arguments, graph=graph, shape=shape, stop_ids=stop_ids, layout=layout)
        # Every host must know when all are done, and sees the traces of its own shards only.
        return slots, dataclasses.replace(finished, num_left=jax.lax.psum(finished.num_left, batch[0]))

    run_chunk = _by_shard(chunk_and_total, layout, (everywhere, work_specs, slot_specs), (slot_specs, finished_specs))
    prefix = jax.ShapeDtypeStruct((shape.num_prefix_tokens,), jnp.int32, sharding=layout.replicated)
    shapes = jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, dtype), abstract)
    slots = jax.eval_shape(run_start, shapes, prefix)
    slot_shardings = _slot_shardings(slots, slot_specs, layout)
    if parameters is None:
        formats = jax.tree.map(lambda each: Format(MemoryLayout.AUTO, each), layout.shardings(abstract))
    else:
        formats = jax.tree.map(lambda weight: weight.format, parameters)
    chunk = (
        jax.jit(
            run_chunk,
            donate_argnums=2,
            in_shardings=(formats, work_shardings, slot_shardings),
            out_shardings=(slot_shardings, jax.tree.map(lambda spec: NamedSharding(layout.mesh, spec), finished_specs)),
        )
        .lower(shapes, _abstract_work(shape, layout.batch_ways), slots)
        .compile()
    )
    placed = jax.tree.map(_with_format, shapes, chunk.input_formats[0][0])
    begin = jax.jit(run_start, out_shardings=slot_shardings).lower(placed, prefix).compile()
    return SlotProgram(shape, placed, begin, chunk, work_shardings)


def _by_shard(function: Any, layout: Layout, in_specs: Any, out_specs: Any) -> Any:
    """The function of one data shard as one of all."""

    def of_shard(*arguments: Any) -> Any:
        return function(*arguments, layout=layout.within_shard())

    names = set(layout.rules["batch"])
    return jax.shard_map(
        of_shard, mesh=layout.mesh, in_specs=in_specs, out_specs=out_specs, axis_names=names, check_vma=False
    )


def _slot_specs(config: ModelConfig, shape: SlotShape, layout: Layout) -> Slots:
    stacked: Any = [P(None, layout.rules["batch"])] * config.period
    prefix: Any = [P()] * config.period if shape.num_prefix_tokens else []
    others = _each_field(Slots, P(layout.rules["batch"]))
    return Slots(**{**others, "caches": stacked, "pool": stacked, "prefix": prefix})


def _work_specs(layout: Layout) -> RequestBatch:
    scalars = dict.fromkeys(("seed", "round_index", "temperature"), P())
    return RequestBatch(**{**_each_field(RequestBatch, P(layout.rules["batch"])), **scalars})


def _each_field(record: type, spec: P) -> dict[str, Any]:
    return {field.name: spec for field in dataclasses.fields(record)}


def _slot_shardings(slots: Slots, specs: Slots, layout: Layout) -> Slots:
    """As the specs say for the batch; keys and values besides over their heads."""

    def of_cache(x: jax.ShapeDtypeStruct) -> NamedSharding:
        return layout.sharding((None, "batch", "kv_heads", None, None)[: x.ndim], x.shape)

    def of_prefix(x: jax.ShapeDtypeStruct) -> NamedSharding:
        return layout.sharding((None, "kv_heads", None, None)[: x.ndim], x.shape)

    others: dict[str, Any] = {
        field.name: NamedSharding(layout.mesh, getattr(specs, field.name))
        for field in dataclasses.fields(Slots)
        if field.name not in ("caches", "pool", "prefix")
    }
    return Slots(
        caches=jax.tree.map(of_cache, slots.caches),
        pool=jax.tree.map(of_cache, slots.pool),
        prefix=jax.tree.map(of_prefix, slots.prefix),
        **others,
    )


def _with_format(leaf: jax.ShapeDtypeStruct, form: Format) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=form)


def _abstract_work(shape: SlotShape, shards: int) -> RequestBatch:
    questions, traces = shards * shape.num_questions, shards * shape.num_traces

    def integers(*dims: int) -> Any:
        return jax.ShapeDtypeStruct(dims, jnp.int32)

    def naturals(*dims: int) -> Any:
        return jax.ShapeDtypeStruct(dims, jnp.uint32)

    cancelled: Any = jax.ShapeDtypeStruct((traces,), jnp.bool_)
    temperature: Any = jax.ShapeDtypeStruct((), jnp.float32)
    return RequestBatch(
        prompts=integers(questions, shape.max_prompt_tokens),
        prompt_lengths=integers(questions),
        question_numbers=naturals(questions),
        trace_questions=integers(traces),
        trace_samples=naturals(traces),
        trace_limits=integers(traces),
        cancelled=cancelled,
        num_questions=integers(shards),
        num_traces=integers(shards),
        seed=naturals(),
        round_index=naturals(),
        temperature=temperature,
    )
