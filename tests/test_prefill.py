"""The pool of prompts: a ring on the device against the set of its entries in use."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tpt_jax.models.attention import KVCache
from tpt_jax.think.prefill import fill_pool
from tpt_jax.think.state import Prompts, Queue, Slots, SlotShape

NUM_QUESTIONS, MAX_PROMPT = 12, 6
SHAPE = SlotShape(
    num_slots=1,
    num_questions=NUM_QUESTIONS,
    num_traces=72,
    num_prefix_tokens=0,
    max_prompt_tokens=MAX_PROMPT,
    max_new_tokens=4,
    prefills_per_question=2,
)
# A batch is two blocks of 6 tokens, or of 16; the pool has room for two batches, and for half of the prompts of slots.
SHAPES = (
    dataclasses.replace(SHAPE, prefill_tokens=12, traces_per_prefill=3),
    dataclasses.replace(SHAPE, prefill_tokens=24, num_slots=3, tile=16),
)


class Echo:
    """Stands in for a model: the key of a token is the token, its value the position."""

    def prefill(self, tokens: jax.Array, positions: jax.Array, *_: Any, **__: Any) -> list[tuple[jax.Array, jax.Array]]:
        return [(tokens.astype(jnp.float32)[None, :, None, None], positions.astype(jnp.float32)[None, :, None, None])]


@functools.partial(jax.jit, static_argnames="shape")
def fill(prompts: Prompts, queue: Queue, slots: Slots, shape: SlotShape) -> Slots:
    layout: Any = None
    model: Any = Echo()
    return fill_pool(model, prompts, queue, slots, shape, layout)


def record(kind: Any, **fields: Any) -> Any:
    """An instance whose other fields are not used."""
    return kind(**{**{field.name: np.zeros(0, np.float32) for field in dataclasses.fields(kind)}, **fields})


class Ring:
    """Where prompts go, by keeping the set of entries in use."""

    def __init__(self, lengths: Sequence[int], shape: SlotShape):
        self.lengths, self.shape = lengths, shape
        self.starts: list[int] = []
        self.head = 0

    def fill(self, num_prompts: int, oldest_needed: int) -> None:
        """Prefills prompts while there is room; those before `oldest_needed` have been copied by all their traces."""
        few, many = self.shape.prefill_batches
        while len(self.starts) < num_prompts:
            in_use: set[int] = set()
            for start, length in list(zip(self.starts, self.lengths, strict=False))[oldest_needed:]:
                in_use |= set(range(start, start + length))
            places = [place for place in (self.head, 0) if not in_use & set(range(place, place + many))]
            places = [place for place in places if place + many <= self.shape.pool_tokens]
            if not places:
                break
            self.head = places[0]
            waiting = self.lengths[len(self.starts) : num_prompts][: self.shape.prefills_per_batch]
            left = few if sum(waiting) <= few else many
            for length in waiting:
                if length > left:
                    break
                self.starts.append(self.head)
                self.head, left = self.head + length, left - length


@settings(deadline=None, max_examples=60)
@given(
    shape=st.sampled_from(SHAPES),
    lengths=st.lists(st.integers(1, MAX_PROMPT), min_size=NUM_QUESTIONS, max_size=NUM_QUESTIONS),
    order=st.permutations([*range(NUM_QUESTIONS)] * 2),
    num_traces=st.lists(st.integers(1, 3), min_size=2 * NUM_QUESTIONS, max_size=2 * NUM_QUESTIONS),
    num_requested=st.integers(1, 2 * NUM_QUESTIONS),
    events=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), max_size=20),
)
def test_prompts_stay_in_the_pool_until_their_traces_have_started(
    shape: SlotShape,
    lengths: list[int],
    order: list[int],
    num_traces: list[int],
    num_requested: int,
    events: list[tuple[int, int]],
) -> None:
    """Prompts are requested, and traces started, a few at a time; at last all of them."""
    tokens = 100 * (1 + np.arange(NUM_QUESTIONS, dtype=np.int32))[:, None] + np.arange(MAX_PROMPT, dtype=np.int32)
    prompts = record(Prompts, tokens=tokens, lengths=np.asarray(lengths, np.int32))
    trace_prefills = np.repeat(np.arange(len(order), dtype=np.int32), num_traces)
    pool = jnp.zeros((1, 1, 1, shape.pool_tokens + MAX_PROMPT, 1), jnp.float32)
    zero = np.zeros(1, np.int32)
    slots = record(
        Slots,
        pool=[KVCache(pool, pool)],
        num_prefilled=zero,
        pool_head=zero,
        prefill_starts=np.zeros(len(order), np.int32),
        num_started=zero,
    )
    ring = Ring([lengths[question] for question in order], shape)
    num_started = 0
    for step in range(len(events) + 100):
        more, start = events[step] if step < len(events) else (len(order), 6)
        num_requested = min(len(order), num_requested + more)
        requested = sum(num_traces[:num_requested])
        queue = record(
            Queue,
            prefill_questions=np.asarray(order, np.int32),
            trace_prefills=np.pad(trace_prefills, (0, shape.num_traces - len(trace_prefills))),
            num_prefills=np.asarray([num_requested], np.int32),
            num_traces=np.asarray([requested], np.int32),
        )
        slots = fill(prompts, queue, dataclasses.replace(slots, num_started=np.full(1, num_started, np.int32)), shape)
        oldest_needed = int(trace_prefills[num_started]) if num_started < requested else len(ring.starts)
        ring.fill(num_requested, oldest_needed)
        num_prefilled = int(slots.num_prefilled[0])
        assert np.asarray(slots.prefill_starts)[:num_prefilled].tolist() == ring.starts
        keys, positions = (np.asarray(x)[0, 0, 0, :, 0] for x in (slots.pool[0].key, slots.pool[0].value))
        for prefill in range(oldest_needed, num_prefilled):
            question, first = order[prefill], ring.starts[prefill]
            region = slice(first, first + lengths[question])
            assert keys[region].tolist() == tokens[question, : lengths[question]].tolist()
            assert positions[region].tolist() == list(range(lengths[question]))
        num_started = min(num_started + start, sum(num_traces[:num_prefilled]))
        if num_started == sum(num_traces):
            break
    assert num_started == sum(num_traces)  # everything was prefilled
