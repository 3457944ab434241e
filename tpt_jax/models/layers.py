"""The decoder layer: norms, attention projections and MLP, with weights stacked over layers.

Shape letters as in attention.py. Computes in the parameters' dtype.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from tpt_jax.config import LoRAConfig
from tpt_jax.models.adapter import Adapter
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.attention import rope_frequencies, rotate
from tpt_jax.models.decoding_weights import product
from tpt_jax.runtime.sharding import Layout, LogicalAxes

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

BLOCK_OUTPUTS = ("output", "down")  # the last products of attention and MLP
PROJECTIONS = ("query", "key", "value", "gate", "up", *BLOCK_OUTPUTS)


def weight(rngs: nnx.Rngs, shape: tuple[int, ...], axes: LogicalAxes, fan_in: int, num_summed: int = 1) -> nnx.Param:
    """A random weight; products with it sum over `num_summed` axes, from the second on."""
    value = jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5
    return nnx.Param(value, logical_axes=axes, num_summed=num_summed)


def norm_scale(config: ModelConfig, *shape: int) -> nnx.Param:
    # Gemma stores w and scales by 1 + w; LLaMA stores the scale. Both start at a scale of one.
    start = jnp.zeros if config.is_gemma else jnp.ones
    return nnx.Param(start(shape, jnp.float32), logical_axes=(*("layers" for _ in shape[1:]), "norm"))


def _bias(shape: tuple[int, ...], axes: LogicalAxes) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, jnp.float32), logical_axes=axes)


@jax.named_scope("norm")
def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], config: ModelConfig) -> Float[Array, "... D"]:
    """Root-mean-square norm in fp32; the scale is 1 + w for Gemma, w for LLaMA, as in their published code."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + config.norm_eps)
    scale = jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
    return (wide * (1 + scale if config.is_gemma else scale)).astype(x.dtype)


class Layers(nnx.Module):
    """Some or all decoder layers: weights have a leading layer axis; `apply` is called on one slice at a time."""

    def __init__(self, config: ModelConfig, num_layers: int, rngs: nnx.Rngs, lora: LoRAConfig | None = None):
        L, D, F = num_layers, config.embed_dim, config.mlp_dim  # noqa: N806
        N, K, H = config.num_heads, config.num_kv_heads, config.head_dim  # noqa: N806
        depth = 2 * config.num_layers  # additions to the residual stream
        self.config = config
        self.query = weight(rngs, (L, D, N, H), ("layers", "embed", "heads", "head_dim"), D)
        self.key = weight(rngs, (L, D, K, H), ("layers", "embed", "kv_heads", "head_dim"), D)
        self.value = weight(rngs, (L, D, K, H), ("layers", "embed", "kv_heads", "head_dim"), D)
        self.output = weight(rngs, (L, N, H, D), ("layers", "heads", "head_dim", "embed"), N * H * depth, num_summed=2)
        self.gate = weight(rngs, (L, D, F), ("layers", "embed", "mlp"), D)
        self.up = weight(rngs, (L, D, F), ("layers", "embed", "mlp"), D)
        self.down = weight(rngs, (L, F, D), ("layers", "mlp", "embed"), F * depth)
        self.attention_norm = norm_scale(config, L, D)
        self.mlp_norm = norm_scale(config, L, D)
        if config.is_gemma:
            self.post_attention_norm = norm_scale(config, L, D)
            self.post_mlp_norm = norm_scale(config, L, D)
        if config.attention_bias:
            self.query_bias = _bias((L, N, H), ("layers", "heads", "bias"))
            self.key_bias = _bias((L, K, H), ("layers", "kv_heads", "bias"))
            self.value_bias = _bias((L, K, H), ("layers", "kv_heads", "bias"))
        if config.query_key_norms:
            self.query_norm = norm_scale(config, L, H)
            self.key_norm = norm_scale(config, L, H)
        adapters = {name: Adapter(getattr(self, name), lora, rngs) for name in lora.targets} if lora else {}
        self.adapters = nnx.Dict(adapters)

    def project(self, equation: str, x: Float[Array, "..."], name: str) -> Float[Array, "..."]:
        """The product of x and the weight of this name, with its adapter if it has one; a checkpoint name too."""
        result = product(equation, x, getattr(self, name)[...])
        if name in self.adapters:
            result = result + self.adapters[name](equation, x)
        return checkpoint_name(result, name)

    @jax.named_scope("layer")
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
          index: of a layer like this one, which says whether and with what frequencies it rotates.
          attend: this layer's attention, which applies its window.
        """
        config = self.config
        h = rms_norm(x, self.attention_norm[...], config)
        query = self.project("BTD,DNH->BTNH", h, "query")
        key = self.project("BTD,DKH->BTKH", h, "key")
        value = self.project("BTD,DKH->BTKH", h, "value")
        if config.attention_bias:
            query, key = query + self.query_bias[...][None, None], key + self.key_bias[...][None, None]
            value = value + self.value_bias[...][None, None]
        if config.query_key_norms:
            query, key = rms_norm(query, self.query_norm[...], config), rms_norm(key, self.key_norm[...], config)
        if config.rotated[index]:
            frequencies = rope_frequencies(config, config.windows[index])
            query, key = rotate(query, positions, frequencies), rotate(key, positions, frequencies)
        query = layout.constrain(query, "batch", None, "heads", None)
        h = self.project("BTNH,NHD->BTD", attend(query, key, value), "output")
        if config.is_gemma:
            h = rms_norm(h, self.post_attention_norm[...], config)
        x = layout.constrain(x + h, "batch", None, None)

        h = rms_norm(x, self.mlp_norm[...], config)
        activate = _gelu if config.is_gemma else jax.nn.silu
        h = activate(self.project("BTD,DF->BTF", h, "gate")) * self.project("BTD,DF->BTF", h, "up")
        h = layout.constrain(h, "batch", None, "mlp")
        h = self.project("BTF,FD->BTD", h, "down")
        if config.is_gemma:
            h = rms_norm(h, self.post_mlp_norm[...], config)
        return layout.constrain(x + h, "batch", None, None), key, value


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)
