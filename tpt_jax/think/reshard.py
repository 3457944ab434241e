"""The reshard: copies training parameters into the dtype, sharding and memory layout of decoding parameters."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

Path = tuple[Any, ...]  # of a parameter, as nnx.to_flat_state gives it


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


def compile_reshard(source: nnx.State, target: nnx.State) -> Reshard:
    """Compiles the reshard between two abstract parameter trees.

    Args:
      source: of a Transformer.
      target: of an InferenceTransformer; its leaves have memory layouts too.
    """
    num_groups = len(target["groups"])

    def reshard(parameters: nnx.State) -> nnx.State:
        given = dict(nnx.to_flat_state(parameters))
        moved = [
            (path, placed.replace(_move(given[_source_path(path)].get_value(), path, num_groups, placed.get_value())))
            for path, placed in nnx.to_flat_state(target)
        ]
        return nnx.from_flat_state(moved)

    jitted = jax.jit(reshard, out_shardings=jax.tree.map(lambda weight: weight.format, target))
    num_bytes = num_local = 0
    given = dict(nnx.to_flat_state(source))
    for path, placed in nnx.to_flat_state(target):
        before, after = given[_source_path(path)].get_value(), placed.get_value()
        size_before, size_after = (math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in (before, after))
        if path[0] == "groups":
            size_before = size_before * len(after) // len(before)
        num_bytes += size_after * after.dtype.itemsize
        num_local += min(size_before, size_after) * after.dtype.itemsize
    return Reshard(jitted.lower(source).compile(), num_bytes, num_bytes - num_local)


def _source_path(path: Path) -> Path:
    """Where a Transformer has the layers of a group."""
    return ("layers", *path[2:]) if path[0] == "groups" else path


def _move(weight: jax.Array, path: Path, num_groups: int, target: jax.ShapeDtypeStruct) -> jax.Array:
    """A weight, or a group's layers of it, in the target's dtype and sharding."""
    if path[0] != "groups":
        return weight.astype(target.dtype)
    sharding: Any = target.sharding
    layer_sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))

    def move_layer(layer: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(weight[layer].astype(target.dtype), layer_sharding)

    # One layer at a time: otherwise XLA gathers all layers before it converts the first.
    return jax.lax.map(move_layer, jnp.arange(path[1], len(weight), num_groups, dtype=jnp.int32))
