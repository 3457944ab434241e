"""One decoder for Gemma 2 and LLaMA 3: NNX modules whose layers are stacked and scanned.

Shape letters as in attention.py. Arithmetic runs in the parameters' own type: cast them before the call.
"""

import math
from collections.abc import Callable
from typing import Literal, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tpt_jax.models.attention import (
    NO_WINDOW,
    attend,
    attend_cached,
    rope_frequencies,
    rotate,
    segment_mask,
    softcap,
)
from tpt_jax.models.config import ModelConfig
from tpt_jax.sharding import Layout, LogicalAxes

Remat = Literal["none", "dots", "full"]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
KeysAndValues = tuple[Float[Array, "L B T K H"], Float[Array, "L B T K H"]]


def _weight(rngs: nnx.Rngs, shape: tuple[int, ...], axes: LogicalAxes, fan_in: int) -> nnx.Param:
    value = jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5
    return nnx.Param(value, logical_axes=axes)


def _norm_scale(config: ModelConfig, *stack: int) -> nnx.Param:
    # Gemma stores w of 1 + w, LLaMA stores the scale itself; either starts as a scale of one.
    start = jnp.zeros if config.family == "gemma2" else jnp.ones
    axes = (*("layers" for _ in stack), "norm")
    return nnx.Param(start((*stack, config.embed_dim), jnp.float32), logical_axes=axes)


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], config: ModelConfig) -> Float[Array, "... D"]:
    """Root-mean-square norm in fp32, Gemma's with 1 + w (as in the published implementations of each family)."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + config.norm_eps)
    scale = jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
    return (wide * (1 + scale if config.family == "gemma2" else scale)).astype(x.dtype)


class Layers(nnx.Module):
    """All decoder layers: every weight has a leading layer axis, and a scan hands one slice at a time to `apply`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        L, D, F = config.num_layers, config.embed_dim, config.mlp_dim  # noqa: N806
        N, K, H = config.num_heads, config.num_kv_heads, config.head_dim  # noqa: N806
        self.config = config
        self.query = _weight(rngs, (L, D, N, H), ("layers", "embed", "heads", "head_dim"), D)
        self.key = _weight(rngs, (L, D, K, H), ("layers", "embed", "kv_heads", "head_dim"), D)
        self.value = _weight(rngs, (L, D, K, H), ("layers", "embed", "kv_heads", "head_dim"), D)
        self.output = _weight(rngs, (L, N, H, D), ("layers", "heads", "head_dim", "embed"), N * H * 2 * L)
        self.gate = _weight(rngs, (L, D, F), ("layers", "embed", "mlp"), D)
        self.up = _weight(rngs, (L, D, F), ("layers", "embed", "mlp"), D)
        self.down = _weight(rngs, (L, F, D), ("layers", "mlp", "embed"), F * 2 * L)
        self.attention_norm = _norm_scale(config, L)
        self.mlp_norm = _norm_scale(config, L)
        if config.family == "gemma2":
            self.post_attention_norm = _norm_scale(config, L)
            self.post_mlp_norm = _norm_scale(config, L)

    def apply(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        attend: Attend,
        layout: Layout,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """One layer (the slice that the scan holds): its output, and the keys and values that it made."""
        config = self.config
        frequencies = rope_frequencies(config)
        h = rms_norm(x, self.attention_norm[...], config)
        query = rotate(jnp.einsum("BTD,DNH->BTNH", h, self.query[...]), positions, frequencies)
        key = rotate(jnp.einsum("BTD,DKH->BTKH", h, self.key[...]), positions, frequencies)
        value = jnp.einsum("BTD,DKH->BTKH", h, self.value[...])
        query = layout.constrain(query, "batch", None, "heads", None)
        h = jnp.einsum("BTNH,NHD->BTD", attend(query, key, value), self.output[...])
        if config.family == "gemma2":
            h = rms_norm(h, self.post_attention_norm[...], config)
        x = layout.constrain(x + h, "batch", None, None)

        h = rms_norm(x, self.mlp_norm[...], config)
        activate = jax.nn.silu if config.family == "llama" else _gelu
        h = activate(jnp.einsum("BTD,DF->BTF", h, self.gate[...])) * jnp.einsum("BTD,DF->BTF", h, self.up[...])
        h = layout.constrain(h, "batch", None, "mlp")
        h = jnp.einsum("BTF,FD->BTD", h, self.down[...])
        if config.family == "gemma2":
            h = rms_norm(h, self.post_mlp_norm[...], config)
        return layout.constrain(x + h, "batch", None, None), key, value


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


class Transformer(nnx.Module):
    """A decoder-only transformer."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        V, D = config.vocab_size, config.embed_dim  # noqa: N806
        self.config = config
        # A tied table is also the output projection: rows of norm about one give logits of order one.
        self.embedding = _weight(rngs, (V, D), ("vocab", "embed"), D)
        self.layers = Layers(config, rngs)
        self.final_norm = _norm_scale(config)
        if not config.tie_embeddings:
            self.unembedding = _weight(rngs, (D, V), ("embed", "vocab"), D)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        *,
        layout: Layout,
        remat: Remat = "none",
    ) -> Float[Array, "B T D"]:
        """Final hidden states of packed or padded sequences.

        Args:
          tokens: token ids.
          positions: of each token in its own segment, from 0.
          segment_ids: tokens see earlier tokens of their own segment only; by custom 0 marks padding.
          layout: the sharding of activations.
          remat: what the backward pass computes anew: nothing, all but matrix products, or everything.
        """
        hidden, _ = self._run(tokens, positions, segment_ids, layout=layout, remat=remat, keep_cache=False)
        return hidden

    def prefill(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        *,
        layout: Layout,
    ) -> tuple[Float[Array, "B T D"], KeysAndValues]:
        """As the call, and the keys and values of every layer."""
        hidden, cache = self._run(tokens, positions, segment_ids, layout=layout, remat="none", keep_cache=True)
        return hidden, cast(KeysAndValues, cache)

    def _run(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        *,
        layout: Layout,
        remat: Remat,
        keep_cache: bool,
    ) -> tuple[jax.Array, KeysAndValues | None]:
        config = self.config
        mask = segment_mask(segment_ids)
        distance = positions[:, :, None] - positions[:, None, :]
        graph, weights = nnx.split(self.layers)

        def layer(x: jax.Array, scanned: tuple[nnx.State, jax.Array]) -> tuple[jax.Array, tuple | None]:
            layer_weights, window = scanned

            def over_own_keys(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
                return attend(query, key, value, mask & (distance < window), config)

            x, key, value = nnx.merge(graph, layer_weights).apply(x, positions, over_own_keys, layout)
            return x, ((key, value) if keep_cache else None)

        if remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        x = self._embed(tokens, layout)
        x, cache = jax.lax.scan(layer, x, (weights, self._windows()))
        return rms_norm(x, self.final_norm[...], config), cache

    def decode(
        self,
        tokens: Int[Array, " B"],
        positions: Int[Array, " B"],
        cached_key: Float[Array, "L B K S H"],
        cached_value: Float[Array, "L B K S H"],
        cached_positions: Int[Array, "B S"],
        cached: Bool[Array, "B S"],
        *,
        layout: Layout,
    ) -> tuple[Float[Array, "B D"], Float[Array, "L B K H"], Float[Array, "L B K H"]]:
        """One more token for each sequence.

        Args:
          tokens, positions: the newest token of each sequence and its position.
          cached_key, cached_value: what earlier tokens left; only read.
          cached_positions, cached: the position of each cache entry, and whether it holds a token of the sequence.

        Returns:
          The final hidden state, and the keys and values for the caller to write into the cache.
        """
        config = self.config
        distance = positions[:, None] - cached_positions
        graph, weights = nnx.split(self.layers)

        def layer(x: jax.Array, scanned: tuple[nnx.State, jax.Array, jax.Array, jax.Array]) -> tuple:
            layer_weights, window, layer_key, layer_value = scanned
            mask = cached & (distance < window)

            def over_cache(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
                return attend_cached(query, key, value, layer_key, layer_value, mask, config)

            x, key, value = nnx.merge(graph, layer_weights).apply(x, positions[:, None], over_cache, layout)
            return x, (key[:, 0], value[:, 0])

        x = self._embed(tokens[:, None], layout)
        x, (key, value) = jax.lax.scan(layer, x, (weights, self._windows(), cached_key, cached_value))
        return rms_norm(x[:, 0], self.final_norm[...], config), key, value

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Next-token scores in fp32, soft-capped where the family does."""
        if self.config.tie_embeddings:
            scores = jnp.einsum("...D,VD->...V", hidden, self.embedding[...], preferred_element_type=jnp.float32)
        else:
            scores = jnp.einsum("...D,DV->...V", hidden, self.unembedding[...], preferred_element_type=jnp.float32)
        return softcap(scores, self.config.final_softcap)

    def _embed(self, tokens: jax.Array, layout: Layout) -> Float[Array, "B T D"]:
        table = layout.constrain(self.embedding[...], "vocab", None)  # rows whole: tokens are split as fsdp is
        x = table.at[tokens].get(mode="clip")
        if self.config.family == "gemma2":
            x = x * jnp.asarray(math.sqrt(self.config.embed_dim), x.dtype)  # rounded to x's type, as Gemma was trained
        return layout.constrain(x, "batch", None, None)

    def _windows(self) -> Int[Array, " L"]:
        return jnp.asarray([window or NO_WINDOW for window in self.config.windows], jnp.int32)


def abstract_parameters(config: ModelConfig) -> tuple[nnx.GraphDef[Transformer], nnx.State]:
    """The decoder's structure and the shapes of its parameters; no memory is taken, whatever the size."""
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return nnx.split(model)
