"""Optimizers and the learning-rate schedule."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax import contrib

from tpt_jax.config import OptimizerConfig, TrainConfig

VECTOR_AXES = frozenset({"norm", "bias"})  # logical axes of weights that are not matrices


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """An optimizer with learning rate 1. The train step scales its updates, so one program serves every schedule."""
    factories = {"adamw": _adamw, "adafactor": _adafactor, "muon": _muon}
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), factories[config.name](config))


def learning_rate_at(step: int, num_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then cosine decay to 0, like transformers' get_cosine_schedule_with_warmup.

    Args:
      step: from 0; its rate is 0 if there is a warm-up.
    """
    warmup = math.ceil(config.optimizer.warmup_fraction * num_steps)
    if step < warmup:
        return config.learning_rate * step / max(1, warmup)
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _adamw(config: OptimizerConfig) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(config.beta1, config.beta2, mu_dtype=jnp.dtype(config.first_moment))
    return optax.chain(
        _store_second_moments(adam, jnp.dtype(config.second_moment)),
        optax.add_decayed_weights(config.weight_decay, _decay_mask),
        optax.scale(-1.0),
    )


def _store_second_moments(adam: optax.GradientTransformation, dtype: jnp.dtype) -> optax.GradientTransformation:
    """Adam with its second moments stored in `dtype` between steps; optax offers this for first moments only."""

    def cast(state: optax.ScaleByAdamState, dtype: Any) -> optax.ScaleByAdamState:
        return state._replace(nu=optax.tree.cast(state.nu, dtype))

    def init(params: optax.Params) -> Any:
        return cast(adam.init(params), dtype)  # pyright: ignore[reportArgumentType]

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[optax.Updates, Any]:
        updates, state = adam.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)  # pyright: ignore[reportArgumentType]

    return optax.GradientTransformation(init, update)


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
    # Updates are not scaled by the size of each weight: a learning rate means the same as with AdamW.
    return optax.adafactor(
        1.0,
        multiply_by_parameter_scale=False,
        weight_decay_rate=config.weight_decay,
        weight_decay_mask=_decay_mask,
    )


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
    # Vocabulary tables, which muon updates with Adam, are not decayed: optax's adam_weight_decay is 0 by default.
    return contrib.muon(
        1.0,
        beta=config.beta2,
        mu_dtype=jnp.dtype(config.first_moment),
        weight_decay=config.weight_decay,
        weight_decay_mask=_decay_mask,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=_matrix_axes,
    )


def _decay_mask(parameters: Any) -> Any:
    """True for every weight except norms and biases."""
    return _map_logical_axes(parameters, lambda axes: not VECTOR_AXES.intersection(axes))


def _matrix_axes(parameters: Any) -> Any:
    """Input and output axes of each stack of matrices (one per layer); None for norms, biases and vocabulary tables.

    An adapter's matrices are matrices of their own.
    """

    def dimension_numbers(axes: tuple[str | None, ...]) -> contrib.MuonDimensionNumbers | None:
        if VECTOR_AXES.intersection(axes) or "vocab" in axes:
            return None
        outputs = tuple(range(2, len(axes))) if axes[1] in ("embed", "rank") else (len(axes) - 1,)
        inputs = tuple(axis for axis in range(1, len(axes)) if axis not in outputs)
        return contrib.MuonDimensionNumbers(inputs, outputs)

    return _map_logical_axes(parameters, dimension_numbers)


def _map_logical_axes(parameters: Any, function: Any) -> Any:
    """A tree like the parameters', with function(logical axes) for each weight."""
    return jax.tree.map(
        lambda weight: weight.replace(function(weight.get_metadata()["logical_axes"])),
        parameters,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
