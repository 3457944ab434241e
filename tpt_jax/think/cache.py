"""The KV cache: one row per sequence, one entry per token, updated in place.

A sliding-window layer keeps only its window: of S entries, entry i holds the newest position p with p % S == i.
A global layer has S >= the sequence length, so entry i holds position i.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.attention import KVCache
from tpt_jax.models.inference import group_sizes

CacheType = Literal["compute", "int8"]  # the compute dtype, or int8 with one scale per token and head


def layer_sizes(config: ModelConfig, length: int) -> list[int]:
    """Cache entries that each layer needs for sequences of this length."""
    return [length if window is None else min(length, window) for window in config.windows]


def empty(
    config: ModelConfig, rows: int, sizes: Sequence[int], dtype: jnp.dtype, cache_type: CacheType
) -> list[KVCache]:
    """Zeroed caches, one per group of layers: keys and values [L, B, K, S, H], S from `sizes`."""
    shapes = [
        (count, rows, config.num_kv_heads, size, config.head_dim)
        for count, size in zip(group_sizes(config, len(sizes)), sizes, strict=True)
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
    caches: Sequence[KVCache],
    entries: Sequence[tuple[Float[Array, "L B K H"], Float[Array, "L B K H"]]],
    positions: Int[Array, " B"],
) -> list[KVCache]:
    """Writes one token per row, in place; `entries` has the keys and values for each of the caches.

    One update per row: the rows' positions differ, and XLA's TPU compiler changes the cache's layout for a scatter.
    """
    new = [
        _convert(cache, key[:, :, :, None], value[:, :, :, None])  # [L, B, K, 1, H]
        for cache, (key, value) in zip(caches, entries, strict=True)
    ]
    # The barrier hides from XLA's TPU compiler that the loop writes every row once: it would turn that into an update
    # of the whole cache, and fail.
    rows = jax.lax.optimization_barrier(jnp.arange(len(positions), dtype=positions.dtype))

    def write_row(index: jax.Array, caches: list[KVCache]) -> list[KVCache]:
        row = rows[index]
        zero = jnp.zeros_like(row)

        def write(old: jax.Array, new: jax.Array, entry: jax.Array) -> jax.Array:
            start = (zero, row, zero, entry, zero)[: old.ndim]
            return jax.lax.dynamic_update_slice(old, jax.lax.dynamic_slice_in_dim(new, row, 1, axis=1), start)

        entries = [positions[row] % cache.key.shape[3] for cache in caches]
        return [
            jax.tree.map(functools.partial(write, entry=entry), *pair)
            for entry, *pair in zip(entries, caches, new, strict=True)
        ]

    return jax.lax.fori_loop(0, len(positions), write_row, list(caches))


def write_prompts(
    pool: KVCache, key: Float[Array, "L T K H"], value: Float[Array, "L T K H"], start: Int[Array, ""]
) -> KVCache:
    """Writes prompts that lie one after the other into the pool's only row, from the entry `start` on."""
    new = _convert(pool, *(x[:, None].swapaxes(2, 3) for x in (key, value)))
    return jax.tree.map(lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=3), pool, new)


def copy_prompt(
    cache: KVCache, pool: KVCache, row: jax.Array, start: jax.Array, length: jax.Array, max_length: int
) -> KVCache:
    """Copies a prompt of this length, which starts at an entry of the pool, to a cache row.

    Entries beyond its length are copied too; the cache counts them as empty.
    """
    size = cache.key.shape[3]
    positions = jnp.clip(entry_positions(size, length[None])[0], 0, max_length - 1)

    def copy(old: jax.Array, prompts: jax.Array) -> jax.Array:
        prompt = jax.lax.dynamic_slice_in_dim(prompts, start, max_length, axis=3)
        if size < max_length:  # otherwise entry i holds position i in the cache too
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
