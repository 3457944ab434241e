"""How weights that are not trained are stored, besides plain arrays, and the product that reads them.

Int8Weight         half the bytes of bfloat16: symmetric, with one scale per output channel; also frozen under LoRA
OutputMajorWeight  on a CPU: the order in which products with few rows are fastest
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int8

DecodingWeights = Literal["compute", "int8"]  # the compute dtype, or int8 with scales; norms and biases never are int8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Weight:
    """A weight in int8; the real weight is values * scale. Takes the array's place in an nnx.Param.

    The scale has the axes of the weight that a product with it does not sum over.
    """

    values: Int8[Array, "..."]
    scale: Float[Array, "..."]

    def __getitem__(self, index: Any) -> "Int8Weight":
        """One layer of stacked weights; with `...` all of them, as an array."""
        return Int8Weight(self.values[index], self.scale[index])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OutputMajorWeight:
    """A weight whose summed axes come last, in their order. Takes the array's place in an nnx.Param.

    XLA's CPU backend multiplies few activations by a matrix up to twice as fast if the matrix is the left operand, and
    its rows lie one after the other.
    """

    values: Float[Array, "..."]
    num_summed: int = dataclasses.field(metadata={"static": True})

    def __getitem__(self, index: Any) -> "OutputMajorWeight":
        """One layer of stacked weights; with `...` all of them, as an array."""
        return OutputMajorWeight(self.values[index], self.num_summed)


DecodingWeight = Float[Array, "..."] | Int8Weight | OutputMajorWeight
FEW_ROWS = 128  # of activations: with more, the order of operands makes no difference


def summed_axes(weight: nnx.Variable) -> tuple[int, ...]:
    """The axes of a weight that products sum over; none for norms and biases, which enter no product."""
    return tuple(range(1, 1 + weight.get_metadata().get("num_summed", 0)))


def quantize(weight: Float[Array, "..."], summed: tuple[int, ...]) -> Int8Weight:
    """Rounds a weight to int8: the largest magnitude of each output channel maps to 127."""
    weight = weight.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(weight).max(axis=summed, keepdims=True), 1e-30) / 127.0
    return Int8Weight(jnp.round(weight / scale).astype(jnp.int8), jnp.squeeze(scale, summed))


def dequantize(weight: Int8Weight, summed: tuple[int, ...]) -> Float[Array, "..."]:
    """The real weight, in fp32."""
    return weight.values.astype(jnp.float32) * jnp.expand_dims(weight.scale, summed)


def product(
    equation: str, x: Float[Array, "..."], weight: DecodingWeight, dtype: jnp.dtype | None = None
) -> Float[Array, "..."]:
    """The einsum of activations and a weight, whose output channels are the last axes of the result.

    int8 is read and converted on the way into the product, and the sums are scaled: no converted copy of the weight is
    written to memory.

    Args:
      dtype: of the result, if not that of x.
    """
    if isinstance(weight, OutputMajorWeight):
        return _output_major_product(x, weight, dtype)
    if not isinstance(weight, Int8Weight):
        return jnp.einsum(equation, x, weight, preferred_element_type=dtype)
    sums = jnp.einsum(equation, x, weight.values.astype(x.dtype), preferred_element_type=dtype)
    scale = jnp.expand_dims(weight.scale, tuple(range(sums.ndim - weight.scale.ndim)))
    return (sums.astype(jnp.float32) * scale).astype(sums.dtype)


def _output_major_product(x: Float[Array, "..."], weight: OutputMajorWeight, dtype: jnp.dtype | None) -> jax.Array:
    num_outputs, num_rows = weight.values.ndim - weight.num_summed, x.ndim - weight.num_summed
    size = math.prod(x.shape[num_rows:])
    matrix, rows = weight.values.reshape(-1, size), x.reshape(-1, size)
    if len(rows) > FEW_ROWS:
        sums = jnp.einsum("RI,OI->RO", rows, matrix, preferred_element_type=dtype)
    else:  # the barriers keep XLA from exchanging the operands
        transposed = jnp.einsum("OI,RI->OR", matrix, rows, preferred_element_type=dtype)
        sums = jax.lax.optimization_barrier(jax.lax.optimization_barrier(transposed).T)
    return sums.reshape(*x.shape[:num_rows], *weight.values.shape[:num_outputs])
