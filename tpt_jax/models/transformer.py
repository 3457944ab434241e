"""One decoder for Gemma 2, Gemma 3 and LLaMA 3: NNX modules whose layers are stacked and scanned.

Shape letters as in attention.py. Arithmetic runs in the parameters' own type: cast them before the call.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.attention import KVCache, attend, attend_past, rope_frequencies, rotate, segment_mask, softcap
from tpt_jax.models.embedding import look_up
from tpt_jax.models.self_attention import SPLASH_RESIDUALS, Kernel, self_attention
from tpt_jax.runtime.sharding import Layout, LogicalAxes

Remat = Literal["none", "dots", "full"]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
KeysAndValues = tuple[Float[Array, "L B T K H"], Float[Array, "L B T K H"]]

LAYER_WEIGHTS = "layer_weights"  # in a rematerialisation policy
# What the backward pass need not compute anew. A layer's weights it takes out of the stack again in any case.
KEPT: Mapping[Remat, Any] = {
    "none": jax.checkpoint_policies.save_anything_except_these_names(LAYER_WEIGHTS),
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(SPLASH_RESIDUALS),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def _weight(rngs: nnx.Rngs, shape: tuple[int, ...], axes: LogicalAxes, fan_in: int) -> nnx.Param:
    value = jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5
    return nnx.Param(value, logical_axes=axes)


def _norm_scale(config: ModelConfig, *shape: int) -> nnx.Param:
    # Gemma stores w of 1 + w, LLaMA stores the scale itself; either starts as a scale of one.
    start = jnp.zeros if config.is_gemma else jnp.ones
    return nnx.Param(start(shape, jnp.float32), logical_axes=(*("layers" for _ in shape[1:]), "norm"))


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], config: ModelConfig) -> Float[Array, "... D"]:
    """Root-mean-square norm in fp32, Gemma's with 1 + w (as in the published implementations of each family)."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + config.norm_eps)
    scale = jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
    return (wide * (1 + scale if config.is_gemma else scale)).astype(x.dtype)


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
        self.attention_norm = _norm_scale(config, L, D)
        self.mlp_norm = _norm_scale(config, L, D)
        if config.is_gemma:
            self.post_attention_norm = _norm_scale(config, L, D)
            self.post_mlp_norm = _norm_scale(config, L, D)
        if config.has_query_key_norms:
            self.query_norm = _norm_scale(config, L, H)
            self.key_norm = _norm_scale(config, L, H)

    def apply(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        window: int | None,
        attend: Attend,
        layout: Layout,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """One layer (the slice that the scan holds): its output, and the keys and values that it made.

        Args:
          window: of this layer, None for a global one; `attend` keeps to it, rotary positions depend on it.
        """
        config = self.config
        frequencies = rope_frequencies(config, window)
        h = rms_norm(x, self.attention_norm[...], config)
        query = jnp.einsum("BTD,DNH->BTNH", h, self.query[...])
        key = jnp.einsum("BTD,DKH->BTKH", h, self.key[...])
        value = jnp.einsum("BTD,DKH->BTKH", h, self.value[...])
        if config.has_query_key_norms:
            query, key = rms_norm(query, self.query_norm[...], config), rms_norm(key, self.key_norm[...], config)
        query, key = rotate(query, positions, frequencies), rotate(key, positions, frequencies)
        query = layout.constrain(query, "batch", None, "heads", None)
        h = jnp.einsum("BTNH,NHD->BTD", attend(query, key, value), self.output[...])
        if config.is_gemma:
            h = rms_norm(h, self.post_attention_norm[...], config)
        x = layout.constrain(x + h, "batch", None, None)

        h = rms_norm(x, self.mlp_norm[...], config)
        activate = _gelu if config.is_gemma else jax.nn.silu
        h = activate(jnp.einsum("BTD,DF->BTF", h, self.gate[...])) * jnp.einsum("BTD,DF->BTF", h, self.up[...])
        h = layout.constrain(h, "batch", None, "mlp")
        h = jnp.einsum("BTF,FD->BTD", h, self.down[...])
        if config.is_gemma:
            h = rms_norm(h, self.post_mlp_norm[...], config)
        return layout.constrain(x + h, "batch", None, None), key, value


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


def _after_prefix(prefix: Float[Array, "K P H"], own: Float[Array, "B T K H"]) -> Float[Array, "B P+T K H"]:
    before = jnp.broadcast_to(prefix.swapaxes(0, 1)[None], (len(own), prefix.shape[1], *own.shape[2:]))
    return jnp.concatenate([before.astype(own.dtype), own], axis=1)


def _first_entries(past: KVCache, layer: Int[Array, ""], size: int) -> KVCache:
    """One layer's first entries of stacked ones: a slice of the layer alone, so that nothing else is read or copied."""

    def read(stacked: jax.Array) -> jax.Array:
        shape = list(stacked.shape[1:])
        shape[entry_axis] = size
        start = (layer, *(jnp.zeros_like(layer) for _ in shape))
        return jax.lax.dynamic_slice(stacked, start, (1, *shape))[0]

    entry_axis = past.key.ndim - 3  # of [L, B, K, S, H] or [L, K, S, H], without L
    return jax.tree.map(read, past)


def _with_last_turn(made: list, last: list) -> list:
    """What each place of the period made in whole turns, stacked, and in a last turn that is cut short."""
    extended = [
        jax.tree.map(lambda stacked, one: jnp.concatenate([stacked, one[None]]), *both)
        for both in zip(made, last, strict=False)
    ]
    return extended + made[len(last) :]


def _sees(positions: Int[Array, " B"], entries: Int[Array, "B S"], window: int | None) -> Bool[Array, "B S"]:
    """Whether a token at each position sees each entry: one of an earlier position, inside the window."""
    distance = positions[:, None] - entries
    seen = (entries >= 0) & (distance > 0)
    return seen if window is None else seen & (distance < window)


class Transformer(nnx.Module):
    """A decoder-only transformer."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        V, D = config.vocab_size, config.embed_dim  # noqa: N806
        self.config = config
        # A tied table is also the output projection: rows of norm about one give logits of order one.
        self.embedding = _weight(rngs, (V, D), ("vocab", "embed"), D)
        self.layers = Layers(config, rngs)
        self.final_norm = _norm_scale(config, D)
        if not config.tie_embeddings:
            self.unembedding = _weight(rngs, (V, D), ("vocab", "embed"), D)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        *,
        layout: Layout,
        kernel: Kernel = "xla",
        remat: Remat = "none",
        compute_dtype: jnp.dtype | None = None,
    ) -> Float[Array, "B T D"]:
        """Final hidden states of packed or padded sequences.

        Args:
          tokens: token ids.
          positions: of each token in its own segment, from 0.
          segment_ids: tokens see earlier tokens of their own segment only; by custom 0 marks padding.
          layout: the sharding of activations.
          kernel: how attention is computed.
          remat: what the backward pass computes anew: nothing, all but matrix products, or everything.
          compute_dtype: weights are cast to it; None for their own type.
        """

        def attend_own(window: int | None) -> Attend:
            def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
                options: Any = {"window": window, "config": self.config, "layout": layout, "kernel": kernel}
                return self_attention(query, key, value, segment_ids, **options)

            return attend

        dtype = jnp.dtype(compute_dtype or self.embedding[...].dtype)
        x = self._embed(tokens, layout, dtype)
        x = self._scan(x, positions, attend_own, layout=layout, remat=remat)
        return rms_norm(x, self.final_norm[...], self.config)

    def prefill(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        *,
        layout: Layout,
        prefix: Sequence[KVCache] | None = None,
    ) -> list[KeysAndValues]:
        """The keys and values that every layer makes of the tokens, for each layer of the config's period.

        Args:
          prefix: what tokens before all of these left, for each layer of the period: keys and values [L, K, P, H] of
            the positions 0 to P - 1.
        """
        length = prefix[0].key.shape[2] if prefix else 0
        prefix_positions = jnp.broadcast_to(jnp.arange(length, dtype=positions.dtype), (len(tokens), length))
        key_positions = jnp.concatenate([prefix_positions, positions], axis=1)
        distance = positions[:, :, None] - key_positions[:, None, :]
        seen = jnp.concatenate([jnp.ones((*tokens.shape, length), bool), segment_mask(segment_ids)], axis=2)

        def attend_all(place: int, turn: jax.Array) -> Attend:
            window = self.config.windows[place]

            def over_prefix_and_own(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
                if prefix:
                    key = _after_prefix(prefix[place].key[turn], key)
                    value = _after_prefix(prefix[place].value[turn], value)
                return attend(query, key, value, seen if window is None else seen & (distance < window), self.config)

            return over_prefix_and_own

        x = self._embed(tokens, layout, self.embedding[...].dtype)
        return self._read(x, positions, attend_all, layout=layout)[1]

    def _scan(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        attention: Callable[[int | None], Attend],
        *,
        layout: Layout,
        remat: Remat,
    ) -> Float[Array, "B T D"]:
        """All layers, one period a turn, to take gradients of.

        Args:
          attention: of layers with this window.
        """
        config, period = self.config, self.config.period
        graph, weights = nnx.split(self.layers)
        # Cast at once: XLA would move the casts out of the loop anyway, and so gradients are stacked in x's type.
        weights = jax.tree.map(lambda weight: weight.astype(x.dtype), weights)
        whole = config.turns * period
        by_turn = jax.tree.map(lambda weight: weight[:whole].reshape(-1, period, *weight.shape[1:]), weights)
        left = jax.tree.map(lambda weight: weight[whole:], weights)

        def layer(x: jax.Array, weights: nnx.State, place: int) -> jax.Array:
            own = jax.tree.map(lambda weight: checkpoint_name(weight[place], LAYER_WEIGHTS), weights)
            window = config.windows[place]
            return nnx.merge(graph, own).apply(x, positions, window, attention(window), layout)[0]

        def layers(x: jax.Array, weights: nnx.State, places: int, *, in_loop: bool) -> jax.Array:
            for place in range(places):
                # Forward and backward loops are apart. Without a loop XLA would keep what is to be computed anew.
                options: Any = {"policy": KEPT[remat], "prevent_cse": not in_loop}
                x = jax.checkpoint(functools.partial(layer, place=place), **options)(x, weights)
            return x

        x, _ = jax.lax.scan(lambda x, weights: (layers(x, weights, period, in_loop=True), None), x, by_turn)
        return layers(x, left, config.num_layers - whole, in_loop=False)

    def _read(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        attention: Callable[[int, Int[Array, ""]], Attend],
        *,
        layout: Layout,
    ) -> tuple[Float[Array, "B T D"], list[KeysAndValues]]:
        """All layers, one period a turn, without gradients; and the keys and values that they make.

        Args:
          attention: of the layer at a place of the period, in a turn.
        """
        config, period = self.config, self.config.period
        graph, weights = nnx.split(self.layers)

        def layers(x: jax.Array, turn: jax.Array, places: int = period) -> tuple[jax.Array, list]:
            made = []
            for place in range(places):
                at_layer = turn * period + place
                layer = nnx.merge(graph, jax.tree.map(lambda weight, at=at_layer: weight[at], weights))
                x, *new = layer.apply(x, positions, config.windows[place], attention(place, turn), layout)
                made.append(tuple(new))
            return x, made

        # Weights and caches are closed over and sliced by the layer: as scan inputs of a period they would be copied.
        x, made = jax.lax.scan(layers, x, jnp.arange(config.turns, dtype=jnp.int32))
        x, last = layers(x, jnp.int32(config.turns), config.num_layers % period)
        return x, _with_last_turn(made, last)

    def decode(
        self,
        tokens: Int[Array, " B"],
        positions: Int[Array, " B"],
        pasts: Sequence[Sequence[tuple[KVCache, Int[Array, "B S"]]]],
        *,
        layout: Layout,
    ) -> tuple[Float[Array, "B D"], list[tuple[Float[Array, "L B K H"], Float[Array, "L B K H"]]]]:
        """One more token for each sequence.

        Args:
          tokens, positions: the newest token of each sequence and its position.
          pasts: for each layer of the config's period, what earlier tokens left in it and in those that follow by whole
            periods, in one or several parts, only read; each with the positions of its first S entries, negative where
            one is empty. What lies beyond S is not read.

        Returns:
          The final hidden state, and for each layer of the period the keys and values for the caller to write.
        """

        def over_pasts(place: int, turn: jax.Array) -> Attend:
            window = self.config.windows[place]
            seen = [
                (_first_entries(past, turn, entries.shape[1]), _sees(positions, entries, window))
                for past, entries in pasts[place]
            ]
            return lambda query, key, value: attend_past(query, key, value, seen, self.config)

        x = self._embed(tokens[:, None], layout, self.embedding[...].dtype)
        x, made = self._read(x, positions[:, None], over_pasts, layout=layout)
        hidden = rms_norm(x[:, 0], self.final_norm[...], self.config)
        return hidden, [(key[:, :, 0], value[:, :, 0]) for key, value in made]

    @property
    def output_table(self) -> Float[Array, "V D"]:
        """The output projection: the embedding itself where the two are tied."""
        return (self.embedding if self.config.tie_embeddings else self.unembedding)[...]

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Next-token scores in fp32, soft-capped where the family does."""
        scores = jnp.einsum("...D,VD->...V", hidden, self.output_table, preferred_element_type=jnp.float32)
        return softcap(scores, self.config.final_softcap)

    def _embed(self, tokens: jax.Array, layout: Layout, dtype: jnp.dtype) -> Float[Array, "B T D"]:
        x = look_up(self.embedding[...], tokens, layout, dtype)
        if self.config.is_gemma:
            x = x * jnp.asarray(math.sqrt(self.config.embed_dim), x.dtype)  # rounded to x's type, as Gemma was trained
        return layout.constrain(x, "batch", None, None)


def abstract_parameters(config: ModelConfig) -> tuple[nnx.GraphDef[Transformer], nnx.State]:
    """The decoder's structure and the shapes of its parameters; no memory is taken, whatever the size."""
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return nnx.split(model)


def place_abstract(abstract: nnx.State, layout: Layout, dtype: Any = jnp.float32) -> nnx.State:
    """Shapes with shardings, to compile from or to restore into."""

    def place(weight: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(weight.shape, dtype, sharding=sharding)

    return jax.tree.map(place, abstract, layout.shardings(abstract))
