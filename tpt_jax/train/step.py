"""One optimizer step: gradients summed over micro-batches, divided once, applied to fp32 master weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from tpt_jax.models.transformer import Remat, Transformer
from tpt_jax.sharding import Layout
from tpt_jax.train.data import Batch
from tpt_jax.train.loss import cross_entropy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What an optimizer step consumes and returns."""

    parameters: nnx.State  # fp32 master weights
    optimizer: Any  # optax state, sharded as the weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """Scalars of one step, left on the device."""

    loss: Float[Array, ""]  # nats a completion token
    grad_norm: Float[Array, ""]  # before clipping
    num_tokens: Int[Array, ""]  # completion tokens


def train_step(
    state: TrainState,
    batch: Batch,
    learning_rate: Float[Array, ""],
    *,
    graph: nnx.GraphDef[Transformer],
    optimizer: optax.GradientTransformation,
    layout: Layout,
    compute_dtype: jnp.dtype,
    remat: Remat,
) -> tuple[TrainState, StepMetrics]:
    """Moves the weights by one batch. Jit it with the keyword arguments bound and `state` donated."""

    def loss_sum(parameters: nnx.State, micro: Batch) -> jax.Array:
        # Cast inside: the gradient comes back through the cast, in fp32.
        model = nnx.merge(graph, jax.tree.map(lambda weight: weight.astype(compute_dtype), parameters))
        hidden = model(micro.tokens, micro.positions, micro.segment_ids, layout=layout, remat=remat)
        # [B * T, V] logits: XLA's CPU backend takes three times as long over a three-dimensional product.
        logits = model.logits(hidden.reshape(-1, hidden.shape[-1]))
        return cross_entropy(logits, micro.targets.reshape(-1), micro.loss_weights.reshape(-1))

    def accumulate(sums: tuple[nnx.State, jax.Array, jax.Array], micro: Batch) -> tuple[tuple, None]:
        loss, gradients = jax.value_and_grad(loss_sum)(state.parameters, micro)
        return jax.tree.map(jnp.add, sums, (gradients, loss, micro.loss_weights.sum())), None

    zeros = (jax.tree.map(jnp.zeros_like, state.parameters), jnp.float32(0), jnp.float32(0))
    (gradients, loss, count), _ = jax.lax.scan(accumulate, zeros, batch)
    count = jnp.maximum(count, 1.0)  # a batch of padding alone moves nothing
    gradients = jax.tree.map(lambda total: total / count, gradients)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
    updates = jax.tree.map(lambda update: update * learning_rate, updates)
    parameters = jax.tree.map(jnp.add, state.parameters, updates)
    metrics = StepMetrics(loss / count, optax.tree.norm(gradients), count.astype(jnp.int32))
    return TrainState(parameters, optimizer_state), metrics
