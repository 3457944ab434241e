"""Cross-entropy on the completion's tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "... V"], targets: Int[Array, "..."], weights: Float[Array, "..."]
) -> Float[Array, ""]:
    """Weighted sum of negative log-likelihoods in nats: a sum, so that batches of unequal counts add up exactly."""
    # A masked sum rather than a gather: it splits over a sharded vocabulary, and its gradient needs no scatter.
    vocabulary = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    chosen = jnp.where(vocabulary == targets[..., None], logits, 0.0).sum(axis=-1)
    return ((jax.nn.logsumexp(logits, axis=-1) - chosen) * weights).sum()
