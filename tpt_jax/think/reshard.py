"""The reshard: copies training parameters into the types, sharding and memory layout of decoding parameters."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from tpt_jax.models.int8 import DecodingWeights, Int8Weight, quantize, summed_axes
from tpt_jax.runtime.sharding import Layout, LogicalAxes


@dataclasses.dataclass(frozen=True)
class Reshard:
    """The compiled reshard: fp32 to the compute dtype or int8, and over the interconnect from the training layout to
    stationary weights. Does not donate the training parameters.

    Attributes:
      num_bytes: size of the decoding parameters on one device.
      num_received: how many of those bytes come from other devices.
    """

    compiled: jax.stages.Compiled
    num_bytes: int
    num_received: int

    def __call__(self, parameters: nnx.State) -> nnx.State:
        return self.compiled(parameters)


def abstract_copy(abstract: nnx.State, layout: Layout, dtype: jnp.dtype, weights: DecodingWeights) -> nnx.State:
    """Types and shardings of the decoding parameters, given the shapes of the parameters."""

    def array(axes: LogicalAxes, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.sharding(axes, shape))

    def place(weight: nnx.Variable) -> nnx.Variable:
        axes, shape, summed = weight.get_metadata()["logical_axes"], weight.get_value().shape, summed_axes(weight)
        if weights == "compute" or not summed:
            return weight.replace(array(axes, shape, dtype))
        kept = [axis for axis in range(len(shape)) if axis not in summed]
        scale = array(tuple(axes[axis] for axis in kept), tuple(shape[axis] for axis in kept), jnp.float32)
        return weight.replace(Int8Weight(array(axes, shape, jnp.int8), scale))

    return jax.tree.map(place, abstract, is_leaf=_is_variable)


def compile_reshard(source: nnx.State, target: Any) -> Reshard:
    """Compiles the reshard between two abstract parameter trees; the target's leaves have memory layouts too."""
    reshard = jax.jit(
        lambda parameters: jax.tree.map(_move, parameters, target, is_leaf=_is_variable),
        out_shardings=jax.tree.map(lambda weight: weight.format, target),
    )
    num_bytes = num_received = 0
    pairs = zip(*(jax.tree.leaves(tree, is_leaf=_is_variable) for tree in (source, target)), strict=True)
    for before, after in pairs:
        size_before, size_after = (_shard_size(jax.tree.leaves(variable)[0]) for variable in (before, after))
        size = sum(_shard_size(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(after))
        num_bytes += size
        num_received += size * max(0, size_after - size_before) // size_after
    return Reshard(reshard.lower(source).compile(), num_bytes, num_received)


def _move(weight: nnx.Variable, target: nnx.Variable) -> nnx.Variable:
    """A weight in the type and the sharding of its decoding copy."""
    value, goal, summed = weight.get_value(), target.get_value(), summed_axes(weight)
    if weight.get_metadata()["logical_axes"][0] != "layers":
        return weight.replace(_convert(value, goal, summed))
    shardings = jax.tree.map(
        lambda leaf: NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[1:])), goal
    )

    def move_layer(layer: jax.Array) -> Any:
        converted = _convert(layer, goal, tuple(axis - 1 for axis in summed))
        return jax.tree.map(jax.lax.with_sharding_constraint, converted, shardings)

    # One layer at a time: otherwise XLA gathers all layers before it converts the first.
    return weight.replace(jax.lax.map(move_layer, value))


def _convert(weight: jax.Array, target: Any, summed: tuple[int, ...]) -> Any:
    return quantize(weight, summed) if isinstance(target, Int8Weight) else weight.astype(target.dtype)


def _shard_size(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape))


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)
