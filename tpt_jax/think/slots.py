"""Continuous batching on the device: slots decode concurrently and are refilled as soon as a trace ends.

All scheduling within a chunk happens on the device. The host uploads all questions once, as Prompts, and the requested
traces as a Queue, to which it may append between chunks. In each step of `decode_chunk` free slots take the next traces
of the queue, every slot decodes one token, and finished traces move to a buffer that the host fetches while the next
chunk runs. The device never waits for the host, and nothing is recompiled.

A prompt is prefilled shortly before its first trace starts, into a pool of prompts; each of the traces that share it
copies its keys and values into its slot's KV cache. This saves compute. The prefix that all prompts share saves memory
and bandwidth too: its keys and values are stored once, and all slots attend to them in one matrix product.

Everything here is written for one data shard; dimension letters as in state.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tpt_jax.models.attention import KVCache
from tpt_jax.models.inference import InferenceTransformer
from tpt_jax.runtime.sharding import Layout
from tpt_jax.think import cache as kv_cache
from tpt_jax.think.prefill import fill_pool, prefill_prefix
from tpt_jax.think.sampling import sample_tokens, trace_keys
from tpt_jax.think.state import FREE, Finished, Prompts, Queue, Slots, SlotShape


def start(
    parameters: nnx.State,
    prefix: Int[Array, " S"],
    *,
    graph: nnx.GraphDef[InferenceTransformer],
    shape: SlotShape,
    layout: Layout,
) -> Slots:
    """Creates free slots and prefills the shared prefix."""
    model = nnx.merge(graph, parameters)
    config = model.config
    dtype = model.dtype

    num_groups = len(model.groups)

    def empty_caches(rows: int, sizes: list[int], row_tokens: int = 1) -> list[KVCache]:
        caches = kv_cache.empty(config, rows, sizes[:num_groups], dtype, shape.cache_type, row_tokens)
        return [_constrain(cache, layout) for cache in caches]

    zeros = jnp.zeros(shape.num_slots, jnp.int32)
    false = jnp.zeros(shape.num_slots, bool)
    return Slots(
        caches=empty_caches(shape.num_slots, kv_cache.layer_sizes(config, shape.cache_length), shape.row_tokens),
        pool=empty_caches(1, [shape.pool_tokens + shape.max_prompt_tokens] * num_groups),
        prefix=prefill_prefix(model, prefix, layout),
        num_prefilled=zeros[:1],
        pool_head=zeros[:1],
        prefill_starts=jnp.zeros(shape.num_prefills, jnp.int32),
        num_started=zeros[:1],
        trace=zeros + FREE,
        done=false,
        last_token=zeros,
        position=zeros,
        tokens=jnp.zeros((shape.num_slots, shape.max_new_tokens), jnp.int32),
        length=zeros,
        stopped=false,
        logprob=jnp.zeros(shape.num_slots, jnp.float32),
        entropy=jnp.zeros(shape.num_slots, jnp.float32),
        token_logprobs=jnp.zeros((shape.num_slots, shape.num_scored_tokens), jnp.float16),
        token_entropies=jnp.zeros((shape.num_slots, shape.num_scored_tokens), jnp.float16),
        stop_state=jnp.zeros(shape.num_slots, jnp.uint8),
    )


def _constrain(cache: KVCache, layout: Layout) -> KVCache:
    axes = (None, None, "kv_heads", None, None)
    return jax.tree.map(lambda x: layout.constrain(x, *axes[: x.ndim]), cache)


def decode_chunk(
    parameters: nnx.State,
    prompts: Prompts,
    queue: Queue,
    slots: Slots,
    *,
    graph: nnx.GraphDef[InferenceTransformer],
    shape: SlotShape,
    stop_ids: tuple[int, ...],
    layout: Layout,
) -> tuple[Slots, Finished]:
    """Prefills as many prompts as the pool has room for, then runs up to chunk_steps decode steps.

    Stops early once all slots are idle. Jit it with `slots` donated.
    """
    model = nnx.merge(graph, parameters)
    slots = fill_pool(model, prompts, queue, slots, shape, layout)
    ready = jnp.sum(queue.trace_prefills < slots.num_prefilled, dtype=jnp.int32)  # traces whose prompt is in the pool
    ready = jnp.minimum(ready, queue.num_traces[0])

    def has_work(carry: tuple[Slots, Finished]) -> Bool[Array, ""]:
        slots, finished = carry
        any_busy = _busy(slots).any()
        return (finished.num_steps[0] < shape.chunk_steps) & (any_busy | (slots.num_started[0] < ready))

    def step(carry: tuple[Slots, Finished]) -> tuple[Slots, Finished]:
        slots, finished = carry
        slots = _refill(prompts, queue, slots, ready, shape)
        finished = _count_step(queue, slots, finished)
        slots = decode_step(model, prompts, queue, slots, shape=shape, stop_ids=stop_ids, layout=layout)
        return _move_finished(slots, finished, shape)

    slots, finished = jax.lax.while_loop(has_work, step, _move_finished(slots, _empty_finished(shape), shape))
    left = queue.num_traces - slots.num_started + (slots.trace != FREE).sum(keepdims=True, dtype=jnp.int32)
    return slots, dataclasses.replace(finished, num_left=left, num_started=slots.num_started)


def _busy(slots: Slots) -> Bool[Array, " B"]:
    return (slots.trace != FREE) & ~slots.done


def _refill(prompts: Prompts, queue: Queue, slots: Slots, ready: Int[Array, ""], shape: SlotShape) -> Slots:
    """Gives free slots the next traces, in order. A trace starts by decoding its prompt's last token."""
    free = slots.trace == FREE
    candidate = slots.num_started[0] + jnp.cumsum(free, dtype=jnp.int32) - 1
    refilled = free & (candidate < ready)
    count = refilled.sum(dtype=jnp.int32)
    order = jnp.argsort(~refilled, stable=True).astype(jnp.int32)  # refilled slots first
    trace = jnp.minimum(candidate, shape.num_traces - 1)
    prefill = jnp.minimum(queue.trace_prefills[trace], shape.num_prefills - 1)
    question = queue.prefill_questions[prefill]
    last = prompts.lengths[question] - 1

    def copy(index: jax.Array, caches: list[KVCache]) -> list[KVCache]:
        slot = order[index]
        prompt = (slots.prefill_starts[prefill[slot]], last[slot], shape.max_prompt_tokens)
        pairs = zip(caches, slots.pool, strict=True)
        return [kv_cache.copy_prompt(cache, pool, slot, *prompt) for cache, pool in pairs]

    def where_refilled(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(refilled, new, old)

    return dataclasses.replace(
        slots,
        caches=jax.lax.fori_loop(0, count, copy, slots.caches),
        num_started=slots.num_started + count,
        trace=where_refilled(trace, slots.trace),
        last_token=where_refilled(prompts.tokens[question, last], slots.last_token),
        position=where_refilled(last, slots.position),
        length=where_refilled(jnp.zeros_like(slots.length), slots.length),
        stopped=slots.stopped & ~refilled,
        logprob=where_refilled(jnp.zeros_like(slots.logprob), slots.logprob),
        entropy=where_refilled(jnp.zeros_like(slots.entropy), slots.entropy),
        stop_state=where_refilled(jnp.zeros_like(slots.stop_state), slots.stop_state),
    )


def decode_step(
    model: InferenceTransformer,
    prompts: Prompts,
    queue: Queue,
    slots: Slots,
    *,
    shape: SlotShape,
    stop_ids: tuple[int, ...],
    layout: Layout,
) -> Slots:
    """Samples one token in every slot that has an unfinished trace."""
    trace = jnp.maximum(slots.trace, 0)
    busy = _busy(slots)
    questions = queue.prefill_questions[queue.trace_prefills[trace]]
    hashes, samples = prompts.question_hashes[questions], queue.trace_samples[trace]
    keys = trace_keys(prompts.seed, prompts.round_index, hashes, samples)
    logits, new_entries = _next_token_logits(model, slots, busy, shape, layout)
    position = shape.num_prefix_tokens + slots.position
    drawn = sample_tokens(logits, keys, position + 1, prompts.temperature, shape.filters)
    stops = (drawn.token[:, None] == jnp.asarray(stop_ids, jnp.int32)[None]).any(axis=-1)
    length = slots.length + busy.astype(jnp.int32)
    is_next = (jnp.arange(shape.max_new_tokens, dtype=jnp.int32)[None] == slots.length[:, None]) & busy[:, None]
    broken = ~jnp.isfinite(drawn.logprob)
    ends = stops | broken | (length >= queue.trace_limits[trace]) | queue.is_cancelled[trace]
    stop_state = slots.stop_state
    if shape.num_stop_states:
        stop_state = jnp.where(busy, prompts.stop_table[stop_state, drawn.token], stop_state)
        ends = ends | (stop_state == shape.num_stop_states - 1)

    def appended(values: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(is_next[:, : values.shape[1]], new.astype(values.dtype)[:, None], values)

    return dataclasses.replace(
        slots,
        caches=kv_cache.write_tokens(slots.caches, new_entries, slots.position),
        done=slots.done | (busy & ends),
        last_token=drawn.token,
        position=slots.position + busy.astype(jnp.int32),
        tokens=appended(slots.tokens, drawn.token),
        length=length,
        stopped=jnp.where(busy, stops, slots.stopped),
        logprob=slots.logprob + jnp.where(busy, drawn.logprob, 0.0),
        entropy=slots.entropy + jnp.where(busy, drawn.entropy, 0.0),
        token_logprobs=appended(slots.token_logprobs, drawn.logprob),
        token_entropies=appended(slots.token_entropies, drawn.entropy),
        stop_state=stop_state,
    )


def _next_token_logits(
    model: InferenceTransformer, slots: Slots, busy: Bool[Array, " B"], shape: SlotShape, layout: Layout
) -> tuple[Float[Array, "B V"], list[tuple[jax.Array, jax.Array]]]:
    """Each slot's logits, and its last token's keys and values; reads only the live part of the KV cache."""
    offset = shape.num_prefix_tokens

    def decode(live: int, slots: Slots) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        layers = []
        for index, cache in enumerate(slots.caches):
            size = cache.key.shape[3] * shape.row_tokens
            entries = kv_cache.entry_positions(size, slots.position)[:, : min(live, size)]
            entries = kv_cache.in_row_order(entries, shape.row_tokens)
            sources = [(cache, jnp.where(entries >= 0, entries + offset, -1))]
            if slots.prefix:
                prefix_positions = jnp.arange(offset, dtype=jnp.int32)
                sources.append((slots.prefix[index], jnp.broadcast_to(prefix_positions, (shape.num_slots, offset))))
            layers.append(sources)
        hidden, new_entries = model.decode(slots.last_token, offset + slots.position, layers, layout=layout)
        return model.logits(hidden), new_entries

    lengths = shape.live_lengths
    longest = jnp.where(busy, slots.position, 0).max()
    branches = [lambda slots, live=live: decode(live, slots) for live in lengths]
    return jax.lax.switch(jnp.searchsorted(jnp.asarray(lengths, jnp.int32), longest), branches, slots)


def _move_finished(slots: Slots, finished: Finished, shape: SlotShape) -> tuple[Slots, Finished]:
    """Moves done traces to the host's buffer, as far as it has room, and frees their slots."""
    rank = jnp.cumsum(slots.done, dtype=jnp.int32) - 1
    moves = slots.done & (finished.count[0] + rank < shape.buffer_rows)
    order = jnp.argsort(~moves, stable=True).astype(jnp.int32)
    fields = ("trace", "tokens", "length", "stopped", "logprob", "entropy", "token_logprobs", "token_entropies")
    first = finished.count[0]

    def move(index: jax.Array, buffers: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def write(name: str) -> jax.Array:
            row = jax.lax.dynamic_slice_in_dim(getattr(slots, name), order[index], 1)
            return jax.lax.dynamic_update_slice_in_dim(buffers[name], row, first + index, axis=0)

        return {name: write(name) for name in fields}

    count = moves.sum(dtype=jnp.int32)
    buffers = jax.lax.fori_loop(0, count, move, {name: getattr(finished, name) for name in fields})
    slots = dataclasses.replace(slots, trace=jnp.where(moves, FREE, slots.trace), done=slots.done & ~moves)
    return slots, dataclasses.replace(finished, count=finished.count + count, **buffers)


def _empty_finished(shape: SlotShape) -> Finished:
    rows = jnp.zeros(shape.buffer_rows, jnp.int32)
    zero = rows[:1]
    return Finished(
        count=zero,
        trace=rows,
        tokens=jnp.zeros((shape.buffer_rows, shape.max_new_tokens), jnp.int32),
        length=rows,
        stopped=rows.astype(bool),
        logprob=rows.astype(jnp.float32),
        entropy=rows.astype(jnp.float32),
        token_logprobs=jnp.zeros((shape.buffer_rows, shape.num_scored_tokens), jnp.float16),
        token_entropies=jnp.zeros((shape.buffer_rows, shape.num_scored_tokens), jnp.float16),
        num_left=zero,
        num_started=zero,
        num_steps=zero,
        num_decoded=zero,
        num_full_steps=zero,
        num_full_decoded=zero,
    )


def _count_step(queue: Queue, slots: Slots, finished: Finished) -> Finished:
    busy = _busy(slots).sum(keepdims=True, dtype=jnp.int32)
    full = ((slots.num_started < queue.num_traces) | queue.has_more).astype(jnp.int32)
    return dataclasses.replace(
        finished,
        num_steps=finished.num_steps + 1,
        num_decoded=finished.num_decoded + busy,
        num_full_steps=finished.num_full_steps + full,
        num_full_decoded=finished.num_full_decoded + full * busy,
    )
