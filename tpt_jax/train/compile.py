"""Compiles the programs of the train stage, from shapes alone: optimizer initialization and one training step.

Both are ahead-of-time executables: called with another shape or sharding, they raise instead of recompiling.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from tpt_jax.config import TrainConfig
from tpt_jax.errors import UserError
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.masters import abstract_masters, split_trained
from tpt_jax.models.self_attention import choose_kernel
from tpt_jax.runtime.memory import MemoryNeed, explain_out_of_memory
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout, place
from tpt_jax.train.data import Batch, BatchShape
from tpt_jax.train.loss import token_loss
from tpt_jax.train.optimizer import make_optimizer
from tpt_jax.train.step import StepMetrics, StepOptions, TrainState, train_step


@dataclasses.dataclass(frozen=True)
class TrainerProgram:
    """The compiled programs of the train stage.

    Attributes:
      abstract_state: shapes and shardings of the training state, for restoring a checkpoint.
      init_optimizer: trained parameters -> initial optimizer state.
      compiled_step: (TrainState, Batch, learning rate) -> (TrainState, StepMetrics); donates the state.
    """

    layout: Layout
    batch_shape: BatchShape
    abstract_state: TrainState
    init_optimizer: jax.stages.Compiled
    compiled_step: jax.stages.Compiled

    def init_state(self, parameters: nnx.State) -> TrainState:
        """The state before the first step. Takes ownership of the parameters: the first step donates them."""
        trained, frozen = split_trained(parameters)
        is_finite = place(np.asarray(True), self.layout.replicated)
        return TrainState(trained, frozen, self.init_optimizer(trained), is_finite)

    def step(self, state: TrainState, batch: Batch, learning_rate: float) -> tuple[TrainState, StepMetrics]:
        """Dispatches one step without waiting for it; the metrics stay on the device."""
        sharding = self.layout.sharding((None, "batch", None), batch.tokens.shape)
        device_batch = jax.tree.map(lambda array: place(array, sharding), batch)
        return self.compiled_step(state, device_batch, place(np.float32(learning_rate), self.layout.replicated))


def compile_trainer(config: ModelConfig, mesh: Mesh, *, compute_dtype: str, train: TrainConfig) -> TrainerProgram:
    """Compiles optimizer initialization and the training step.

    Raises:
      UserError: the rows or the model's dimensions do not divide over the mesh, or a step does not fit in memory.
    """
    layout = Layout(mesh, TRAIN_RULES)
    if train.rows % layout.batch_ways:
        raise UserError(
            f"train.rows ({train.rows}) must be a multiple of data x fsdp = {layout.batch_ways}; "
            f"try {-(-train.rows // layout.batch_ways) * layout.batch_ways}"
        )
    graph, parameters = abstract_masters(config, layout, train.lora)
    trained, frozen = split_trained(parameters)
    optimizer = make_optimizer(train.optimizer)
    optimizer_shapes = jax.eval_shape(optimizer.init, trained)
    optimizer_shardings = _optimizer_shardings(optimizer_shapes, layout)
    init_optimizer = jax.jit(optimizer.init, out_shardings=optimizer_shardings).lower(trained).compile()

    kernel = choose_kernel(mesh, train.sequence_length) if train.attention == "auto" else train.attention
    options = StepOptions(
        graph=graph,
        optimizer=optimizer,
        layout=layout,
        compute_dtype=jnp.dtype(compute_dtype),
        kernel=kernel,
        remat=train.remat,
        token_loss=token_loss(train.loss),
    )
    is_finite: Any = jax.ShapeDtypeStruct((), jnp.bool_, sharding=layout.replicated)
    learning_rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=layout.replicated)
    state = TrainState(trained, frozen, _with_shardings(optimizer_shapes, optimizer_shardings), is_finite)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    batch_shape = BatchShape(train.micro_batches, train.rows, train.sequence_length)
    step = jax.jit(
        functools.partial(train_step, options=options),
        donate_argnums=0,
        out_shardings=(state_shardings, layout.replicated),
    )
    lowered = step.lower(state, _abstract_batch(batch_shape, layout), learning_rate)
    with explain_out_of_memory(lambda need: suggest_smaller_step(need, train, layout)):
        compiled_step = lowered.compile()
    return TrainerProgram(layout, batch_shape, state, init_optimizer, compiled_step)


def compiled_settings(train: TrainConfig) -> TrainConfig:
    """The settings that a compiled trainer holds, the others at their defaults: equal ones can share a trainer."""
    defaults = TrainConfig()
    rates = {name: getattr(defaults.optimizer, name) for name in ("learning_rate", "warmup_fraction")}
    free = ("start_from", "traces_of", "num_epochs", "max_steps", "offload", "save_every")
    return dataclasses.replace(
        train,
        optimizer=dataclasses.replace(train.optimizer, **rates),
        **{name: getattr(defaults, name) for name in free},
    )


def suggest_smaller_step(need: MemoryNeed | None, train: TrainConfig, layout: Layout) -> str:
    """The error message for a training step that does not fit in memory, with settings that need less."""
    rows = train.rows // 2 // layout.batch_ways * layout.batch_ways
    advice = []
    if train.remat != "full":
        advice.append("train.remat: full")
    if rows:
        advice.append(f"train.rows: {rows} with train.micro_batches: {-(-train.rows // rows) * train.micro_batches}")
    if train.optimizer.name == "adamw" and train.optimizer.first_moment == "float32":
        advice.append("train.optimizer.first_moment: bfloat16")
    amount = f" ({need} per device)" if need else ""
    return (
        f"train.rows ({train.rows}): a step does not fit in the devices' memory{amount}; "
        f"try {', or '.join(advice) or 'more devices'}"
    )


def _optimizer_shardings(shapes: Any, layout: Layout) -> Any:
    """Shards moments like the weights they belong to; scalars and factored moments are replicated."""

    def sharding_of(node: Any) -> Any:
        if isinstance(node, nnx.Variable):
            moment = node.get_value()
            if isinstance(moment, optax.MaskedNode):  # muon: this weight belongs to the other optimizer
                return node
            if len(node.get_metadata()["logical_axes"]) != moment.ndim:  # adafactor: row or column statistics
                return node.replace(layout.replicated)
            return node.replace(layout.sharding(node.get_metadata()["logical_axes"], moment.shape))
        return layout.replicated

    return jax.tree.map(sharding_of, shapes, is_leaf=lambda node: isinstance(node, nnx.Variable))


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def _abstract_batch(shape: BatchShape, layout: Layout) -> Batch:
    dims = (shape.micro_batches, shape.rows, shape.sequence_length)
    sharding = layout.sharding((None, "batch", None), dims)
    names = [field.name for field in dataclasses.fields(Batch)]
    arrays: dict[str, Any] = {name: jax.ShapeDtypeStruct(dims, jnp.int32, sharding=sharding) for name in names}
    return Batch(**{**arrays, "loss_weights": jax.ShapeDtypeStruct(dims, jnp.float32, sharding=sharding)})
