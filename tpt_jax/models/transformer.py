"""One decoder for Gemma, LLaMA and LLaMA's relatives: Flax NNX modules with stacked, scanned layers.

Shape letters as in attention.py. Computes in the parameters' dtype; cast them first, or pass compute_dtype.
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
from tpt_jax.models.attention import KVCache, attend, attend_cached, rope_frequencies, rotate, segment_mask, softcap
from tpt_jax.models.embedding import embedding_lookup
from tpt_jax.models.int8 import Int8Weight, product
from tpt_jax.models.self_attention import SPLASH_RESIDUALS, Kernel, self_attention
from tpt_jax.runtime.sharding import Layout, LogicalAxes

Remat = Literal["none", "dots", "full"]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
KeysAndValues = tuple[Float[Array, "L B T K H"], Float[Array, "L B T K H"]]

LAYER_WEIGHTS = "layer_weights"  # checkpoint name of one layer's slice of the stacked weights
# What is saved for the backward pass. No policy saves a layer's weights: they are sliced from the stack again.
REMAT_POLICIES: Mapping[Remat, Any] = {
    "none": jax.checkpoint_policies.save_anything_except_these_names(LAYER_WEIGHTS),
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(SPLASH_RESIDUALS),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def _weight(rngs: nnx.Rngs, shape: tuple[int, ...], axes: LogicalAxes, fan_in: int, num_summed: int = 1) -> nnx.Param:
    """A random weight; products with it sum over `num_summed` axes, from the second on."""
    value = jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5
    return nnx.Param(value, logical_axes=axes, num_summed=num_summed)


def _norm_scale(config: ModelConfig, *shape: int) -> nnx.Param:
    # Gemma stores w and scales by 1 + w; LLaMA stores the scale. Both start at a scale of one.
    start = jnp.zeros if config.is_gemma else jnp.ones
    return nnx.Param(start(shape, jnp.float32), logical_axes=(*("layers" for _ in shape[1:]), "norm"))


def _bias(shape: tuple[int, ...], axes: LogicalAxes) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, jnp.float32), logical_axes=axes)


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], config: ModelConfig) -> Float[Array, "... D"]:
    """Root-mean-square norm in fp32; the scale is 1 + w for Gemma, w for LLaMA, as in their published code."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + config.norm_eps)
    scale = jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
    return (wide * (1 + scale if config.is_gemma else scale)).astype(x.dtype)


class Layers(nnx.Module):
    """All decoder layers: weights have a leading layer axis; the layer scan calls `apply` on one slice at a time."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        L, D, F = config.num_layers, config.embed_dim, config.mlp_dim  # noqa: N806
        N, K, H = config.num_heads, config.num_kv_heads, config.head_dim  # noqa: N806
        self.config = config
        self.query = _weight(rngs, (L, D, N, H), ("layers", "embed", "heads", "head_dim"), D)
        self.key = _weight(rngs, (L, D, K, H), ("layers", "embed", "kv_heads", "head_dim"), D)
        self.value = _weight(rngs, (L, D, K, H), ("layers", "embed", "kv_heads", "head_dim"), D)
        self.output = _weight(rngs, (L, N, H, D), ("layers", "heads", "head_dim", "embed"), N * H * 2 * L, 2)
        self.gate = _weight(rngs, (L, D, F), ("layers", "embed", "mlp"), D)
        self.up = _weight(rngs, (L, D, F), ("layers", "embed", "mlp"), D)
        self.down = _weight(rngs, (L, F, D), ("layers", "mlp", "embed"), F * 2 * L)
        self.attention_norm = _norm_scale(config, L, D)
        self.mlp_norm = _norm_scale(config, L, D)
        if config.is_gemma:
            self.post_attention_norm = _norm_scale(config, L, D)
            self.post_mlp_norm = _norm_scale(config, L, D)
        if config.attention_bias:
            self.query_bias = _bias((L, N, H), ("layers", "heads", "bias"))
            self.key_bias = _bias((L, K, H), ("layers", "kv_heads", "bias"))
            self.value_bias = _bias((L, K, H), ("layers", "kv_heads", "bias"))
        if config.query_key_norms:
            self.query_norm = _norm_scale(config, L, H)
            self.key_norm = _norm_scale(config, L, H)

    def apply(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        index: int,
        attend: Attend,
        layout: Layout,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Applies one layer, whose weights have no layer axis; returns its output and its keys and values.

        Args:
          index: the layer's place within the period, which says whether and with what frequencies it rotates.
          attend: this layer's attention, which applies its window.
        """
        config = self.config
        h = rms_norm(x, self.attention_norm[...], config)
        query = product("BTD,DNH->BTNH", h, self.query[...])
        key = product("BTD,DKH->BTKH", h, self.key[...])
        value = product("BTD,DKH->BTKH", h, self.value[...])
        if config.attention_bias:
            query, key = query + self.query_bias[...][None, None], key + self.key_bias[...][None, None]
            value = value + self.value_bias[...][None, None]
        if config.query_key_norms:
            query, key = rms_norm(query, self.query_norm[...], config), rms_norm(key, self.key_norm[...], config)
        if config.rotated[index]:
            frequencies = rope_frequencies(config, config.windows[index])
            query, key = rotate(query, positions, frequencies), rotate(key, positions, frequencies)
        query = layout.constrain(query, "batch", None, "heads", None)
        h = product("BTNH,NHD->BTD", attend(query, key, value), self.output[...])
        if config.is_gemma:
            h = rms_norm(h, self.post_attention_norm[...], config)
        x = layout.constrain(x + h, "batch", None, None)

        h = rms_norm(x, self.mlp_norm[...], config)
        activate = _gelu if config.is_gemma else jax.nn.silu
        h = activate(product("BTD,DF->BTF", h, self.gate[...])) * product("BTD,DF->BTF", h, self.up[...])
        h = layout.constrain(h, "batch", None, "mlp")
        h = product("BTF,FD->BTD", h, self.down[...])
        if config.is_gemma:
            h = rms_norm(h, self.post_mlp_norm[...], config)
        return layout.constrain(x + h, "batch", None, None), key, value


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


def _prepend_prefix(prefix: Float[Array, "K P H"], entries: Float[Array, "B T K H"]) -> Float[Array, "B P+T K H"]:
    shape = (len(entries), prefix.shape[1], *entries.shape[2:])
    batched = jnp.broadcast_to(prefix.swapaxes(0, 1)[None], shape)
    return jnp.concatenate([batched.astype(entries.dtype), entries], axis=1)


def _first_entries(cache: KVCache, layer: Int[Array, ""], size: int) -> KVCache:
    """The first `size` entries of one layer of a stacked cache; a single slice, so nothing else is read or copied."""

    def read(stacked: jax.Array) -> jax.Array:
        shape = list(stacked.shape[1:])
        shape[entry_axis] = size
        start = (layer, *(jnp.zeros_like(layer) for _ in shape))
        return jax.lax.dynamic_slice(stacked, start, (1, *shape))[0]

    entry_axis = cache.key.ndim - 3  # of S in [L, B, K, S, H] or [L, K, S, H], after L is indexed away
    return jax.tree.map(read, cache)


def _append_remainder(stacked: list, remainder: list) -> list:
    """Appends the keys and values of the layers after the last full period to those stacked by the scan.

    Args:
      stacked: for each layer of the period, one row per full period.
      remainder: for the first layers of the period, one row each.
    """
    extended = [
        jax.tree.map(lambda rows, row: jnp.concatenate([rows, row[None]]), *pair)
        for pair in zip(stacked, remainder, strict=False)
    ]
    return extended + stacked[len(remainder) :]


def _sees(positions: Int[Array, " B"], entries: Int[Array, "B S"], window: int | None) -> Bool[Array, "B S"]:
    """Mask of the cache entries that a token at each position sees: earlier positions within the window.

    Args:
      entries: each entry's position, negative for an empty one.
    """
    distance = positions[:, None] - entries
    mask = (entries >= 0) & (distance > 0)
    return mask if window is None else mask & (distance < window)


class Transformer(nnx.Module):
    """A decoder-only transformer."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        V, D = config.vocab_size, config.embed_dim  # noqa: N806
        self.config = config
        # A tied table is also the output projection: rows of norm about 1 give logits of order 1.
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
          positions: each token's position in its segment, from 0.
          segment_ids: tokens see earlier tokens of their own segment only; by convention 0 is padding.
          layout: sharding of activations.
          kernel: attention implementation.
          remat: what the backward pass recomputes: nothing, all but matrix products, or everything.
          compute_dtype: dtype that weights are cast to; None for their own.
        """

        def make_attend(window: int | None) -> Attend:
            def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
                options: Any = {"window": window, "config": self.config, "layout": layout, "kernel": kernel}
                return self_attention(query, key, value, segment_ids, **options)

            return attend

        dtype = jnp.dtype(compute_dtype or self.dtype)
        x = self._embed(tokens, layout, dtype)
        x = self._scan(x, positions, make_attend, layout=layout, remat=remat)
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
        """Keys and values of the tokens: one stacked pair for each layer of the config's period.

        Args:
          prefix: KV caches [L, K, P, H] of a prefix shared by all sequences, at positions 0 to P - 1, one for each
            layer of the period.
        """
        length = prefix[0].key.shape[2] if prefix else 0
        prefix_positions = jnp.broadcast_to(jnp.arange(length, dtype=positions.dtype), (len(tokens), length))
        key_positions = jnp.concatenate([prefix_positions, positions], axis=1)
        distance = positions[:, :, None] - key_positions[:, None, :]
        mask = jnp.concatenate([jnp.ones((*tokens.shape, length), bool), segment_mask(segment_ids)], axis=2)

        def make_attend(index: int, period: jax.Array) -> Attend:
            window = self.config.windows[index]

            def attend_with_prefix(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
                if prefix:
                    key = _prepend_prefix(prefix[index].key[period], key)
                    value = _prepend_prefix(prefix[index].value[period], value)
                return attend(query, key, value, mask if window is None else mask & (distance < window), self.config)

            return attend_with_prefix

        x = self._embed(tokens, layout, self.dtype)
        return self._scan_inference(x, positions, make_attend, layout=layout)[1]

    def _scan(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        make_attend: Callable[[int | None], Attend],
        *,
        layout: Layout,
        remat: Remat,
    ) -> Float[Array, "B T D"]:
        """Runs all layers, one period per scan iteration; differentiable.

        Args:
          make_attend: the attention of layers with this window.
        """
        config, period = self.config, self.config.period
        graph, weights = nnx.split(self.layers)
        # Cast before the scan: XLA would hoist the casts anyway, and gradients are then stacked in x's dtype.
        weights = jax.tree.map(lambda weight: weight.astype(x.dtype), weights)
        num_scanned = config.num_periods * period
        scanned = jax.tree.map(lambda weight: weight[:num_scanned].reshape(-1, period, *weight.shape[1:]), weights)
        remainder = jax.tree.map(lambda weight: weight[num_scanned:], weights)

        def layer(x: jax.Array, weights: nnx.State, index: int) -> jax.Array:
            layer_weights = jax.tree.map(lambda weight: checkpoint_name(weight[index], LAYER_WEIGHTS), weights)
            attend = make_attend(config.windows[index])
            return nnx.merge(graph, layer_weights).apply(x, positions, index, attend, layout)[0]

        def layers(x: jax.Array, weights: nnx.State, count: int, *, in_loop: bool) -> jax.Array:
            for index in range(count):
                # In a loop the forward and backward passes are separate anyway. Outside one, XLA's common
                # subexpression elimination would keep the values that should be recomputed.
                options: Any = {"policy": REMAT_POLICIES[remat], "prevent_cse": not in_loop}
                x = jax.checkpoint(functools.partial(layer, index=index), **options)(x, weights)
            return x

        x, _ = jax.lax.scan(lambda x, weights: (layers(x, weights, period, in_loop=True), None), x, scanned)
        return layers(x, remainder, config.num_layers - num_scanned, in_loop=False)

    def _scan_inference(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        make_attend: Callable[[int, Int[Array, ""]], Attend],
        *,
        layout: Layout,
    ) -> tuple[Float[Array, "B T D"], list[KeysAndValues]]:
        """Runs all layers, one period per scan iteration, without gradients; also returns their keys and values.

        Args:
          make_attend: the attention of the layer at an index within the period, in a numbered period.
        """
        config, length = self.config, self.config.period
        graph, weights = nnx.split(self.layers)

        def layers(x: jax.Array, period: jax.Array, count: int = length) -> tuple[jax.Array, list]:
            entries = []
            for index in range(count):
                number = period * length + index
                layer = nnx.merge(graph, jax.tree.map(lambda weight, number=number: weight[number], weights))
                x, key, value = layer.apply(x, positions, index, make_attend(index, period), layout)
                entries.append((key, value))
            return x, entries

        # Weights and caches are closed over and sliced per layer; as scan inputs, each period's slice would be copied.
        x, stacked = jax.lax.scan(layers, x, jnp.arange(config.num_periods, dtype=jnp.int32))
        x, remainder = layers(x, jnp.int32(config.num_periods), config.num_layers % length)
        return x, _append_remainder(stacked, remainder)

    def decode(
        self,
        tokens: Int[Array, " B"],
        positions: Int[Array, " B"],
        kv_caches: Sequence[Sequence[tuple[KVCache, Int[Array, "B S"]]]],
        *,
        layout: Layout,
    ) -> tuple[Float[Array, "B D"], list[tuple[Float[Array, "L B K H"], Float[Array, "L B K H"]]]]:
        """One decode step: processes the newest token of each sequence.

        Args:
          tokens, positions: the newest token of each sequence and its position.
          kv_caches: for each layer of the config's period, one or more read-only caches of the earlier tokens (such as
            a sequence's own and a shared prefix's), stacked over the layers at that index of every period. Each comes
            with the positions of its first S entries, negative for an empty entry; entries beyond S are not read.

        Returns:
          The final hidden state and, for each layer of the period, the new keys and values for the caller to write.
        """

        def make_attend(index: int, period: jax.Array) -> Attend:
            window = self.config.windows[index]
            masked_caches = [
                (_first_entries(cache, period, entries.shape[1]), _sees(positions, entries, window))
                for cache, entries in kv_caches[index]
            ]
            return lambda query, key, value: attend_cached(query, key, value, masked_caches, self.config)

        x = self._embed(tokens[:, None], layout, self.dtype)
        x, new_entries = self._scan_inference(x, positions[:, None], make_attend, layout=layout)
        hidden = rms_norm(x[:, 0], self.final_norm[...], self.config)
        return hidden, [(key[:, :, 0], value[:, :, 0]) for key, value in new_entries]

    @property
    def dtype(self) -> jnp.dtype:
        """The type of activations: that of the norms, whatever the weights are stored in."""
        return self.final_norm[...].dtype

    @property
    def output_table(self) -> Float[Array, "V D"] | Int8Weight:
        """The output projection; with tied embeddings, the embedding table."""
        return (self.embedding if self.config.tie_embeddings else self.unembedding)[...]

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Next-token logits in fp32, soft-capped if the config has final_softcap."""
        scores = product("...D,VD->...V", hidden, self.output_table, jnp.dtype("float32"))
        return softcap(scores, self.config.final_softcap)

    def _embed(self, tokens: jax.Array, layout: Layout, dtype: jnp.dtype) -> Float[Array, "B T D"]:
        x = embedding_lookup(self.embedding[...], tokens, layout, dtype)
        if self.config.is_gemma:
            x = x * jnp.asarray(math.sqrt(self.config.embed_dim), x.dtype)  # rounded to x's dtype, as in training
        return layout.constrain(x, "batch", None, None)


def abstract_parameters(config: ModelConfig) -> tuple[nnx.GraphDef[Transformer], nnx.State]:
    """The decoder's graph and the shapes of its parameters, without allocating them."""
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return nnx.split(model)


def initialize_parameters(config: ModelConfig, layout: Layout, seed: int) -> nnx.State:
    """Random fp32 parameters, created directly in their shards; the same values on every mesh."""

    def initialize(key: jax.Array) -> nnx.State:
        return nnx.split(Transformer(config, rngs=nnx.Rngs(params=key)))[1]

    shardings = layout.shardings(abstract_parameters(config)[1])
    return jax.jit(initialize, out_shardings=shardings)(jax.random.key(seed))


def place_abstract(abstract: nnx.State, layout: Layout, dtype: Any = jnp.float32) -> nnx.State:
    """Adds dtype and shardings to abstract parameters, to compile from or restore into."""

    def place(weight: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(weight.shape, dtype, sharding=sharding)

    return jax.tree.map(place, abstract, layout.shardings(abstract))
