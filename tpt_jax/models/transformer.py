"""One decoder for Gemma 2 and LLaMA 3: NNX modules whose layers are stacked and scanned.

Shape letters as in attention.py. Arithmetic runs in the parameters' own type: cast them before the call.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tpt_jax.models.attention import (
    NO_WINDOW,
    Past,
    attend,
    attend_past,
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


def _after_prefix(prefix: Float[Array, "K P H"], own: Float[Array, "B T K H"]) -> Float[Array, "B P+T K H"]:
    before = jnp.broadcast_to(prefix.swapaxes(0, 1)[None], (len(own), prefix.shape[1], *own.shape[2:]))
    return jnp.concatenate([before.astype(own.dtype), own], axis=1)


def _first_entries(past: Past, layer: Int[Array, ""], size: int) -> Past:
    """One layer's first entries of stacked ones: a slice of the layer alone, so that nothing else is read or copied."""

    def read(stacked: jax.Array) -> jax.Array:
        shape = list(stacked.shape[1:])
        shape[entry_axis] = size
        start = (layer, *(jnp.zeros_like(layer) for _ in shape))
        return jax.lax.dynamic_slice(stacked, start, (1, *shape))[0]

    entry_axis = past.key.ndim - 3  # of [L, B, K, S, H] or [L, K, S, H], without L
    return jax.tree.map(read, past)


def _sees(positions: Int[Array, " B"], entries: Int[Array, "B S"], window: Int[Array, ""]) -> Bool[Array, "B S"]:
    """Whether a token at each position sees each entry: one of an earlier position, inside the window."""
    distance = positions[:, None] - entries
    return (entries >= 0) & (distance > 0) & (distance < window)


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
        prefix: Past | None = None,
    ) -> KeysAndValues:
        """The keys and values that every layer makes of the tokens.

        Args:
          prefix: what tokens before all of these left: keys and values [L, K, P, H] of the positions 0 to P - 1.
        """
        _, cache = self._run(
            tokens, positions, segment_ids, layout=layout, remat="none", keep_cache=True, prefix=prefix
        )
        return cast(KeysAndValues, cache)

    def _run(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        *,
        layout: Layout,
        remat: Remat,
        keep_cache: bool,
        prefix: Past | None = None,
    ) -> tuple[jax.Array, KeysAndValues | None]:
        config = self.config
        mask = segment_mask(segment_ids)
        key_positions = positions
        if prefix is not None:
            length, rows = prefix.key.shape[2], len(tokens)
            prefix_positions = jnp.broadcast_to(jnp.arange(length, dtype=positions.dtype), (rows, length))
            key_positions = jnp.concatenate([prefix_positions, positions], axis=1)
            mask = jnp.concatenate([jnp.ones((*tokens.shape, length), bool), mask], axis=2)
        distance = positions[:, :, None] - key_positions[:, None, :]
        graph, weights = nnx.split(self.layers)

        def layer(x: jax.Array, scanned: tuple[nnx.State, jax.Array, Past | None]) -> tuple[jax.Array, tuple | None]:
            layer_weights, window, layer_prefix = scanned

            def over_own_keys(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
                if layer_prefix is not None:
                    key, value = _after_prefix(layer_prefix.key, key), _after_prefix(layer_prefix.value, value)
                return attend(query, key, value, mask & (distance < window), config)

            x, key, value = nnx.merge(graph, layer_weights).apply(x, positions, over_own_keys, layout)
            return x, ((key, value) if keep_cache else None)

        if remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        x = self._embed(tokens, layout)
        x, cache = jax.lax.scan(layer, x, (weights, self._windows(), prefix))
        return rms_norm(x, self.final_norm[...], config), cache

    def decode(
        self,
        tokens: Int[Array, " B"],
        positions: Int[Array, " B"],
        pasts: Sequence[Sequence[tuple[Past, Int[Array, "B S"]]]],
        *,
        layout: Layout,
        unroll: int = 1,
    ) -> tuple[Float[Array, "B D"], list[tuple[Float[Array, "L B K H"], Float[Array, "L B K H"]]]]:
        """One more token for each sequence.

        Args:
          tokens, positions: the newest token of each sequence and its position.
          pasts: for each layer of the config's period, what earlier tokens left in it and in those that follow by whole
            periods, in one or several parts, only read; each with the positions of its first S entries, negative where
            one is empty. What lies beyond S is not read.
          unroll: how many periods one turn of the loop over layers does; for compilers that count a loop's body once.

        Returns:
          The final hidden state, and for each layer of the period the keys and values for the caller to write.
        """
        config, period = self.config, self.config.period
        graph, weights = nnx.split(self.layers)

        windows = self._windows()

        def layers(x: jax.Array, index: jax.Array) -> tuple[jax.Array, list]:
            made = []
            for place in range(period):
                at_layer = index * period + place
                seen = [
                    (_first_entries(past, index, at.shape[1]), _sees(positions, at, windows[at_layer]))
                    for past, at in pasts[place]
                ]

                def over_past(query: jax.Array, key: jax.Array, value: jax.Array, seen=seen) -> jax.Array:
                    return attend_past(query, key, value, seen, config)

                layer = nnx.merge(graph, jax.tree.map(lambda weight, at=at_layer: weight[at], weights))
                x, key, value = layer.apply(x, positions[:, None], over_past, layout)
                made.append((key[:, 0], value[:, 0]))
            return x, made

        x = self._embed(tokens[:, None], layout)
        # Weights and caches are closed over and sliced by the layer: as scan inputs of a period they would be copied.
        indices = jnp.arange(config.num_layers // period, dtype=jnp.int32)
        x, made = jax.lax.scan(layers, x, indices, unroll=unroll)
        return rms_norm(x[:, 0], self.final_norm[...], config), made

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


def place_abstract(abstract: nnx.State, layout: Layout, dtype: Any = jnp.float32) -> nnx.State:
    """Shapes with shardings, to compile from or to restore into."""

    def place(weight: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(weight.shape, dtype, sharding=sharding)

    return jax.tree.map(place, abstract, layout.shardings(abstract))
