"""The device's side of sampling: slots that decode side by side, refilled the moment a trace ends.

Everything that decides is on the device: the questions of the whole phase, and the traces wanted of them, are put there
once. In each step of `decode_chunk` a free slot takes the next trace, all slots decode one token, and a finished trace
moves to a buffer for the host, which fetches it while the next chunk runs. Nothing stops for a look, and nothing is
compiled anew.

A question is prefilled once, shortly before its first trace starts, into a pool of prompts; each of its traces copies
the prompt's keys and values into its slot's cache. That saves compute. Memory and bandwidth are saved for the prefix
that all prompts share: its keys and values are kept once, and attended to by all slots in one matrix product.

Dimension letters as in state.py; all of it is written for one data shard.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tpt_jax.models.attention import KVCache
from tpt_jax.models.transformer import Transformer
from tpt_jax.runtime.sharding import Layout
from tpt_jax.think import cache as kv_cache
from tpt_jax.think.sampling import sample_tokens, trace_keys
from tpt_jax.think.state import FREE, Finished, RequestBatch, Running, Slots, SlotShape


def start(
    parameters: nnx.State,
    prefix: Int[Array, " S"],
    *,
    graph: nnx.GraphDef[Transformer],
    shape: SlotShape,
    layout: Layout,
) -> Slots:
    """Empty slots, and the prefix's keys and values."""
    model = nnx.merge(graph, parameters)
    config = model.config
    dtype = model.embedding[...].dtype

    def caches(rows: int, sizes: list[int]) -> list[KVCache]:
        empty = kv_cache.empty(config, rows, sizes, dtype, shape.cache_type)
        return [_constrain(cache, layout) for cache in empty]

    zeros = jnp.zeros(shape.num_slots, jnp.int32)
    no_slots = jnp.zeros(shape.num_slots, bool)
    return Slots(
        caches=caches(shape.num_slots, kv_cache.layer_sizes(config, shape.cache_length)),
        pool=caches(shape.pool_rows, [shape.max_prompt_tokens] * config.period),
        prefix=_prefill_prefix(model, prefix, layout),
        num_prefilled=zeros[:1],
        num_started=zeros[:1],
        trace=zeros + FREE,
        done=no_slots,
        newest=zeros,
        position=zeros,
        tokens=jnp.zeros((shape.num_slots, shape.max_new_tokens), jnp.int32),
        length=zeros,
        stopped=no_slots,
        logprob=jnp.zeros(shape.num_slots, jnp.float32),
    )


def decode_chunk(
    parameters: nnx.State,
    work: RequestBatch,
    slots: Slots,
    *,
    graph: nnx.GraphDef[Transformer],
    shape: SlotShape,
    stop_ids: tuple[int, ...],
    layout: Layout,
) -> tuple[Slots, Finished]:
    """Prefills what the pool has room for, then decodes chunk_steps tokens in every slot, or until all are done.

    Jit it with `slots` donated.
    """
    model = nnx.merge(graph, parameters)
    slots = _prefill(model, work, slots, shape, layout)
    ready = jnp.sum(work.trace_questions < slots.num_prefilled, dtype=jnp.int32)  # traces whose prompt is in the pool
    ready = jnp.minimum(ready, work.num_traces[0])

    def goes_on(carry: tuple[Slots, Finished]) -> Bool[Array, ""]:
        slots, finished = carry
        some_busy = ((slots.trace != FREE) & ~slots.done).any()
        return (finished.num_steps[0] < shape.chunk_steps) & (some_busy | (slots.num_started[0] < ready))

    def step(carry: tuple[Slots, Finished]) -> tuple[Slots, Finished]:
        slots, finished = carry
        slots = _refill(work, slots, ready, shape)
        finished = _count(work, slots, finished)
        slots = _decode(model, work, slots, shape, stop_ids, layout)
        return _hand_over(slots, finished, shape)

    nothing = _nothing_finished(shape)
    slots, finished = jax.lax.while_loop(goes_on, step, _hand_over(slots, nothing, shape))
    left = work.num_traces - slots.num_started + (slots.trace != FREE).sum(keepdims=True, dtype=jnp.int32)
    running = Running(slots.trace, slots.tokens, slots.length) if shape.shows_running else None
    return slots, dataclasses.replace(finished, num_left=left, num_prefilled=slots.num_prefilled, running=running)


def _constrain(cache: KVCache, layout: Layout) -> KVCache:
    axes = (None, None, "kv_heads", None, None)
    return jax.tree.map(lambda x: layout.constrain(x, *axes[: x.ndim]), cache)


def _prefill_prefix(model: Transformer, prefix: Int[Array, " S"], layout: Layout) -> list[KVCache]:
    positions = jnp.arange(len(prefix), dtype=jnp.int32)[None]
    if not len(prefix):
        return []
    made = model.prefill(prefix[None], positions, jnp.ones_like(positions), layout=layout)
    return [KVCache(key[:, 0].swapaxes(1, 2), value[:, 0].swapaxes(1, 2)) for key, value in made]


def _prefill(model: Transformer, work: RequestBatch, slots: Slots, shape: SlotShape, layout: Layout) -> Slots:
    """Prefills questions in their order as long as the pool has room: rows of questions with no trace left are free."""
    rows = shape.prefill_rows
    offsets = jnp.arange(rows, dtype=jnp.int32)
    columns = jnp.arange(shape.max_prompt_tokens, dtype=jnp.int32)
    waiting = jnp.minimum(slots.num_started[0], shape.num_traces - 1)
    needed = work.trace_questions[waiting]  # the first question that some trace still waits for

    def has_room(carry: tuple[list[KVCache], jax.Array]) -> Bool[Array, ""]:
        _, count = carry
        return (count < work.num_questions[0]) & (count + rows - shape.pool_rows <= needed)

    def prefill(carry: tuple[list[KVCache], jax.Array]) -> tuple[list[KVCache], jax.Array]:
        pool, count = carry
        questions = jnp.minimum(count + offsets, shape.num_questions - 1)
        filled = columns[None] < work.prompt_lengths[questions][:, None]
        positions = jnp.broadcast_to(shape.num_prefix_tokens + columns, filled.shape)
        segment_ids = filled.astype(jnp.int32)
        made = model.prefill(work.prompts[questions], positions, segment_ids, layout=layout, prefix=slots.prefix)
        parts = zip(pool, made, strict=True)
        pool = [kv_cache.write_prompts(part, *new, count % shape.pool_rows) for part, new in parts]
        return pool, count + rows

    pool, count = jax.lax.while_loop(has_room, prefill, (slots.pool, slots.num_prefilled[0]))
    count = jnp.where(count > work.num_questions[0], work.num_questions[0], count)
    return dataclasses.replace(slots, pool=pool, num_prefilled=count[None])


def _refill(work: RequestBatch, slots: Slots, ready: Int[Array, ""], shape: SlotShape) -> Slots:
    """Free slots take the next traces, in order. A trace begins by decoding its prompt's last token."""
    free = slots.trace == FREE
    candidate = slots.num_started[0] + jnp.cumsum(free, dtype=jnp.int32) - 1
    takes = free & (candidate < ready)
    count = takes.sum(dtype=jnp.int32)
    order = jnp.argsort(~takes, stable=True).astype(jnp.int32)  # the slots that take one, first
    trace = jnp.minimum(candidate, shape.num_traces - 1)
    question = work.trace_questions[trace]
    last = work.prompt_lengths[question] - 1

    def copy(index: jax.Array, caches: list[KVCache]) -> list[KVCache]:
        slot = order[index]
        source = question[slot] % shape.pool_rows
        pairs = zip(caches, slots.pool, strict=True)
        return [kv_cache.copy_prompt(cache, pool, slot, source, last[slot]) for cache, pool in pairs]

    def taken(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(takes, new, old)

    return dataclasses.replace(
        slots,
        caches=jax.lax.fori_loop(0, count, copy, slots.caches),
        num_started=slots.num_started + count,
        trace=taken(trace, slots.trace),
        newest=taken(work.prompts[question, last], slots.newest),
        position=taken(last, slots.position),
        length=taken(jnp.zeros_like(slots.length), slots.length),
        stopped=slots.stopped & ~takes,
        logprob=taken(jnp.zeros_like(slots.logprob), slots.logprob),
    )


def _decode(
    model: Transformer, work: RequestBatch, slots: Slots, shape: SlotShape, stop_ids: tuple[int, ...], layout: Layout
) -> Slots:
    """One token more in every slot that has a trace and is not done."""
    trace = jnp.maximum(slots.trace, 0)
    busy = (slots.trace != FREE) & ~slots.done
    keys = trace_keys(
        work.seed, work.round_index, work.question_numbers[work.trace_questions[trace]], work.trace_samples[trace]
    )
    logits, new = _forward(model, slots, busy, shape, layout)
    position = shape.num_prefix_tokens + slots.position
    tokens, logprobs = sample_tokens(logits, keys, position + 1, work.temperature, shape.filters)
    stops = (tokens[:, None] == jnp.asarray(stop_ids, jnp.int32)[None]).any(axis=-1)
    length = slots.length + busy.astype(jnp.int32)
    caches = [
        kv_cache.write_tokens(cache, key, value, slots.position)
        for cache, (key, value) in zip(slots.caches, new, strict=True)
    ]
    here = jnp.arange(shape.max_new_tokens, dtype=jnp.int32)[None] == slots.length[:, None]
    broken = ~jnp.isfinite(logprobs)
    ends = stops | broken | (length >= work.trace_limits[trace]) | work.cancelled[trace]
    return dataclasses.replace(
        slots,
        caches=caches,
        done=slots.done | (busy & ends),
        newest=tokens,
        position=slots.position + busy.astype(jnp.int32),
        tokens=jnp.where(here & busy[:, None], tokens[:, None], slots.tokens),
        length=length,
        stopped=jnp.where(busy, stops, slots.stopped),
        logprob=slots.logprob + jnp.where(busy, logprobs, 0.0),
    )


def _forward(
    model: Transformer, slots: Slots, busy: Bool[Array, " B"], shape: SlotShape, layout: Layout
) -> tuple[Float[Array, "B V"], list[tuple[jax.Array, jax.Array]]]:
    """Scores of each slot's next token, and the newest token's keys and values; reads the live part of the cache."""
    offset = shape.num_prefix_tokens

    def up_to(live: int, slots: Slots) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        pasts = []
        for place, cache in enumerate(slots.caches):
            size = min(live, cache.key.shape[3])
            entries = kv_cache.entry_positions(cache.key.shape[3], slots.position)[:, :size]
            parts = [(cache, jnp.where(entries >= 0, entries + offset, -1))]
            if slots.prefix:
                shared = jnp.broadcast_to(jnp.arange(offset, dtype=jnp.int32), (shape.num_slots, offset))
                parts.append((slots.prefix[place], shared))
            pasts.append(parts)
        hidden, new = model.decode(slots.newest, offset + slots.position, pasts, layout=layout)
        return model.logits(hidden), new

    lengths = shape.live_lengths
    longest = jnp.where(busy, slots.position, 0).max()
    branches = [lambda slots, live=live: up_to(live, slots) for live in lengths]
    return jax.lax.switch(jnp.searchsorted(jnp.asarray(lengths, jnp.int32), longest), branches, slots)


def _hand_over(slots: Slots, finished: Finished, shape: SlotShape) -> tuple[Slots, Finished]:
    """Moves done traces into the host's buffer, as far as it has room, and frees their slots."""
    rank = jnp.cumsum(slots.done, dtype=jnp.int32) - 1
    leaves = slots.done & (finished.count[0] + rank < shape.buffer_rows)
    order = jnp.argsort(~leaves, stable=True).astype(jnp.int32)
    fields = ("trace", "tokens", "length", "stopped", "logprob")
    first = finished.count[0]

    def move(index: jax.Array, buffers: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def put(name: str) -> jax.Array:
            row = jax.lax.dynamic_slice_in_dim(getattr(slots, name), order[index], 1)
            return jax.lax.dynamic_update_slice_in_dim(buffers[name], row, first + index, axis=0)

        return {name: put(name) for name in fields}

    count = leaves.sum(dtype=jnp.int32)
    buffers = jax.lax.fori_loop(0, count, move, {name: getattr(finished, name) for name in fields})
    slots = dataclasses.replace(slots, trace=jnp.where(leaves, FREE, slots.trace), done=slots.done & ~leaves)
    return slots, dataclasses.replace(finished, count=finished.count + count, **buffers)


def _nothing_finished(shape: SlotShape) -> Finished:
    rows = jnp.zeros(shape.buffer_rows, jnp.int32)
    none = rows[:1]
    return Finished(
        count=none,
        trace=rows,
        tokens=jnp.zeros((shape.buffer_rows, shape.max_new_tokens), jnp.int32),
        length=rows,
        stopped=rows.astype(bool),
        logprob=rows.astype(jnp.float32),
        num_left=none,
        num_steps=none,
        num_decoded=none,
        num_full_steps=none,
        num_full_decoded=none,
        num_prefilled=none,
    )


def _count(work: RequestBatch, slots: Slots, finished: Finished) -> Finished:
    busy = ((slots.trace != FREE) & ~slots.done).sum(keepdims=True, dtype=jnp.int32)
    full = (slots.num_started < work.num_traces).astype(jnp.int32)
    return dataclasses.replace(
        finished,
        num_steps=finished.num_steps + 1,
        num_decoded=finished.num_decoded + busy,
        num_full_steps=finished.num_full_steps + full,
        num_full_decoded=finished.num_full_decoded + full * busy,
    )
