"""The reshard: copies training parameters into the dtype, sharding and memory layout of decoding parameters."""

import dataclasses
import math
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Reshard:
    """The compiled reshard: fp32 to the compute dtype, and over the interconnect from the training layout to stationary
    weights. Does not donate the training parameters.

    Attributes:
      num_bytes: size of the decoding parameters on one device.
      num_received: how many of those bytes come from other devices.
    """

    compiled: jax.stages.Compiled
    num_bytes: int
    num_received: int

    def __call__(self, parameters: nnx.State) -> nnx.State:
        return self.compiled(parameters)


def compile_reshard(source: nnx.State, target: Any) -> Reshard:
    """Compiles the reshard between two abstract parameter trees; the target's leaves have memory layouts too."""

    def move(weight: nnx.Variable, target: nnx.Variable) -> nnx.Variable:
        value, abstract = weight.get_value(), target.get_value()
        if weight.get_metadata()["logical_axes"][0] != "layers":
            return weight.replace(value.astype(abstract.dtype))
        layer_sharding = NamedSharding(abstract.sharding.mesh, PartitionSpec(*abstract.sharding.spec[1:]))

        def move_layer(layer: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(layer.astype(abstract.dtype), layer_sharding)

        # One layer at a time: otherwise XLA gathers all layers before it converts the first.
        return weight.replace(jax.lax.map(move_layer, value))

    reshard = jax.jit(
        lambda parameters: jax.tree.map(move, parameters, target, is_leaf=lambda node: isinstance(node, nnx.Variable)),
        out_shardings=jax.tree.map(lambda weight: weight.format, target),
    )
    num_bytes = num_local = 0
    for before, after in zip(jax.tree.leaves(source), jax.tree.leaves(target), strict=True):
        size_before, size_after = (math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in (before, after))
        num_bytes += size_after * after.dtype.itemsize
        num_local += min(size_before, size_after) * after.dtype.itemsize
    return Reshard(reshard.lower(source).compile(), num_bytes, num_bytes - num_local)
