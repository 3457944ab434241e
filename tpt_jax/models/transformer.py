"""One decoder for Gemma, LLaMA and LLaMA's relatives: whole sequences through stacked, scanned layers.

Shape letters as in attention.py. Computes in the parameters' dtype; cast them first, or pass compute_dtype.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from tpt_jax.config import LoRAConfig
from tpt_jax.models.adapter import LOW_RANK
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.attention import softcap
from tpt_jax.models.decoding_weights import Int8Weight, product
from tpt_jax.models.embedding import embedding_lookup
from tpt_jax.models.layers import BLOCK_OUTPUTS, PROJECTIONS, Attend, Layers, norm_scale, rms_norm, weight
from tpt_jax.models.self_attention import SPLASH_RESIDUALS, Kernel, self_attention
from tpt_jax.runtime.sharding import Layout

Remat = Literal["none", "dots", "outputs", "full"]

LAYER_WEIGHTS = "layer_weights"  # checkpoint name of one layer's slice of the stacked weights
# What is saved for the backward pass. No policy saves a layer's weights: they are sliced from the stack again.
REMAT_POLICIES: Mapping[Remat, Any] = {
    "none": jax.checkpoint_policies.save_anything_except_these_names(LAYER_WEIGHTS),
    "dots": jax.checkpoint_policies.save_only_these_names(*PROJECTIONS, LOW_RANK, SPLASH_RESIDUALS),
    "outputs": jax.checkpoint_policies.save_only_these_names(*BLOCK_OUTPUTS, LOW_RANK),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Decoder(nnx.Module):
    """What a decoder has besides its layers: the embedding, the final norm and the output projection."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        V, D = config.vocab_size, config.embed_dim  # noqa: N806
        self.config = config
        # A tied table is also the output projection: rows of norm about 1 give logits of order 1.
        self.embedding = weight(rngs, (V, D), ("vocab", "embed"), D)
        self.final_norm = norm_scale(config, D)
        if not config.tie_embeddings:
            self.unembedding = weight(rngs, (V, D), ("vocab", "embed"), D)

    @property
    def dtype(self) -> jnp.dtype:
        """The type of activations: that of the norms, whatever the weights are stored in."""
        return self.final_norm[...].dtype

    @property
    def output_table(self) -> Any:  # an array, or a DecodingWeight while sampling
        """The output projection; with tied embeddings, the embedding table."""
        return (self.embedding if self.config.tie_embeddings else self.unembedding)[...]

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Next-token logits in fp32, soft-capped if the config has final_softcap."""
        scores = product("...D,VD->...V", hidden, self.output_table, jnp.dtype("float32"))
        return softcap(scores, self.config.final_softcap)

    @jax.named_scope("embedding")
    def embed(self, tokens: jax.Array, layout: Layout, dtype: jnp.dtype) -> Float[Array, "B T D"]:
        x = embedding_lookup(self.embedding[...], tokens, layout, dtype)
        if self.config.is_gemma:
            x = x * jnp.asarray(math.sqrt(self.config.embed_dim), x.dtype)  # rounded to x's dtype, as in training
        return layout.constrain(x, "batch", None, None)


class Transformer(Decoder):
    """A decoder-only transformer for whole sequences, as in training."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, lora: LoRAConfig | None = None):
        super().__init__(config, rngs=rngs)
        self.layers = Layers(config, config.num_layers, rngs, lora)

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
          remat: what the backward pass recomputes; see config.TrainConfig.
          compute_dtype: dtype that weights are cast to; None for their own.
        """

        def make_attend(window: int | None) -> Attend:
            def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
                options: Any = {"window": window, "config": self.config, "layout": layout, "kernel": kernel}
                return self_attention(query, key, value, segment_ids, **options)

            return attend

        dtype = jnp.dtype(compute_dtype or self.dtype)
        x = self.embed(tokens, layout, dtype)
        x = self._scan(x, positions, make_attend, layout=layout, remat=remat)
        return rms_norm(x, self.final_norm[...], self.config)

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
        weights = jax.tree.map(lambda weight: _cast(weight, x.dtype), weights, is_leaf=_is_int8)
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


def _is_int8(leaf: Any) -> bool:
    return isinstance(leaf, Int8Weight)


def _cast(weight: jax.Array | Int8Weight, dtype: jnp.dtype) -> jax.Array | Int8Weight:
    """int8 is converted in the products that read it."""
    return weight if isinstance(weight, Int8Weight) else weight.astype(dtype)


def abstract_parameters(
    config: ModelConfig, lora: LoRAConfig | None = None
) -> tuple[nnx.GraphDef[Transformer], nnx.State]:
    """The decoder's graph and the shapes of its parameters, without allocating them."""
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0), lora=lora))
    return nnx.split(model)


def initialize_parameters(config: ModelConfig, layout: Layout, seed: int) -> nnx.State:
    """Random fp32 parameters, created directly in their shards; the same values on every mesh."""

    def initialize(key: jax.Array) -> nnx.State:
        return nnx.split(Transformer(config, rngs=nnx.Rngs(params=key)))[1]

    shardings = layout.shardings(abstract_parameters(config)[1])
    return jax.jit(initialize, out_shardings=shardings)(jax.random.key(seed))
