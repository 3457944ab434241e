"""Prefill on the device: computes prompts' keys and values shortly before their first traces start.

Prompts are prefilled in batches of tokens, one after the other without padding, and lie so in the pool:

    batch   |-- prompt 4 --|- prompt 5 -|----- prompt 6 -----|- - -|     the rest is too short for prompt 7
    pool    |  .  .  |- 2 -|----- 3 ----|-- prompt 4 --|- prompt 5 -|----- prompt 6 -----|  .  .  |
                     oldest prompt still needed                                          head

The pool is a ring: a batch goes where no prompt is that a trace has still to copy.

Everything here is written for one data shard; dimension letters as in state.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from tpt_jax.models.attention import KVCache
from tpt_jax.models.inference import InferenceTransformer
from tpt_jax.runtime.sharding import Layout
from tpt_jax.think import cache as kv_cache
from tpt_jax.think.state import Prompts, Queue, Slots, SlotShape


def prefill_prefix(model: InferenceTransformer, prefix: Int[Array, " S"], layout: Layout) -> list[KVCache]:
    """Keys and values of the shared prefix, for each group of layers; an empty list for an empty prefix."""
    positions = jnp.arange(len(prefix), dtype=jnp.int32)
    if not len(prefix):
        return []
    layers = model.prefill(prefix, positions, jnp.zeros_like(positions), max_segment=len(prefix), layout=layout)
    return [KVCache(key.swapaxes(1, 2), value.swapaxes(1, 2)) for key, value in layers]


def fill_pool(
    model: InferenceTransformer, prompts: Prompts, queue: Queue, slots: Slots, shape: SlotShape, layout: Layout
) -> Slots:
    """Prefills prompts in the order of the queue while the pool has room."""
    next_trace = jnp.minimum(slots.num_started[0], shape.num_traces - 1)
    all_started = slots.num_started[0] >= queue.num_traces[0]
    oldest_needed = jnp.where(all_started, slots.num_prefilled[0], queue.trace_prefills[next_trace])

    def step(size: int, slots: Slots) -> Slots:
        return prefill_batch(model, prompts, queue, slots, size=size, shape=shape, layout=layout)

    few, many = shape.prefill_batches

    def has_room(slots: Slots) -> Bool[Array, ""]:
        return (slots.num_prefilled[0] < queue.num_prefills[0]) & (_place(slots, oldest_needed, many, shape) >= 0)

    def prefill(slots: Slots) -> Slots:
        slots = dataclasses.replace(slots, pool_head=_place(slots, oldest_needed, many, shape)[None])
        waiting = _waiting_lengths(prompts, queue, slots, shape).sum()
        return jax.lax.cond(waiting <= few, functools.partial(step, few), functools.partial(step, many), slots)

    return jax.lax.while_loop(has_room, prefill, slots)


def _place(slots: Slots, oldest_needed: Int[Array, ""], size: int, shape: SlotShape) -> Int[Array, ""]:
    """Where in the pool a batch of this size can be written; -1 if nowhere yet."""
    head = slots.pool_head[0]
    tail = slots.prefill_starts[jnp.minimum(oldest_needed, shape.num_prefills - 1)]
    is_empty = oldest_needed >= slots.num_prefilled[0]
    # In use: tail to head, or tail to the end and the start to head. Head and tail are equal if all is in use.
    is_wrapped = ~is_empty & (head <= tail)
    behind = head + size <= jnp.where(is_wrapped, tail, shape.pool_tokens)
    at_start = ~is_wrapped & (is_empty | (size <= tail))
    return jnp.where(behind, head, jnp.where(at_start, 0, -1))


def _waiting_lengths(prompts: Prompts, queue: Queue, slots: Slots, shape: SlotShape) -> Int[Array, " A"]:
    """Tokens of the next prompts to prefill, as many as one batch takes at most; 0 beyond the queue's end."""
    rows = slots.num_prefilled[0] + jnp.arange(shape.prefills_per_batch, dtype=jnp.int32)
    questions = queue.prefill_questions[jnp.minimum(rows, shape.num_prefills - 1)]
    return jnp.where(rows < queue.num_prefills[0], prompts.lengths[questions], 0)


def prefill_batch(
    model: InferenceTransformer,
    prompts: Prompts,
    queue: Queue,
    slots: Slots,
    *,
    size: int,
    shape: SlotShape,
    layout: Layout,
) -> Slots:
    """Prefills the next prompts that fit into a batch of this many tokens, and writes them at the pool's head."""
    first, head = slots.num_prefilled[0], slots.pool_head[0]
    lengths = _waiting_lengths(prompts, queue, slots, shape)
    ends = jnp.cumsum(lengths, dtype=jnp.int32)
    count = ((ends <= size) & (lengths > 0)).sum(dtype=jnp.int32)
    starts = ends - lengths

    columns = jnp.arange(size, dtype=jnp.int32)
    prompt = jnp.searchsorted(ends, columns, side="right").astype(jnp.int32)  # a prompt that does not fit is cut off,
    row = jnp.minimum(prompt, len(lengths) - 1)  # and what is beyond the last one repeats it: neither is ever read
    question = queue.prefill_questions[jnp.minimum(first + row, shape.num_prefills - 1)]
    offsets = jnp.clip(columns - starts[row], 0, shape.max_prompt_tokens - 1)
    layers = model.prefill(
        prompts.tokens[question, offsets],
        shape.num_prefix_tokens + offsets,
        prompt,
        max_segment=shape.prefill_block,
        layout=layout,
        prefix=slots.prefix,
    )
    taken = jnp.arange(len(lengths), dtype=jnp.int32)
    written = jnp.where(taken < count, first + taken, shape.num_prefills)  # beyond the end: dropped
    return dataclasses.replace(
        slots,
        pool=[
            kv_cache.write_prompts(pool, key, value, head)
            for pool, (key, value) in zip(slots.pool, layers, strict=True)
        ],
        num_prefilled=slots.num_prefilled + count,
        pool_head=slots.pool_head + jnp.where(count > 0, ends[count - 1], 0),
        prefill_starts=slots.prefill_starts.at[written].set(head + starts, mode="drop"),
    )
