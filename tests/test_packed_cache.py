"""KV caches with several tokens in a row, as on a TPU, against caches with one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from tpt_jax.models.attention import attend_cached
from tpt_jax.models.inference import _first_rows, _sees
from tpt_jax.models.published import PUBLISHED
from tpt_jax.think import cache as kv_cache
from tpt_jax.think.cache import CacheType
from tpt_jax.think.slot_program import on_platform
from tpt_jax.think.state import SlotShape

CONFIG = dataclasses.replace(TINY["llama"], num_layers=2)  # two key-value heads of 8 numbers
NUM_LAYERS, NUM_SEQUENCES, MAX_PROMPT = 2, 3, 7
PROMPTS = ((0, 7), (7, 4), (11, 6))  # start in the pool, and length


def attended(row_tokens: int, cache_type: CacheType, size: int, live: int) -> np.ndarray:
    """What new tokens see, after prompts were copied from the pool and tokens written one by one, past the cache's end
    if it is a window."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    heads, head_dim = CONFIG.num_kv_heads, CONFIG.head_dim
    (pool,) = kv_cache.empty(CONFIG, 1, [20 + MAX_PROMPT], jnp.dtype("float32"), cache_type)[:1]
    pool = jax.tree.map(lambda x: jnp.repeat(x[:1], NUM_LAYERS, axis=0), pool)
    pool = kv_cache.write_prompts(
        pool, draw(NUM_LAYERS, 20, heads, head_dim), draw(NUM_LAYERS, 20, heads, head_dim), jnp.int32(0)
    )
    (cache,) = kv_cache.empty(CONFIG, NUM_SEQUENCES, [size], jnp.dtype("float32"), cache_type, row_tokens)[:1]
    cache = jax.tree.map(lambda x: jnp.repeat(x[:1], NUM_LAYERS, axis=0), cache)
    for sequence, (first, length) in enumerate(PROMPTS):
        prompt = (jnp.int32(first), jnp.int32(length), MAX_PROMPT)
        cache = kv_cache.copy_prompt(cache, pool, jnp.int32(sequence), *prompt)
    positions = jnp.asarray([length for _, length in PROMPTS], jnp.int32)
    for _ in range(3):
        entry = (draw(NUM_LAYERS, NUM_SEQUENCES, heads, head_dim), draw(NUM_LAYERS, NUM_SEQUENCES, heads, head_dim))
        (cache,) = kv_cache.write_tokens([cache], [entry], positions)
        positions = positions + 1
    entries = kv_cache.in_row_order(kv_cache.entry_positions(size, positions)[:, :live], row_tokens)
    layer = _first_rows(cache, jnp.int32(1), live // row_tokens)
    query = draw(NUM_SEQUENCES, 1, CONFIG.num_heads, head_dim)
    key, value = (draw(NUM_SEQUENCES, 1, heads, head_dim) for _ in range(2))
    return np.asarray(attend_cached(query, key, value, [(layer, _sees(positions, entries, 6))], CONFIG))


@pytest.mark.parametrize("cache_type", ["compute", "int8"])
@pytest.mark.parametrize(("size", "live"), [(24, 12), (8, 8)], ids=["all", "window"])
def test_rows_of_several_tokens_hold_the_same(cache_type: CacheType, size: int, live: int) -> None:
    expected = attended(1, cache_type, size, live)
    for row_tokens in (2, 4):
        np.testing.assert_allclose(attended(row_tokens, cache_type, size, live), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("cache_type", "tile_rows"), [("compute", 8), ("int8", 32)])
@pytest.mark.parametrize(("model", "row_tokens"), [("llama3.2-1b", 2), ("llama3.1-8b", 1), ("gemma2-2b", 1)])
def test_rows_on_a_tpu_are_whole_tiles(model: str, row_tokens: int, cache_type: CacheType, tile_rows: int) -> None:
    """A tile has four times as many rows of int8 entries."""
    shape = SlotShape(8, 8, 8, num_prefix_tokens=0, max_prompt_tokens=320, max_new_tokens=512, cache_type=cache_type)
    placed = on_platform(shape, PUBLISHED[model], "tpu")
    assert placed.row_tokens == row_tokens
    assert all(length % (tile_rows * row_tokens) == 0 for length in placed.live_lengths)
