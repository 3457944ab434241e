"""The reshard: copies training parameters into the types, sharding and memory layout of decoding parameters."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from tpt_jax.models.decoding_weights import (
    DecodingWeights,
    Int8Weight,
    OutputMajorWeight,
    quantize,
    summed_axes,
)
from tpt_jax.models.masters import merged_layer
from tpt_jax.runtime.sharding import Layout, LogicalAxes

Path = tuple[Any, ...]  # of a parameter, as nnx.to_flat_state gives it


@dataclasses.dataclass(frozen=True)
class Reshard:
    """The compiled reshard: fp32 to the compute dtype or int8, and over the interconnect from the training layout to
    stationary weights; adapters are merged. Does not donate the training parameters.

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
    """Types and shardings of the decoding parameters, given the shapes of an InferenceTransformer's."""
    on_cpu = layout.mesh.devices.flat[0].platform == "cpu"

    def array(axes: LogicalAxes, shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.sharding(axes, shape))

    def place(weight: nnx.Variable) -> nnx.Variable:
        axes, shape, summed = weight.get_metadata()["logical_axes"], weight.get_value().shape, summed_axes(weight)
        kept = [axis for axis in range(len(shape)) if axis not in summed]
        if weights == "int8" and summed:
            scale = array(tuple(axes[axis] for axis in kept), tuple(shape[axis] for axis in kept), jnp.float32)
            return weight.replace(Int8Weight(array(axes, shape, jnp.int8), scale))
        if on_cpu and summed:
            order = (*kept, *summed)
            values = array(tuple(axes[axis] for axis in order), tuple(shape[axis] for axis in order), dtype)
            return weight.replace(OutputMajorWeight(values, len(summed)))
        return weight.replace(array(axes, shape, dtype))

    return jax.tree.map(place, abstract, is_leaf=lambda node: isinstance(node, nnx.Variable))


def compile_reshard(source: nnx.State, target: nnx.State) -> Reshard:
    """Compiles the reshard between two abstract parameter trees.

    Args:
      source: of a Transformer.
      target: of an InferenceTransformer; its leaves have memory layouts too.
    """
    num_groups = len(target["groups"])
    goals = list(nnx.to_flat_state(target))

    def reshard(parameters: nnx.State) -> nnx.State:
        given = dict(nnx.to_flat_state(parameters))
        return nnx.from_flat_state([(path, goal.replace(_move(given, goal, path, num_groups))) for path, goal in goals])

    jitted = jax.jit(reshard, out_shardings=jax.tree.map(lambda weight: weight.format, target))
    given = dict(nnx.to_flat_state(source))
    num_bytes = num_received = 0
    for path, goal in goals:
        before = jax.tree.leaves(given[_source_path(path)].get_value())[0]
        after = jax.tree.leaves(goal.get_value())
        share = len(after[0]) / len(before) if path[0] == "groups" else 1.0
        size_before, size_after = _shard_size(before) * share, _shard_size(after[0])
        size = sum(_shard_size(leaf) * leaf.dtype.itemsize for leaf in after)
        num_bytes += size
        num_received += int(size * max(0.0, 1 - size_before / size_after))
    return Reshard(jitted.lower(source).compile(), num_bytes, num_received)


def _source_path(path: Path) -> Path:
    """Where a Transformer has the layers of a group."""
    return ("layers", *path[2:]) if path[0] == "groups" else path


def _move(given: Mapping[Path, nnx.Variable], goal: nnx.Variable, path: Path, num_groups: int) -> Any:
    """A weight, or a group's layers of it with their adapters, in the type and the sharding of the decoding copy."""
    source = _source_path(path)
    weight, target = given[source], goal.get_value()
    summed = summed_axes(weight)
    if path[0] != "groups":
        return _convert(weight.get_value(), target, summed)
    num_layers = len(jax.tree.leaves(weight.get_value())[0])
    shardings = jax.tree.map(
        lambda leaf: NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[1:])), target
    )

    def move_layer(layer: jax.Array) -> Any:
        converted = _convert(merged_layer(given, source, layer), target, tuple(axis - 1 for axis in summed))
        return jax.tree.map(jax.lax.with_sharding_constraint, converted, shardings)

    # One layer at a time: otherwise XLA gathers all layers before it converts the first.
    return jax.lax.map(move_layer, jnp.arange(path[1], num_layers, num_groups, dtype=jnp.int32))


def _convert(weight: jax.Array, target: Any, summed: tuple[int, ...]) -> Any:
    if isinstance(target, Int8Weight):
        return quantize(weight, summed)
    if isinstance(target, OutputMajorWeight):
        last = range(-len(summed), 0)
        return OutputMajorWeight(jnp.moveaxis(weight, summed, tuple(last)).astype(target.values.dtype), len(summed))
    return weight.astype(target.dtype)


def _shard_size(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape))
