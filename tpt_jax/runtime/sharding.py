"""Sharding rules: a table from logical axes to mesh axes, one for training and one for decoding.

Weights and activations name their dimensions by meaning ("embed", "heads", "batch", ...). A `Layout` combines a mesh
with the table of the mesh axes that split each logical axis.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tpt_jax.errors import UserError

LogicalAxes = tuple[str | None, ...]
Rules = Mapping[str, tuple[str, ...]]

# Training: weights, gradients and optimizer state are split over fsdp and tensor (ZeRO-3 with tensor parallelism).
TRAIN_RULES: Rules = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}

# Decoding: weights are not split over fsdp, or they would be gathered again for every token.
DECODE_RULES: Rules = {**TRAIN_RULES, "embed": ()}

# Logical axes that are replicated if too small to split: several devices may need the same key-value head.
REPLICATED_IF_INDIVISIBLE = frozenset({"kv_heads"})


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and one table of sharding rules."""

    mesh: Mesh
    rules: Rules

    def spec(self, axes: LogicalAxes, shape: tuple[int, ...]) -> PartitionSpec:
        """The PartitionSpec of an array with these logical axes.

        Raises:
          UserError: a dimension does not divide over its mesh axes.
          ValueError: two dimensions would be split over the same mesh axis, or the axes do not match the shape.
        """
        if len(axes) != len(shape):
            raise ValueError(f"logical axes {axes} do not match shape {shape}")
        partitions: list[tuple[str, ...] | None] = []
        for name, size in zip(axes, shape, strict=True):
            mesh_axes = self.rules.get(name, ()) if name else ()
            ways = self.ways(mesh_axes)
            if size % ways:
                if name not in REPLICATED_IF_INDIVISIBLE:
                    raise UserError(
                        f"mesh {self.describe()}: {name} ({size}) does not divide over "
                        f"{' x '.join(mesh_axes)} ({ways}); choose sizes whose product divides {size}"
                    )
                mesh_axes = ()
            partitions.append(mesh_axes or None)
        used = [axis for mesh_axes in partitions if mesh_axes for axis in mesh_axes]
        if len(used) != len(set(used)):
            raise ValueError(f"logical axes {axes} would be split over {partitions}, which uses a mesh axis twice")
        return PartitionSpec(*partitions)

    def ways(self, mesh_axes: tuple[str, ...]) -> int:
        """Number of shards of a dimension that is split over these mesh axes."""
        product = 1
        for axis in mesh_axes:
            product *= self.mesh.shape[axis]
        return product

    @property
    def batch_ways(self) -> int:
        """Number of shards of the batch dimension; a batch must be a multiple of it."""
        return self.ways(tuple(self.rules["batch"]))

    def sharding(self, axes: LogicalAxes, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(axes, shape))

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Constrains an activation's sharding inside a jitted function."""
        return jax.lax.with_sharding_constraint(x, self.sharding(axes, x.shape))

    def shardings(self, state: nnx.State) -> Any:
        """A tree like the (possibly abstract) state, with the sharding of each parameter."""

        def sharding_of(variable: nnx.Variable) -> nnx.Variable:
            return variable.replace(self.sharding(variable.get_metadata()["logical_axes"], variable.get_value().shape))

        return jax.tree.map(sharding_of, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))

    def within_shard(self) -> "Layout":
        """The layout to use inside a jax.shard_map over the batch axes: the batch is not split any further."""
        mesh: Any = jax.sharding.get_abstract_mesh()  # enough of a mesh for a sharding constraint
        return Layout(mesh, {**self.rules, "batch": ()})

    def describe(self) -> str:
        return " x ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items())


def place(array: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every host holds in full on the devices; each host transfers only its devices' shards."""
    return jax.make_array_from_callback(np.shape(array), sharding, lambda index: np.asarray(array)[index])


def in_memory(state: nnx.State, kind: Literal["device", "pinned_host"]) -> nnx.State:
    """Moves a state to device or host memory, keeping its sharding; returns it unchanged if it is already there."""
    return jax.device_put(state, jax.tree.map(lambda x: x.sharding.with_memory_kind(kind), state))
