"""Resharding: the training parameters, copied into the type, sharding and memory layout that decoding wants."""

import dataclasses
import math
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Reshard:
    """Training parameters to decoding parameters: fp32 to the compute type, and over the interconnect from the training
    layout to stationary weights. The training parameters stay valid.

    Attributes:
      num_bytes: of the decoding parameters on one device.
      num_received: those of them that come from other devices.
    """

    compiled: jax.stages.Compiled
    num_bytes: int
    num_received: int

    def __call__(self, parameters: nnx.State) -> nnx.State:
        return self.compiled(parameters)


def compile_reshard(source: nnx.State, target: Any) -> Reshard:
    """From these shapes, types and shardings to those, memory layouts included."""

    def move(weight: nnx.Variable, to: nnx.Variable) -> nnx.Variable:
        value, target = weight.get_value(), to.get_value()
        if weight.get_metadata()["logical_axes"][0] != "layers":
            return weight.replace(value.astype(target.dtype))
        layer = NamedSharding(target.sharding.mesh, PartitionSpec(*target.sharding.spec[1:]))
        # One layer at a time: XLA would gather all of them before it lays out the first.
        return weight.replace(
            jax.lax.map(lambda x: jax.lax.with_sharding_constraint(x.astype(target.dtype), layer), value)
        )

    cast = jax.jit(
        lambda parameters: jax.tree.map(move, parameters, target, is_leaf=lambda node: isinstance(node, nnx.Variable)),
        out_shardings=jax.tree.map(lambda weight: weight.format, target),
    )
    held, needed = (
        [math.prod(weight.sharding.shard_shape(weight.shape)) for weight in jax.tree.leaves(tree)]
        for tree in (source, target)
    )
    sizes = [weight.dtype.itemsize for weight in jax.tree.leaves(target)]
    num_bytes = sum(math.prod(pair) for pair in zip(needed, sizes, strict=True))
    own = sum(min(have, need) * size for have, need, size in zip(held, needed, sizes, strict=True))
    return Reshard(cast.lower(source).compile(), num_bytes, num_bytes - own)
