"""The programs of the Train phase, compiled once from shapes alone: the optimizer's initial state and one step.

They are ahead-of-time executables: called with another shape or sharding they raise instead of compiling again.
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
from tpt_jax.models.self_attention import choose_kernel
from tpt_jax.models.transformer import abstract_parameters, place_abstract
from tpt_jax.runtime import memory
from tpt_jax.runtime.memory import Need
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout, place
from tpt_jax.train import data
from tpt_jax.train.loss import token_loss
from tpt_jax.train.optimizer import make_optimizer
from tpt_jax.train.step import StepMetrics, StepOptions, TrainState, train_step


@dataclasses.dataclass(frozen=True)
class TrainerProgram:
    """The phases that train.

    Attributes:
      abstract_state: shapes and shardings of the state, to restore into.
      start_optimizer: parameters to a fresh optimizer state.
      compiled_step: (TrainState, Batch, learning rate) to (TrainState, StepMetrics); the state is donated.
    """

    layout: Layout
    batch_shape: data.BatchShape
    abstract_state: TrainState
    start_optimizer: jax.stages.Compiled
    compiled_step: jax.stages.Compiled

    def start(self, parameters: nnx.State) -> TrainState:
        """The state before the first step. It takes the parameters over: the first step donates them."""
        healthy = place(np.asarray(True), self.layout.replicated)
        return TrainState(parameters, self.start_optimizer(parameters), healthy)

    def step(self, state: TrainState, batch: data.Batch, learning_rate: float) -> tuple[TrainState, StepMetrics]:
        """Dispatches one step; the metrics stay on the device until they are asked for."""
        sharding = self.layout.sharding((None, "batch", None), batch.tokens.shape)
        placed = jax.tree.map(lambda array: place(array, sharding), batch)
        return self.compiled_step(state, placed, place(np.float32(learning_rate), self.layout.replicated))


def compile_trainer(config: ModelConfig, mesh: Mesh, *, compute_dtype: str, train: TrainConfig) -> TrainerProgram:
    """Compiles the optimizer's start and one train step.

    Raises:
      UserError: the rows or the model do not divide over the mesh, or a step does not fit the devices.
    """
    layout = Layout(mesh, TRAIN_RULES)
    if train.rows % layout.batch_ways:
        raise UserError(
            f"train.rows ({train.rows}) must be a multiple of data x fsdp = {layout.batch_ways}; "
            f"try {-(-train.rows // layout.batch_ways) * layout.batch_ways}"
        )
    graph, abstract = abstract_parameters(config)
    parameters = place_abstract(abstract, layout)
    optimizer = make_optimizer(train.optimizer)
    state_shapes = jax.eval_shape(optimizer.init, parameters)
    state_shardings = _optimizer_shardings(state_shapes, layout)
    start = jax.jit(optimizer.init, out_shardings=state_shardings).lower(parameters).compile()

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
    flag: Any = jax.ShapeDtypeStruct((), jnp.bool_, sharding=layout.replicated)
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=layout.replicated)
    state = TrainState(parameters, _with_shardings(state_shapes, state_shardings), flag)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    shape = data.BatchShape(train.micro_batches, train.rows, train.sequence_length)
    step = jax.jit(
        functools.partial(train_step, options=options),
        donate_argnums=0,
        out_shardings=(shardings, layout.replicated),
    )
    lowered = step.lower(state, _abstract_batch(shape, layout), rate)
    with memory.refusing(lambda need: smaller_step(need, train, layout)):
        compiled = lowered.compile()
    return TrainerProgram(layout, shape, state, start, compiled)


def _optimizer_shardings(shapes: Any, layout: Layout) -> Any:
    """Moments are sharded as the weights whose shape and logical axes they carry; what is small is copied."""

    def of(node: Any) -> Any:
        if isinstance(node, nnx.Variable):
            moment = node.get_value()
            if isinstance(moment, optax.MaskedNode):  # a weight that this part of the optimizer does not move
                return node
            if len(node.get_metadata()["logical_axes"]) != moment.ndim:  # adafactor's, of rows or columns only
                return node.replace(layout.replicated)
            return node.replace(layout.sharding(node.get_metadata()["logical_axes"], moment.shape))
        return layout.replicated

    return jax.tree.map(of, shapes, is_leaf=lambda node: isinstance(node, nnx.Variable))


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def _abstract_batch(shape: data.BatchShape, layout: Layout) -> data.Batch:
    dims = (shape.micro_batches, shape.rows, shape.sequence_length)
    sharding = layout.sharding((None, "batch", None), dims)
    names = [field.name for field in dataclasses.fields(data.Batch)]
    arrays: dict[str, Any] = {name: jax.ShapeDtypeStruct(dims, jnp.int32, sharding=sharding) for name in names}
    return data.Batch(**{**arrays, "loss_weights": jax.ShapeDtypeStruct(dims, jnp.float32, sharding=sharding)})


def smaller_step(need: Need | None, train: TrainConfig, layout: Layout) -> str:
    """For a training step that does not fit: what needs less."""
    rows = train.rows // 2 // layout.batch_ways * layout.batch_ways
    advice = []
    if train.remat != "full":
        advice.append("train.remat: full")
    if rows:
        advice.append(f"train.rows: {rows} with train.micro_batches: {-(-train.rows // rows) * train.micro_batches}")
    if train.optimizer.name == "adamw" and train.optimizer.first_moment == "float32":
        advice.append("train.optimizer.first_moment: bfloat16")
    of = f" ({need} a device)" if need else ""
    tries = ", or ".join(advice) or "more devices"
    return f"train.rows ({train.rows}): a step does not fit the devices{of}; try {tries}"
