"""Per-token losses: cross-entropy, and two variants that down-weight tokens the model already predicts well."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tpt_jax.config import LossConfig

TokenLoss = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def token_loss(config: LossConfig) -> TokenLoss:
    """A function from a token's negative log-likelihood (-log p, in nats) to its loss."""
    if config.name == "focal":
        return lambda nll: (1 - jnp.exp(-nll)) ** config.focal_gamma * nll
    if config.name == "clipped":
        return lambda nll: jax.lax.stop_gradient(jnp.exp(-nll) <= config.clip_above).astype(nll.dtype) * nll
    return lambda nll: nll
