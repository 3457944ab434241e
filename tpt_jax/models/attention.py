"""Attention, rotary positions and masks. Letters: B batch, T query length, S key length, N query heads, K key-value
heads, G = N / K, H head dim, D embed, F feed-forward, V vocabulary, L layers."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tpt_jax.models.config import ModelConfig

NO_WINDOW = 2**30  # a window that no sequence reaches: layers of both kinds share one traced comparison
MASKED = -2.0e38  # finite, so that a row with nothing to attend to gives no NaN


def rope_frequencies(config: ModelConfig) -> Float[Array, "H/2"]:
    """Radians a position for each pair of dimensions, with LLaMA 3.1's scaling where the config has it.

    The scaling is that of Meta's llama-models (`apply_scaling`): wavelengths beyond original / low_freq_factor are
    stretched by `factor`, those below original / high_freq_factor are left, and those between are blended.
    """
    frequencies = config.rope_theta ** -(jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_positions / wavelengths
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = jnp.clip(blend, 0.0, 1.0)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def rotate(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], frequencies: Float[Array, "H/2"]
) -> Float[Array, "B T N H"]:
    """Rotary position embedding, halves convention (first half paired with the second, as in Hugging Face weights)."""
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]  # [B, T, 1, H/2]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def softcap(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    return x if cap is None else cap * jnp.tanh(x / cap)


def segment_mask(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Causal attention inside each packed segment: [b, t, s] says whether token t sees token s."""
    length = segment_ids.shape[1]
    causal = jnp.arange(length)[:, None] >= jnp.arange(length)[None, :]
    return (segment_ids[:, :, None] == segment_ids[:, None, :]) & causal[None]


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


def attend_cached(
    query: Float[Array, "B 1 N H"],
    key: Float[Array, "B 1 K H"],
    value: Float[Array, "B 1 K H"],
    cached_key: Float[Array, "B K S H"],
    cached_value: Float[Array, "B K S H"],
    mask: Bool[Array, "B S"],
    config: ModelConfig,
) -> Float[Array, "B 1 N H"]:
    """One new token over a cache that is only read: its own key and value join the softmax beside the cached ones.

    A cache written before it is read would be carried, and copied, through the layer scan.
    """
    batch, _, num_heads, head_dim = query.shape
    grouped = query.reshape(batch, config.num_kv_heads, -1, head_dim)
    own_key, own_value = key[:, 0], value[:, 0]  # [B, K, H]
    past = jnp.einsum("BKGH,BKSH->BKGS", grouped, cached_key, preferred_element_type=jnp.float32)
    own = jnp.einsum("BKGH,BKH->BKG", grouped, own_key, preferred_element_type=jnp.float32)
    past = softcap(past * config.attention_scale, config.attention_softcap)
    own = softcap(own * config.attention_scale, config.attention_softcap)
    past = jnp.where(mask[:, None, None], past, MASKED)
    top = jnp.maximum(past.max(axis=-1), own)
    past, own = jnp.exp(past - top[..., None]), jnp.exp(own - top)
    total = past.sum(axis=-1) + own
    mixed = jnp.einsum("BKGS,BKSH->BKGH", past.astype(value.dtype), cached_value, preferred_element_type=jnp.float32)
    mixed = (mixed + own[..., None] * own_value[:, :, None].astype(jnp.float32)) / total[..., None]
    return mixed.astype(query.dtype).reshape(batch, 1, num_heads, head_dim)
