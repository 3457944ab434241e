"""Optimizers and the learning rate."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax import contrib

from tpt_jax.config import OptimizerConfig

Update = optax.GradientTransformation


def make_optimizer(config: OptimizerConfig) -> Update:
    """An optimizer of learning rate 1: the step scales its update, so that one compiled step serves every schedule."""
    moves = {"adamw": _adamw, "adafactor": _adafactor, "muon": _muon}
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), moves[config.name](config))


def learning_rate_at(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up, then a cosine to zero; as transformers' get_cosine_schedule_with_warmup. step counts from 0."""
    warmup = math.ceil(config.warmup_fraction * num_steps)
    if step < warmup:
        return config.learning_rate * step / max(1, warmup)
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _adamw(config: OptimizerConfig) -> Update:
    adam = optax.scale_by_adam(config.beta1, config.beta2, mu_dtype=jnp.dtype(config.first_moment))
    return optax.chain(
        _with_second_moments_as(adam, jnp.dtype(config.second_moment)),
        optax.add_decayed_weights(config.weight_decay, _is_decayed),
        optax.scale(-1.0),
    )


def _with_second_moments_as(adam: Update, dtype: jnp.dtype) -> Update:
    """Adam that keeps its second moments in another type between steps; optax offers this for the first ones only."""

    def kept(state: optax.ScaleByAdamState, dtype: Any) -> optax.ScaleByAdamState:
        return state._replace(nu=optax.tree.cast(state.nu, dtype))

    def init(params: optax.Params) -> Any:
        return kept(adam.init(params), dtype)  # pyright: ignore[reportArgumentType]

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[optax.Updates, Any]:
        updates, state = adam.update(updates, kept(state, jnp.float32), params)
        return updates, kept(state, dtype)  # pyright: ignore[reportArgumentType]

    return optax.GradientTransformation(init, update)


def _adafactor(config: OptimizerConfig) -> Update:
    # Without the scaling by each weight's size, so that a learning rate means what it means for AdamW.
    return optax.adafactor(
        1.0,
        multiply_by_parameter_scale=False,
        weight_decay_rate=config.weight_decay,
        weight_decay_mask=_is_decayed,
    )


def _muon(config: OptimizerConfig) -> Update:
    return contrib.muon(
        1.0,
        beta=config.beta2,
        mu_dtype=jnp.dtype(config.first_moment),
        weight_decay=config.weight_decay,
        weight_decay_mask=_is_decayed,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=_matrix_axes,
    )


def _is_decayed(parameters: Any) -> Any:
    return _by_logical_axes(parameters, lambda axes: "norm" not in axes)


def _matrix_axes(parameters: Any) -> Any:
    """Which axes of each weight are a matrix's input and output; layers are stacked matrices; None: not a matrix."""

    def axes_of(axes: tuple[str | None, ...]) -> contrib.MuonDimensionNumbers | None:
        if "norm" in axes or "vocab" in axes:
            return None
        outputs = tuple(range(2, len(axes))) if axes[1] == "embed" else (len(axes) - 1,)
        inputs = tuple(axis for axis in range(1, len(axes)) if axis not in outputs)
        return contrib.MuonDimensionNumbers(inputs, outputs)

    return _by_logical_axes(parameters, axes_of)


def _by_logical_axes(parameters: Any, choose: Any) -> Any:
    return jax.tree.map(
        lambda weight: weight.replace(choose(weight.get_metadata()["logical_axes"])),
        parameters,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
