"""The key-value cache: one row a sequence, written in place, one entry a token.

Layers that see a sliding window keep no more than the window: entry i of S holds the newest position p with p % S = i.
For layers that see everything S is the longest sequence's length and entry and position are one.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.attention import KVCache

CacheType = Literal["compute", "int8"]  # the type to compute in, or int8 with a scale for each token and head


def layer_sizes(config: ModelConfig, length: int) -> list[int]:
    """For each layer of the period, how many entries its cache needs for sequences of this length."""
    return [length if window is None else min(length, window) for window in config.windows[: config.period]]


def empty(
    config: ModelConfig, rows: int, sizes: Sequence[int], dtype: jnp.dtype, cache_type: CacheType
) -> list[KVCache]:
    """Caches that hold nothing yet: for each layer of the period and those that follow it by whole periods, keys and
    values [L, B, K, S, H] with S as its size says."""
    heads, width = config.num_kv_heads, config.head_dim
    layers = [len(range(place, config.num_layers, config.period)) for place in range(config.period)]
    shapes = [(count, rows, heads, size, width) for count, size in zip(layers, sizes, strict=True)]
    return [_empty(shape, dtype, cache_type) for shape in shapes]


def _empty(shape: tuple[int, ...], dtype: jnp.dtype, cache_type: CacheType) -> KVCache:
    if cache_type == "int8":
        scale = jnp.zeros(shape[:-1], jnp.float32)
        return KVCache(jnp.zeros(shape, jnp.int8), jnp.zeros(shape, jnp.int8), scale, scale)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def entry_positions(size: int, positions: Int[Array, " B"]) -> Int[Array, "B S"]:
    """Which position each entry holds where the next one to come is `positions`; negative: none yet."""
    newest = positions[:, None] - 1
    return newest - (newest - jnp.arange(size, dtype=positions.dtype)[None]) % size


def write_tokens(
    cache: KVCache, key: Float[Array, "L B K H"], value: Float[Array, "L B K H"], positions: Int[Array, " B"]
) -> KVCache:
    """The same cache with one more token in each row, in place.

    One update a row: positions differ, and a scatter over rows is laid out anew by XLA's TPU compiler.
    """
    new = _like(cache, key[:, :, :, None], value[:, :, :, None])  # [L, B, K, 1, H]
    entries = positions % cache.key.shape[3]

    # XLA's TPU compiler must not see that each row is written once: it takes that for the whole cache, and fails.
    rows = jax.lax.optimization_barrier(jnp.arange(len(positions), dtype=positions.dtype))

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        def write_row(index: jax.Array, old: jax.Array) -> jax.Array:
            row = rows[index]
            zero = jnp.zeros_like(row)
            start = (zero, row, zero, entries[row], zero)[: old.ndim]
            return jax.lax.dynamic_update_slice(old, jax.lax.dynamic_slice_in_dim(new, row, 1, axis=1), start)

        return jax.lax.fori_loop(0, len(positions), write_row, old)

    return jax.tree.map(write, cache, new)


def write_prompts(
    pool: KVCache, key: Float[Array, "L A T K H"], value: Float[Array, "L A T K H"], row: jax.Array
) -> KVCache:
    """A pool of prompts, its entries being positions, with A prompts more from a row on."""
    new = _like(pool, key.swapaxes(2, 3), value.swapaxes(2, 3))
    return jax.tree.map(lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, row, axis=1), pool, new)


def copy_prompt(cache: KVCache, pool: KVCache, row: jax.Array, source: jax.Array, length: jax.Array) -> KVCache:
    """The cache with a prompt of this length, from a row of the pool, in a row of its own."""
    size, longest = cache.key.shape[3], pool.key.shape[3]
    newest = jnp.clip(entry_positions(size, length[None])[0], 0, longest - 1)

    def copy(old: jax.Array, prompts: jax.Array) -> jax.Array:
        prompt = jax.lax.dynamic_slice_in_dim(prompts, source, 1, axis=1)
        if size < longest:  # else entry and position are one in both
            prompt = jnp.take(prompt, newest, axis=3)
        return jax.lax.dynamic_update_slice_in_dim(old, prompt, row, axis=1)

    return jax.tree.map(copy, cache, pool)


def _like(cache: KVCache, key: jax.Array, value: jax.Array) -> KVCache:
    """Keys and values in the cache's own type."""
    if cache.key_scale is None:
        return KVCache(key.astype(cache.key.dtype), value.astype(cache.value.dtype))
    (key, key_scale), (value, value_scale) = _quantized(key), _quantized(value)
    return KVCache(key, value, key_scale, value_scale)


def _quantized(x: Float[Array, "... H"]) -> tuple[Int[Array, "... H"], Float[Array, "..."]]:
    """int8, and the scale to multiply it with: the largest magnitude of a head's vector becomes 127."""
    wide = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(wide).max(axis=-1), 1e-8) / 127.0
    return jnp.round(wide / scale[..., None]).astype(jnp.int8), scale
