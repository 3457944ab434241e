"""The master parameters: what training changes and sampling copies.

Without LoRA they are all weights, in fp32. With LoRA they are frozen weights, in bfloat16 or int8, and fp32 adapters.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tpt_jax.config import LoRAConfig
from tpt_jax.models.adapter import Adapter
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.decoding_weights import Int8Weight, dequantize, quantize, summed_axes
from tpt_jax.models.transformer import Transformer, abstract_parameters
from tpt_jax.runtime.sharding import Layout

Path = tuple[Any, ...]  # of a parameter, as nnx.to_flat_state gives it
LAYERS, ADAPTERS = "layers", "adapters"  # names in a Transformer, and in its Layers


def abstract_masters(
    config: ModelConfig, layout: Layout, lora: LoRAConfig | None = None
) -> tuple[nnx.GraphDef[Transformer], nnx.State]:
    """The decoder's graph, and its parameters' shapes, types and shardings, to compile from or restore into."""
    graph, abstract = abstract_parameters(config, lora)
    dtype = jnp.float32 if lora is None else jnp.bfloat16

    def array(axes: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.sharding(axes, shape))

    def place(path: Path, weight: nnx.Variable) -> nnx.Variable:
        axes, shape = weight.get_metadata()["logical_axes"], weight.get_value().shape
        if isinstance(weight, nnx.LoRAParam):
            return weight.replace(array(axes, shape, jnp.float32))
        if _is_int8(path, weight, lora):
            kept = [axis for axis in range(len(shape)) if axis not in summed_axes(weight)]
            scale = array(tuple(axes[axis] for axis in kept), tuple(shape[axis] for axis in kept), jnp.float32)
            return weight.replace(Int8Weight(array(axes, shape, jnp.int8), scale))
        return weight.replace(array(axes, shape, dtype))

    return graph, nnx.from_flat_state([(path, place(path, weight)) for path, weight in nnx.to_flat_state(abstract)])


def split_trained(parameters: nnx.State) -> tuple[nnx.State, nnx.State]:
    """The parameters that training changes, and the frozen ones: adapters and weights, or all weights and nothing."""
    adapters, weights = nnx.split_state(parameters, nnx.LoRAParam, ...)
    return (adapters, weights) if jax.tree.leaves(adapters) else (weights, adapters)


def add_adapters(weights: nnx.State, config: ModelConfig, layout: Layout, lora: LoRAConfig, seed: int) -> nnx.State:
    """Freezes weights, and adds adapters that change nothing yet.

    Args:
      weights: of any float type, or frozen already.
      seed: for the adapters' random halves; the same values on every mesh.
    """
    frozen = [(path, freeze(path, weight, lora)) for path, weight in nnx.to_flat_state(weights)]
    shardings = jax.tree.map(lambda leaf: leaf.sharding, split_trained(abstract_masters(config, layout, lora)[1])[0])

    def initialize(key: jax.Array) -> nnx.State:
        return split_trained(nnx.split(Transformer(config, rngs=nnx.Rngs(params=key), lora=lora))[1])[0]

    adapters = jax.jit(initialize, out_shardings=shardings)(jax.random.key(seed))
    return nnx.merge_state(nnx.from_flat_state(frozen), adapters)


def freeze(path: Path, weight: nnx.Variable, lora: LoRAConfig) -> nnx.Variable:
    """A weight as it is stored while adapters train."""
    value = weight.get_value()
    if isinstance(value, Int8Weight):
        return weight
    if _is_int8(path, weight, lora):
        return weight.replace(_quantize(value, summed_axes(weight)))
    return weight.replace(value if value.dtype == jnp.bfloat16 else _to_bfloat16(value))


def merge_adapters(parameters: nnx.State) -> nnx.State:
    """All weights in fp32, each with its adapter added; parameters without adapters as they are."""
    adapters, weights = nnx.split_state(parameters, nnx.LoRAParam, ...)
    if not jax.tree.leaves(adapters):
        return parameters

    def sharding_of(weight: nnx.Variable) -> nnx.Variable:
        return weight.replace(jax.tree.leaves(weight.get_value())[0].sharding)

    shardings = jax.tree.map(sharding_of, weights, is_leaf=lambda node: isinstance(node, nnx.Variable))
    return jax.jit(_merge_adapters, out_shardings=shardings)(parameters)


def _merge_adapters(parameters: nnx.State) -> nnx.State:
    flat = dict(nnx.to_flat_state(parameters))

    def merged(path: Path, weight: nnx.Variable) -> jax.Array:
        if path[0] != LAYERS:
            return weight.get_value().astype(jnp.float32)
        layers = jnp.arange(len(jax.tree.leaves(weight.get_value())[0]), dtype=jnp.int32)
        return jax.lax.map(lambda layer: merged_layer(flat, path, layer).astype(jnp.float32), layers)

    return nnx.from_flat_state(
        [
            (path, weight.replace(merged(path, weight)))
            for path, weight in flat.items()
            if not isinstance(weight, nnx.LoRAParam)
        ]
    )


def merged_layer(parameters: Mapping[Path, nnx.Variable], path: Path, layer: Int[Array, ""]) -> Float[Array, "..."]:
    """One layer of a stacked weight: in its own type, or in fp32 if it is in int8 or has an adapter to add."""
    weight = parameters[path]
    value = weight.get_value()[layer]
    if isinstance(value, Int8Weight):
        value = dequantize(value, tuple(axis - 1 for axis in summed_axes(weight)))
    a, b = (parameters.get((LAYERS, ADAPTERS, *path[1:], matrix)) for matrix in ("a", "b"))
    if a is None or b is None:
        return value
    return value.astype(jnp.float32) + Adapter.change(a, b, layer)


def master_bytes(config: ModelConfig, layout: Layout, lora: LoRAConfig | None = None) -> int:
    """Size of the parameters on one device."""
    leaves = jax.tree.leaves(abstract_masters(config, layout, lora)[1])
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def num_trained(config: ModelConfig, lora: LoRAConfig | None = None) -> int:
    """Number of values that training changes."""
    trained, _ = split_trained(abstract_parameters(config, lora)[1])
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained))


def _is_int8(path: Path, weight: nnx.Variable, lora: LoRAConfig | None) -> bool:
    """Whether a weight is frozen in int8; vocabulary tables are not, since their loss and lookup read plain arrays."""
    return lora is not None and lora.frozen == "int8" and path[0] == LAYERS and bool(summed_axes(weight))


_quantize = jax.jit(quantize, static_argnums=1)
_to_bfloat16 = jax.jit(lambda value: value.astype(jnp.bfloat16))
