"""The KV cache: one row per sequence, one entry per token, updated in place.

A sliding-window layer keeps only its window: of S entries, entry i holds the newest position p with p % S == i.
A global layer has S >= the sequence length, so entry i holds position i.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.attention import KVCache

CacheType = Literal["compute", "int8"]  # the compute dtype, or int8 with one scale per token and head


def layer_sizes(config: ModelConfig, length: int) -> list[int]:
    """Cache entries that each layer of the period needs for sequences of this length."""
    return [length if window is None else min(length, window) for window in config.windows[: config.period]]


def empty(
    config: ModelConfig, rows: int, sizes: Sequence[int], dtype: jnp.dtype, cache_type: CacheType
) -> list[KVCache]:
    """Zeroed caches, one per layer of the period: keys and values [L, B, K, S, H], S from `sizes`."""
    layer_counts = [len(range(index, config.num_layers, config.period)) for index in range(config.period)]
    shapes = [
        (count, rows, config.num_kv_heads, size, config.head_dim)
        for count, size in zip(layer_counts, sizes, strict=True)
    ]
    return [_zeros(shape, dtype, cache_type) for shape in shapes]


def _zeros(shape: tuple[int, ...], dtype: jnp.dtype, cache_type: CacheType) -> KVCache:
    if cache_type == "int8":
        scale = jnp.zeros(shape[:-1], jnp.float32)
        return KVCache(jnp.zeros(shape, jnp.int8), jnp.zeros(shape, jnp.int8), scale, scale)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def entry_positions(size: int, positions: Int[Array, " B"]) -> Int[Array, "B S"]:
    """The position each entry holds when `positions` is next to be written; negative: still empty."""
    newest = positions[:, None] - 1
    return newest - (newest - jnp.arange(size, dtype=positions.dtype)[None]) % size


def write_tokens(
    cache: KVCache, key: Float[Array, "L B K H"], value: Float[Array, "L B K H"], positions: Int[Array, " B"]
) -> KVCache:
    """Writes one token per row, in place.

    One update per row: the rows' positions differ, and XLA's TPU compiler changes the cache's layout for a scatter.
    """
    new = _convert(cache, key[:, :, :, None], value[:, :, :, None])  # [L, B, K, 1, H]
    entries = positions % cache.key.shape[3]

    # The barrier hides from XLA's TPU compiler that the loop writes every row once: it would turn that into an update
    # of the whole cache, and fail.
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
    """Writes A prompts into the pool, starting at a row. In a pool, entry i holds position i."""
    new = _convert(pool, key.swapaxes(2, 3), value.swapaxes(2, 3))
    return jax.tree.map(lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, row, axis=1), pool, new)


def copy_prompt(cache: KVCache, pool: KVCache, row: jax.Array, pool_row: jax.Array, length: jax.Array) -> KVCache:
    """Copies a prompt of this length from a pool row to a cache row."""
    size, pool_size = cache.key.shape[3], pool.key.shape[3]
    positions = jnp.clip(entry_positions(size, length[None])[0], 0, pool_size - 1)

    def copy(old: jax.Array, prompts: jax.Array) -> jax.Array:
        prompt = jax.lax.dynamic_slice_in_dim(prompts, pool_row, 1, axis=1)
        if size < pool_size:  # otherwise entry i holds position i in the cache too
            prompt = jnp.take(prompt, positions, axis=3)
        return jax.lax.dynamic_update_slice_in_dim(old, prompt, row, axis=1)

    return jax.tree.map(copy, cache, pool)


def _convert(cache: KVCache, key: jax.Array, value: jax.Array) -> KVCache:
    """Keys and values in the cache's own type."""
    if cache.key_scale is None:
        return KVCache(key.astype(cache.key.dtype), value.astype(cache.value.dtype))
    (key, key_scale), (value, value_scale) = _quantize(key), _quantize(value)
    return KVCache(key, value, key_scale, value_scale)


def _quantize(x: Float[Array, "... H"]) -> tuple[Int[Array, "... H"], Float[Array, "..."]]:
    """int8 values and their scale: the largest magnitude in each head's vector maps to 127."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis=-1), 1e-8) / 127.0
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale
