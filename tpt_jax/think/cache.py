"""The KV cache: one row per sequence, one entry per token, updated in place.

A sliding-window layer keeps only its window: of S entries, entry i holds the newest position p with p % S == i.
A global layer has S >= the sequence length, so entry i holds position i.
"""

from collections.abc import Sequence
from typing import Any, Literal

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
    config: ModelConfig,
    rows: int,
    sizes: Sequence[int],
    dtype: jnp.dtype,
    cache_type: CacheType,
    row_tokens: int = 1,
) -> list[KVCache]:
    """Zeroed caches, one per group of layers, with S from `sizes`, and W = row_tokens."""

    def zeros(layers: int, size: int) -> KVCache:
        entries = (layers, rows, config.num_kv_heads, -(-size // row_tokens), row_tokens * config.head_dim)
        if cache_type == "compute":
            return KVCache(jnp.zeros(entries, dtype), jnp.zeros(entries, dtype))
        scale = jnp.zeros((*entries[:3], row_tokens, entries[3]), jnp.float32)
        return KVCache(jnp.zeros(entries, jnp.int8), jnp.zeros(entries, jnp.int8), scale, scale)

    return [zeros(*pair) for pair in zip(group_sizes(config, len(sizes)), sizes, strict=True)]


def entry_positions(size: int, positions: Int[Array, " B"]) -> Int[Array, "B S"]:
    """The position each entry holds when `positions` is next to be written; negative: still empty."""
    newest = positions[:, None] - 1
    return newest - (newest - jnp.arange(size, dtype=positions.dtype)[None]) % size


def in_row_order(entries: Int[Array, "B S"], row_tokens: int) -> Int[Array, "B S"]:
    """The first tokens of all rows, then the second ones, and so on, as attention takes them."""
    return entries.reshape(len(entries), -1, row_tokens).swapaxes(1, 2).reshape(entries.shape)


def write_tokens(
    caches: Sequence[KVCache],
    entries: Sequence[tuple[Float[Array, "L B K H"], Float[Array, "L B K H"]]],
    positions: Int[Array, " B"],
) -> list[KVCache]:
    """Writes one token per sequence, in place; `entries` has the keys and values for each of the caches.

    One update per sequence: their positions differ, and XLA's TPU compiler changes the cache's layout for a scatter.
    """
    new = [
        _convert(cache, key[:, :, :, None], value[:, :, :, None])  # [L, B, K, 1, H]
        for cache, (key, value) in zip(caches, entries, strict=True)
    ]
    # The barrier hides from XLA's TPU compiler that the loop writes every row once: it would turn that into an update
    # of the whole cache, and fail.
    indices = jax.lax.optimization_barrier(jnp.arange(len(positions), dtype=positions.dtype))

    def write_token(index: jax.Array, caches: list[KVCache]) -> list[KVCache]:
        sequence = indices[index]

        def write(cache: KVCache, new: KVCache) -> KVCache:
            row_tokens = cache.key.shape[4] // new.key.shape[4]
            entry = positions[sequence] % (cache.key.shape[3] * row_tokens)
            token = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, sequence, 1, axis=1), new)
            return _write(cache, token, sequence, entry // row_tokens, entry % row_tokens)

        return [write(*pair) for pair in zip(caches, new, strict=True)]

    return jax.lax.fori_loop(0, len(positions), write_token, list(caches))


def write_prompts(
    pool: KVCache, key: Float[Array, "L T K H"], value: Float[Array, "L T K H"], start: Int[Array, ""]
) -> KVCache:
    """Writes prompts that lie one after the other into the pool's only sequence, from the entry `start` on.

    In the pool W = 1.
    """
    zero = jnp.zeros_like(start)
    return _write(pool, _convert(pool, *(x[:, None].swapaxes(2, 3) for x in (key, value))), zero, start, zero)


def copy_prompt(
    cache: KVCache, pool: KVCache, sequence: jax.Array, start: jax.Array, length: jax.Array, max_length: int
) -> KVCache:
    """Copies a prompt of this length, which starts at an entry of the pool, to a sequence of the cache.

    Entries beyond its length are copied too; the cache counts them as empty.
    """
    row_tokens = cache.key.shape[4] // pool.key.shape[4]
    size = cache.key.shape[3] * row_tokens
    positions = jnp.clip(entry_positions(size, length[None])[0], 0, max_length - 1)

    def read(prompts: jax.Array | None, axis: int) -> Any:
        """The prompt's entries or scales, [L, 1, K, R, W, ...]."""
        if prompts is None:
            return None
        prompt = jax.lax.dynamic_slice_in_dim(prompts, start, max_length, axis=axis)
        if size < max_length:  # otherwise entry i holds position i in the cache too
            prompt = jnp.take(prompt, positions, axis=axis)
        prompt = jnp.moveaxis(prompt, axis, 3)
        prompt = jnp.pad(prompt, [(0, -prompt.shape[3] % row_tokens if axis == 3 else 0) for axis in range(5)])
        return prompt.reshape(*prompt.shape[:3], -1, row_tokens, prompt.shape[4])

    def read_entries(prompts: jax.Array) -> jax.Array:
        return jax.lax.collapse(read(prompts, 3), 4)

    def read_scales(prompts: jax.Array | None) -> Any:
        return None if prompts is None else read(prompts, 4)[..., 0].swapaxes(3, 4)

    entries, scales = (pool.key, pool.value), (pool.key_scale, pool.value_scale)
    prompt = KVCache(*map(read_entries, entries), *map(read_scales, scales))
    zero = jnp.zeros_like(sequence)
    return _write(cache, prompt, sequence, zero, zero)


def _write(cache: KVCache, new: KVCache, sequence: jax.Array, row: jax.Array, place: jax.Array) -> KVCache:
    """Writes entries of one sequence, in place: rows from `row` on, or a single token at a place in a row."""
    zero = jnp.zeros_like(sequence)
    entry_start = (zero, sequence, zero, row, place * new.key.shape[4])
    scale_start = (zero, sequence, zero, place, row)

    def write(old: jax.Array | None, new: jax.Array | None, start: tuple[jax.Array, ...]) -> Any:
        return None if old is None or new is None else jax.lax.dynamic_update_slice(old, new, start)

    return KVCache(
        write(cache.key, new.key, entry_start),
        write(cache.value, new.value, entry_start),
        write(cache.key_scale, new.key_scale, scale_start),
        write(cache.value_scale, new.value_scale, scale_start),
    )


def _convert(cache: KVCache, key: Float[Array, "L B K S H"], value: Float[Array, "L B K S H"]) -> KVCache:
    """Keys and values in the cache's own type, W = 1."""
    if cache.key_scale is None:
        return KVCache(key.astype(cache.key.dtype), value.astype(cache.value.dtype))
    (key, key_scale), (value, value_scale) = _quantize(key), _quantize(value)
    return KVCache(key, value, key_scale[..., None, :], value_scale[..., None, :])


def _quantize(x: Float[Array, "... H"]) -> tuple[Int[Array, "... H"], Float[Array, "..."]]:
    """int8 values and their scale: the largest magnitude in each head's vector maps to 127."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis=-1), 1e-8) / 127.0
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale
