"""Attention, rotary positions and masks. Letters: B batch, T query length, S key length, N query heads, K key-value
heads, G = N / K, H head dim, D embed, F feed-forward, V vocabulary, L layers."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tpt_jax.models.architecture import LinearScaling, ModelConfig

MASKED = -2.0e38  # finite, so that a row with nothing to attend to gives no NaN


def rope_frequencies(config: ModelConfig, window: int | None) -> Float[Array, "H/2"]:
    """Radians a position for each pair of dimensions, for layers with this window; scaled where the config says so.

    LLaMA 3.1's scaling is that of Meta's llama-models (`apply_scaling`): wavelengths beyond original / low_freq_factor
    are stretched by `factor`, those below original / high_freq_factor are left, and those between are blended. Linear
    scaling stretches all (Chen et al., arXiv 2306.15595).
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


def segment_mask(segment_ids: Int[Array, "B T"], window: int | None = None) -> Bool[Array, "B T T"]:
    """Causal attention inside each packed segment: [b, t, s] says whether token t sees token s.

    Args:
      window: how many tokens are seen at most, the token itself included; None for all.
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
    """Keys and values of earlier tokens, which attention only reads: of one layer, or of several, stacked before B.

    Those of a prefix that all sequences share have no B: one matrix product serves all queries.
    """

    key: Float[Array, "*B K S H"]
    value: Float[Array, "*B K S H"]
    key_scale: Float[Array, "*B K S"] | None = None  # of int8 entries: the entry is key * key_scale
    value_scale: Float[Array, "*B K S"] | None = None


def attend_past(
    query: Float[Array, "B 1 N H"],
    key: Float[Array, "B 1 K H"],
    value: Float[Array, "B 1 K H"],
    pasts: Sequence[tuple[KVCache, Bool[Array, "B S"]]],
    config: ModelConfig,
) -> Float[Array, "B 1 N H"]:
    """One new token over earlier ones that are only read: its own key and value join the softmax beside them.

    A cache written before it is read would be carried, and copied, through the layer scan.

    Args:
      pasts: where earlier tokens stand, and which of the entries the new token sees.
    """
    batch, _, num_heads, head_dim = query.shape
    grouped = query.reshape(batch, config.num_kv_heads, -1, head_dim)
    own_key, own_value = key[:, 0], value[:, 0]  # [B, K, H]
    own = jnp.einsum("BKGH,BKH->BKG", grouped, own_key, preferred_element_type=jnp.float32)
    own = softcap(own * config.attention_scale, config.attention_softcap)
    scores = [jnp.where(mask[:, None, None], _past_scores(grouped, past, config), MASKED) for past, mask in pasts]
    top = functools.reduce(jnp.maximum, (of_past.max(axis=-1) for of_past in scores), own)
    own = jnp.exp(own - top)
    weights = [jnp.exp(of_past - top[..., None]) for of_past in scores]
    total = sum((of_past.sum(axis=-1) for of_past in weights), own)
    mixed = own[..., None] * own_value[:, :, None].astype(jnp.float32)
    for of_past, (past, _) in zip(weights, pasts, strict=True):
        mixed = mixed + _mix(of_past, past, query.dtype)
    return (mixed / total[..., None]).astype(query.dtype).reshape(batch, 1, num_heads, head_dim)


def _past_scores(query: Float[Array, "B K G H"], past: KVCache, config: ModelConfig) -> Float[Array, "B K G S"]:
    keys = "BKSH" if past.key.ndim == 4 else "KSH"
    key = past.key.astype(query.dtype)  # of int8 entries: fused into the product's operand
    scores = jnp.einsum(f"BKGH,{keys}->BKGS", query, key, preferred_element_type=jnp.float32)
    if past.key_scale is not None:
        scores = scores * jnp.expand_dims(past.key_scale, -2)
    return softcap(scores * config.attention_scale, config.attention_softcap)


def _mix(weights: Float[Array, "B K G S"], past: KVCache, dtype: jnp.dtype) -> Float[Array, "B K G H"]:
    values = "BKSH" if past.value.ndim == 4 else "KSH"
    if past.value_scale is not None:
        weights = weights * jnp.expand_dims(past.value_scale, -2)
    value = past.value.astype(dtype)
    return jnp.einsum(f"BKGS,{values}->BKGH", weights.astype(dtype), value, preferred_element_type=jnp.float32)
