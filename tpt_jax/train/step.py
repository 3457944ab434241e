"""One optimizer step: gradients summed over micro-batches, divided once, applied to fp32 weights or adapters."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.experimental.layout import Layout as MemoryLayout
from jax.experimental.layout import with_layout_constraint
from jaxtyping import Array, Bool, Float, Int

from tpt_jax.models.self_attention import Kernel
from tpt_jax.models.transformer import Remat, Transformer
from tpt_jax.runtime.sharding import Layout
from tpt_jax.train.data import Batch
from tpt_jax.train.linear_cross_entropy import LANES, linear_cross_entropy, smaller_exchange
from tpt_jax.train.loss import TokenLoss


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The training state: consumed and returned by each step."""

    trained: nnx.State  # fp32 weights, or adapters
    frozen: nnx.State  # what adapters belong to; nothing without them. Steps return it as it is, without a copy
    optimizer: Any  # optax state, sharded like the trained parameters
    is_finite: Bool[Array, ""]  # once False, later steps change nothing: they were dispatched before it was known

    @property
    def parameters(self) -> nnx.State:
        """All parameters, trained and frozen."""
        return nnx.merge_state(self.trained, self.frozen)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """Scalar metrics of one step, on the device."""

    loss: Float[Array, ""]  # mean over completion tokens, in nats
    grad_norm: Float[Array, ""]  # before clipping
    num_tokens: Int[Array, ""]  # completion tokens


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """Static options of a compiled step.

    Attributes:
      kernel: attention implementation.
      remat: what the backward pass recomputes. With "none" the loss recomputes nothing either.
    """

    graph: nnx.GraphDef[Transformer]
    optimizer: optax.GradientTransformation
    layout: Layout
    compute_dtype: jnp.dtype
    kernel: Kernel
    remat: Remat
    token_loss: TokenLoss


def train_step(
    state: TrainState, batch: Batch, learning_rate: Float[Array, ""], *, options: StepOptions
) -> tuple[TrainState, StepMetrics]:
    """Applies one optimizer step, unless a loss or gradient of this or an earlier step is not finite.

    Jit it with `state` donated.
    """
    gradients, loss, count = _gradient_sums(state.trained, state.frozen, batch, options)
    gradients = _constrain_table_layouts(gradients, options.layout)
    count = jnp.maximum(count, 1.0)  # a batch may be all padding
    gradients = jax.tree.map(lambda total: total / count, gradients)
    metrics = StepMetrics(loss / count, optax.tree.norm(gradients), count.astype(jnp.int32))

    updates, optimizer_state = options.optimizer.update(gradients, state.optimizer, state.trained)
    trained = jax.tree.map(lambda weight, update: weight + update * learning_rate, state.trained, updates)
    is_finite = state.is_finite & jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)

    def new_if_finite(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, old)

    trained, optimizer_state = new_if_finite((trained, optimizer_state), (state.trained, state.optimizer))
    return TrainState(trained, state.frozen, optimizer_state, is_finite), metrics


def _gradient_sums(
    trained: nnx.State, frozen: nnx.State, batch: Batch, options: StepOptions
) -> tuple[nnx.State, Float[Array, ""], Float[Array, ""]]:
    """Gradients, loss and loss weights, each summed over all tokens of all micro-batches."""

    def loss_sum(trained: nnx.State, micro: Batch) -> jax.Array:
        model = nnx.merge(options.graph, trained, frozen)
        hidden = model(
            micro.tokens,
            micro.positions,
            micro.segment_ids,
            layout=options.layout,
            kernel=options.kernel,
            remat=options.remat,
            compute_dtype=options.compute_dtype,
        )
        smaller = smaller_exchange(micro.tokens.size, model.config.vocab_size, options.layout)
        return linear_cross_entropy(
            hidden,
            model.output_table,
            micro.targets,
            micro.loss_weights,
            layout=options.layout,
            cap=model.config.final_softcap,
            token_loss=options.token_loss,
            exchanges="tokens" if options.remat == "none" else smaller,
        )

    def sums(micro: Batch) -> tuple[nnx.State, jax.Array, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_sum)(trained, micro)
        return gradients, loss, micro.loss_weights.sum()

    if len(batch.tokens) == 1:  # a scan would hold a second copy of the gradients
        return sums(jax.tree.map(lambda array: array[0], batch))
    zeros = (jax.tree.map(jnp.zeros_like, trained), jnp.float32(0), jnp.float32(0))
    return jax.lax.scan(lambda total, micro: (jax.tree.map(jnp.add, total, sums(micro)), None), zeros, batch)[0]


def _constrain_table_layouts(gradients: nnx.State, layout: Layout) -> nnx.State:
    """Keeps the gradients of vocabulary tables in the memory layout a TPU uses for the tables themselves.

    A TPU stores a table vocabulary-innermost if a device's shard of its columns is not a multiple of the vector lanes.
    The gradient of the embedding lookup is row-major, and without this constraint XLA transposes the weights and both
    moments to match it, and back.
    """

    def constrain(gradient: nnx.Variable) -> nnx.Variable:
        axes, value = gradient.get_metadata()["logical_axes"], gradient.get_value()
        if axes != ("vocab", "embed") or layout.sharding(axes, value.shape).shard_shape(value.shape)[1] % LANES == 0:
            return gradient
        return gradient.replace(with_layout_constraint(value, MemoryLayout(major_to_minor=(1, 0))))

    if layout.mesh.devices.flat[0].platform != "tpu":
        return gradients
    return jax.tree.map(constrain, gradients, is_leaf=lambda node: isinstance(node, nnx.Variable))
