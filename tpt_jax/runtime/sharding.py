"""Logical axes to mesh axes: one small table for each phase.

Weights and activations name their dimensions by what they mean ("embed", "heads", "batch", ...). A `Layout` is a mesh
and the table that says over which mesh axes a dimension of that name is split.
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

# Decoding: weights stand still. Split over fsdp, each would be gathered anew for every token.
DECODE_RULES: Rules = {**TRAIN_RULES, "embed": ()}

# A dimension too small to split is copied instead: two devices may share one key-value head.
COPIED_WHERE_INDIVISIBLE = frozenset({"kv_heads"})


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each dimension of each array of one phase lives."""

    mesh: Mesh
    rules: Rules

    def spec(self, axes: LogicalAxes, shape: tuple[int, ...]) -> PartitionSpec:
        """The partition of an array with these logical axes.

        Raises:
          UserError: a dimension does not divide over its mesh axes.
          ValueError: two dimensions would be split over the same mesh axis.
        """
        if len(axes) != len(shape):
            raise ValueError(f"logical axes {axes} do not fit shape {shape}")
        parts: list[tuple[str, ...] | None] = []
        for name, size in zip(axes, shape, strict=True):
            mesh_axes = self.rules.get(name, ()) if name else ()
            ways = self.ways(mesh_axes)
            if size % ways:
                if name not in COPIED_WHERE_INDIVISIBLE:
                    raise UserError(
                        f"mesh {self.describe()}: {name} ({size}) does not divide over "
                        f"{' x '.join(mesh_axes)} ({ways}); choose sizes whose product divides {size}"
                    )
                mesh_axes = ()
            parts.append(mesh_axes or None)
        used = [axis for part in parts if part for axis in part]
        if len(used) != len(set(used)):
            raise ValueError(f"logical axes {axes} are split over {parts}: a mesh axis stands twice")
        return PartitionSpec(*parts)

    def ways(self, mesh_axes: tuple[str, ...]) -> int:
        """Into how many parts a dimension split over these mesh axes falls."""
        product = 1
        for axis in mesh_axes:
            product *= self.mesh.shape[axis]
        return product

    @property
    def batch_ways(self) -> int:
        """A batch must be a multiple of this."""
        return self.ways(tuple(self.rules["batch"]))

    def sharding(self, axes: LogicalAxes, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(axes, shape))

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Pins an activation's sharding inside a jitted function."""
        return jax.lax.with_sharding_constraint(x, self.sharding(axes, x.shape))

    def shardings(self, state: nnx.State) -> Any:
        """The sharding of every parameter of a (possibly abstract) state, as a tree of the same structure."""

        def of(variable: nnx.Variable) -> nnx.Variable:
            return variable.replace(self.sharding(variable.get_metadata()["logical_axes"], variable.get_value().shape))

        return jax.tree.map(of, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))

    def within_shard(self) -> "Layout":
        """The same layout inside a function written for one shard of the batch (jax.shard_map), where only the axes
        that do not split the batch are left."""
        mesh: Any = jax.sharding.get_abstract_mesh()  # all that a sharding constraint needs of a mesh
        return Layout(mesh, {**self.rules, "batch": ()})

    def describe(self) -> str:
        return " x ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items())


def place(array: Any, sharding: NamedSharding) -> jax.Array:
    """What every host has whole, on the devices: each host sends its own devices' part."""
    return jax.make_array_from_callback(np.shape(array), sharding, lambda index: np.asarray(array)[index])


def in_memory(state: nnx.State, kind: Literal["device", "pinned_host"]) -> nnx.State:
    """The state in the devices' or in their hosts' memory, sharded as it is; where it is there already, the same."""
    return jax.device_put(state, jax.tree.map(lambda x: x.sharding.with_memory_kind(kind), state))
