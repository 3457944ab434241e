"""A LoRA adapter: a trained low-rank change of a frozen weight (Hu et al., arXiv 2106.09685).

The changed weight is W + alpha / rank * A B. A starts random and B at zero, so an untrained adapter changes nothing.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from tpt_jax.config import LoRAConfig
from tpt_jax.models.decoding_weights import summed_axes

LOW_RANK = "low_rank"  # checkpoint name of an adapter's product with A


class Adapter(nnx.Module):
    """The matrices A and B of one kind of weight, stacked over layers like it.

    A has the axes of the weight that products sum over, then the rank; B the rank, then the weight's other axes.
    """

    def __init__(self, weight: nnx.Param, config: LoRAConfig, rngs: nnx.Rngs):
        axes, shape, summed = weight.get_metadata()["logical_axes"], weight.get_value().shape, summed_axes(weight)
        first_output = 1 + len(summed)
        inputs, outputs = shape[1:first_output], shape[first_output:]
        normal = jax.random.normal(rngs.params(), (shape[0], *inputs, config.rank), jnp.float32)
        self.a = nnx.LoRAParam(
            normal * math.prod(inputs) ** -0.5, logical_axes=(*axes[:first_output], "rank"), num_summed=len(summed)
        )
        self.b = nnx.LoRAParam(
            jnp.zeros((shape[0], config.rank, *outputs), jnp.float32),
            logical_axes=(axes[0], "rank", *axes[first_output:]),
            num_summed=1,
            scale=config.alpha / config.rank,
        )

    def __call__(self, equation: str, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """What one layer's adapter adds to the weight's product with x.

        Args:
          equation: the einsum of that product.
        """
        activations, _, rest = equation.partition(",")
        letters, _, result = rest.partition("->")
        inputs = "".join(letter for letter in letters if letter not in result)
        outputs = "".join(letter for letter in letters if letter in result)
        kept = "".join(letter for letter in activations if letter not in inputs)

        low_rank = checkpoint_name(jnp.einsum(f"{activations},{inputs}R->{kept}R", x, self.a[...]), LOW_RANK)
        return jnp.einsum(f"{kept}R,R{outputs}->{result}", low_rank * _scale(self.b), self.b[...])

    @staticmethod
    def change(a: nnx.Variable, b: nnx.Variable, layer: Int[Array, ""]) -> Float[Array, "..."]:
        """What the adapter of one layer adds to its weight, from the stacked matrices."""
        return _scale(b) * jnp.tensordot(a.get_value()[layer], b.get_value()[layer], axes=1)


def _scale(b: nnx.Variable) -> float:
    """Alpha / rank."""
    return b.get_metadata()["scale"]
