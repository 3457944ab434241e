"""Attention, rotary position embedding and masks.

Shape letters: B batch, T query length, S key length, P prefix length, N query heads, K key-value heads, G = N / K,
H head dim, D embed, F feed-forward, V vocabulary, L layers, R rows of a KV cache, W tokens in a row (S = R W).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tpt_jax.models.architecture import LinearScaling, ModelConfig

MASKED = -2.0e38  # finite: a row that sees nothing must not become NaN


def rope_frequencies(config: ModelConfig, window: int | None) -> Float[Array, "H/2"]:
    """Radians per position for each pair of dimensions, on layers with this window.

    LLaMA 3.1 scaling follows Meta's llama-models (`apply_scaling`): wavelengths above original / low_freq_factor are
    multiplied by `factor`, those below original / high_freq_factor are unchanged, and those between are interpolated.
    Linear scaling multiplies all of them (Chen et al., arXiv 2306.15595).
    """
    theta, scaling = config.rope_theta, config.rope_scaling
    if window is not None and config.local_rope_theta is not None:
        theta, scaling = config.local_rope_theta, None
    frequencies = theta ** -(jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim)
    if scaling is None:
        return frequencies
    if isinstance(scaling, LinearScaling):
        return frequencies / scaling.factor
    wavelengths = 2 * math.pi / frequencies
    rotations = scaling.original_max_positions / wavelengths
    blend = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = jnp.clip(blend, 0.0, 1.0)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def rotate(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], frequencies: Float[Array, "H/2"]
) -> Float[Array, "B T N H"]:
    """Rotary position embedding; pairs dimension i with i + H/2, the convention of Hugging Face weights."""
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]  # [B, T, 1, H/2]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def softcap(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    return x if cap is None else cap * jnp.tanh(x / cap)


def segment_mask(segment_ids: Int[Array, "B T"], window: int | None = None) -> Bool[Array, "B T T"]:
    """Causal mask within packed segments: [b, t, s] is true if token t sees token s.

    Args:
      window: maximum number of visible tokens, the token itself included; None for no limit.
    """
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    distance = index[:, None] - index[None, :]
    near = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    return (segment_ids[:, :, None] == segment_ids[:, None, :]) & near[None]


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    config: ModelConfig,
) -> Float[Array, "B T N H"]:
    """Plain softmax attention with grouped queries; scores in fp32."""
    batch, length, num_heads, head_dim = query.shape
    grouped = query.reshape(batch, length, config.num_kv_heads, -1, head_dim)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, key, preferred_element_type=jnp.float32)
    scores = softcap(scores * config.attention_scale, config.attention_softcap)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
    mixed = jnp.einsum("BKGTS,BSKH->BTKGH", weights.astype(value.dtype), value)
    return mixed.reshape(batch, length, num_heads, head_dim)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of earlier tokens, for one layer or for several stacked on a leading axis L.

    A row holds W tokens side by side: a TPU stores rows of 128 numbers, and XLA would copy a cache with shorter rows,
    at every step, into a layout that wastes no memory. Token i is number i % W of row i // W.

    The cache of a prefix shared by all sequences has no B axis, and W = 1: one matrix product serves all queries.
    """

    key: Float[Array, "*B K R W*H"]
    value: Float[Array, "*B K R W*H"]
    key_scale: Float[Array, "*B K W R"] | None = None  # for int8 entries: the real key is key * key_scale
    value_scale: Float[Array, "*B K W R"] | None = None

    def row_tokens(self, config: ModelConfig) -> int:
        """W."""
        return self.key.shape[-1] // config.head_dim


def attend_cached(
    query: Float[Array, "B 1 N H"],
    key: Float[Array, "B 1 K H"],
    value: Float[Array, "B 1 K H"],
    kv_caches: Sequence[tuple[KVCache, Bool[Array, "B S"]]],
    config: ModelConfig,
) -> Float[Array, "B 1 N H"]:
    """Attention of one new token over read-only KV caches; its own key and value enter the softmax separately.

    Writing them to the cache first would carry, and copy, the cache through the layer scan.

    Args:
      key, value: the new token's own.
      kv_caches: caches of the earlier tokens, each with a mask of the entries that the new token sees: the first tokens
        of all rows, then the second ones.
    """
    batch, _, num_heads, head_dim = query.shape
    grouped = query.reshape(batch, config.num_kv_heads, -1, head_dim)
    own_key, own_value = key[:, 0], value[:, 0]  # [B, K, H]
    own = jnp.einsum("BKGH,BKH->BKG", grouped, own_key, preferred_element_type=jnp.float32)
    own = softcap(own * config.attention_scale, config.attention_softcap)
    all_scores = [
        jnp.where(
            mask.reshape(batch, 1, cache.row_tokens(config), 1, -1), _cache_scores(grouped, cache, config), MASKED
        )
        for cache, mask in kv_caches
    ]
    top = functools.reduce(jnp.maximum, (scores.max(axis=(2, 4)) for scores in all_scores), own)
    own = jnp.exp(own - top)
    all_weights = [jnp.exp(scores - top[:, :, None, :, None]) for scores in all_scores]
    total = sum((weights.sum(axis=(2, 4)) for weights in all_weights), own)
    mixed = own[..., None] * own_value[:, :, None].astype(jnp.float32)
    for weights, (cache, _) in zip(all_weights, kv_caches, strict=True):
        mixed = mixed + _weighted_values(weights, cache, query.dtype)
    return (mixed / total[..., None]).astype(query.dtype).reshape(batch, 1, num_heads, head_dim)


def _cache_scores(query: Float[Array, "B K G H"], cache: KVCache, config: ModelConfig) -> Float[Array, "B K W G R"]:
    batch, num_kv_heads, group, _ = query.shape
    key = cache.key.astype(query.dtype)  # XLA fuses the int8 conversion into the product
    width = cache.row_tokens(config)
    if width > 1:  # a query for each place in a row, with zeros in the other places
        places = jnp.eye(width, dtype=query.dtype)
        query = jnp.einsum("BKGH,WX->BKWGXH", query, places).reshape(batch, num_kv_heads, width * group, -1)
    if key.ndim == 4:
        scores = jax.lax.platform_dependent(query, key, cpu=_scores_on_cpu, default=_scores)
    else:
        scores = jnp.einsum("BKGH,KSH->BKGS", query, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, num_kv_heads, width, group, -1)
    if cache.key_scale is not None:
        scores = scores * jnp.expand_dims(cache.key_scale, -2)
    return softcap(scores * config.attention_scale, config.attention_softcap)


def _scores(query: Float[Array, "B K G H"], key: Float[Array, "B K S H"]) -> Float[Array, "B K G S"]:
    return jnp.einsum("BKGH,BKSH->BKGS", query, key, preferred_element_type=jnp.float32)


def _scores_on_cpu(query: Float[Array, "B K G H"], key: Float[Array, "B K S H"]) -> Float[Array, "B K G S"]:
    """The same, with the many keys as rows of the products: twice as fast, if XLA does not undo it."""
    scores = jnp.einsum("BKSH,BKGH->BKSG", key, query, preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(jax.lax.optimization_barrier(scores).swapaxes(2, 3))


def _weighted_values(weights: Float[Array, "B K W G R"], cache: KVCache, dtype: jnp.dtype) -> Float[Array, "B K G H"]:
    if cache.value_scale is not None:
        weights = weights * jnp.expand_dims(cache.value_scale, -2)
    batch, num_kv_heads, width, group, _ = weights.shape
    value = cache.value.astype(dtype)
    weights = weights.astype(dtype).reshape(batch, num_kv_heads, width * group, -1)
    if value.ndim == 4:
        mixed = jnp.einsum("BKGS,BKSH->BKGH", weights, value, preferred_element_type=jnp.float32)
        if width == 1:
            return mixed
        mixed = mixed.reshape(batch, num_kv_heads, width, group, width, -1)
        return sum((mixed[:, :, place, :, place] for place in range(1, width)), mixed[:, :, 0, :, 0])
    # K, the batch dimension of the product, comes first in the result. For any other order einsum exchanges the
    # operands, and XLA's CPU backend (jax 0.10.2) cannot run that product in bfloat16 ("Unsupported element type").
    mixed = jnp.einsum("BKGS,KSH->KBGH", weights, value, preferred_element_type=jnp.float32)
    return mixed.swapaxes(0, 1)
