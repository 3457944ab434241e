"""Optimizers against optax alone, weight decay, moment dtypes, and the learning-rate schedule."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY
from flax import nnx
from optax import contrib

from tpt_jax.config import OptimizerConfig, TrainConfig
from tpt_jax.models.published import PUBLISHED
from tpt_jax.models.transformer import abstract_parameters, initialize_parameters
from tpt_jax.runtime.sharding import Layout
from tpt_jax.train.optimizer import learning_rate_at, make_optimizer

DType = Literal["float32", "bfloat16"]
DTYPES: list[tuple[DType, DType]] = [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")]


def test_muon_orthogonalizes_each_layer_separately(layout: Layout) -> None:
    """A stacked weight is updated as if each layer's matrix were given to optax's muon alone."""
    parameters: Any = initialize_parameters(TINY["llama"], layout, seed=0)
    gradients: Any = initialize_parameters(TINY["llama"], layout, seed=1)
    optimizer = make_optimizer(OptimizerConfig(name="muon", max_grad_norm=1e9))
    updates: Any = jax.jit(optimizer.update)(gradients, optimizer.init(parameters), parameters)[0]
    single = contrib.muon(1.0, beta=0.95)

    def second_layer(state: Any) -> dict[str, jax.Array]:
        return {"query": state["layers"]["query"][...][1].reshape(32, 64)}

    weights = second_layer(parameters)
    expected: Any = single.update(second_layer(gradients), single.init(weights), weights)[0]
    np.testing.assert_allclose(second_layer(updates)["query"], expected["query"], rtol=1e-4, atol=1e-5)


def test_adafactor_keeps_row_and_column_moments_only() -> None:
    _, abstract = abstract_parameters(PUBLISHED["gemma2-2b"])
    state = jax.eval_shape(make_optimizer(OptimizerConfig(name="adafactor")).init, abstract)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(state)]
    assert sum(sizes) < 0.01 * PUBLISHED["gemma2-2b"].num_parameters


@pytest.mark.parametrize("dtypes", DTYPES)
def test_adamw_equals_optax_adamw_up_to_the_rounding_of_its_moments(dtypes: tuple[DType, DType]) -> None:
    config = OptimizerConfig(weight_decay=0.1, max_grad_norm=1e9, first_moment=dtypes[0], second_moment=dtypes[1])
    optimizer, reference = make_optimizer(config), optax.adamw(1.0, config.beta1, config.beta2, weight_decay=0.1)
    rng = np.random.default_rng(0)

    def random_weights() -> nnx.State:
        value = jnp.asarray(rng.standard_normal((20, 30)), jnp.float32)
        return nnx.State({"gate": nnx.Param(value, logical_axes=("embed", "mlp"))})

    parameters: Any = random_weights()
    state, reference_state = optimizer.init(parameters), reference.init(parameters)
    updates: Any = parameters
    expected: Any = parameters
    for _ in range(3):
        gradients: Any = random_weights()
        updates, state = optimizer.update(gradients, state, parameters)
        expected, reference_state = reference.update(gradients, reference_state, parameters)
    tolerance = 1e-5 if dtypes == ("float32", "float32") else 0.03
    expected_values = np.asarray(expected["gate"][...])
    atol = tolerance * float(np.abs(expected_values).max())
    np.testing.assert_allclose(np.asarray(updates["gate"][...]), expected_values, atol=atol)


@pytest.mark.parametrize("dtypes", DTYPES)
def test_adamw_moments_keep_their_dtypes(dtypes: tuple[DType, DType]) -> None:
    """Of every weight, at the start and after an update."""
    optimizer = make_optimizer(OptimizerConfig(first_moment=dtypes[0], second_moment=dtypes[1]))
    _, parameters = abstract_parameters(TINY["gemma2"])
    initial = jax.eval_shape(optimizer.init, parameters)
    updates, updated = jax.eval_shape(optimizer.update, parameters, initial, parameters)
    for state in (initial, updated):
        for name, dtype in zip(("mu", "nu"), dtypes, strict=True):
            moments = jax.tree.leaves(optax.tree.get(state, name))
            assert len(moments) == len(jax.tree.leaves(parameters))
            assert {str(moment.dtype) for moment in moments} == {dtype}
    assert {str(update.dtype) for update in jax.tree.leaves(updates)} == {"float32"}


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
@pytest.mark.parametrize("model", ["gemma2", "relative"])
def test_weight_decay_shrinks_every_weight_except_norms_and_biases(
    name: Literal["adamw", "adafactor", "muon"], model: str, layout: Layout
) -> None:
    """With zero gradients, an update is the weight decay alone."""
    parameters = initialize_parameters(TINY[model], layout, seed=0)
    parameters = jax.tree.map(lambda weight: weight + 1.0, parameters)  # norm scales start at 0 in Gemma
    optimizer = make_optimizer(OptimizerConfig(name=name, weight_decay=0.1))
    gradients = jax.tree.map(jnp.zeros_like, parameters)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(parameters), parameters)
    # optax's muon decays only the matrices that it orthogonalizes.
    not_decayed = ("norm", "bias", "embedding") if name == "muon" else ("norm", "bias")
    counts = {True: 0, False: 0}
    weights, _ = jax.tree.flatten_with_path(parameters)
    for (path, weight), update in zip(weights, jax.tree.leaves(updates), strict=True):
        key = jax.tree_util.keystr(path)
        is_decayed = not any(word in key for word in not_decayed)
        counts[is_decayed] += 1
        expected = -0.1 * np.asarray(weight) if is_decayed else np.zeros_like(weight)
        np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=key)
    assert min(counts.values()) > 0


SCHEDULE = TrainConfig(optimizer=OptimizerConfig(learning_rate=2e-3, warmup_fraction=0.1))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (1, 0.4e-3),  # a fifth of the way up
        (4, 1.6e-3),
        (5, 2e-3),  # the peak
        (20, 1.5e-3),  # a third of the way down: (1 + cos 60°) / 2
        (35, 0.5e-3),  # two thirds: (1 + cos 120°) / 2
        (50, 0.0),
    ],
)
def test_learning_rate_at_chosen_steps(step: int, expected: float) -> None:
    """Of 50 steps, 5 are warm-up."""
    assert learning_rate_at(step, 50, SCHEDULE) == pytest.approx(expected, abs=1e-18)


@pytest.mark.parametrize(("num_steps", "warmup_fraction"), [(50, 0.1), (51, 0.1), (7, 0.0), (10, 1.0)])
def test_learning_rate_is_a_ramp_then_a_squared_cosine(num_steps: int, warmup_fraction: float) -> None:
    config = TrainConfig(optimizer=OptimizerConfig(learning_rate=3e-4, warmup_fraction=warmup_fraction))
    warmup = -int(-warmup_fraction * num_steps // 1)  # rounded up
    ramp = [3e-4 * step / warmup for step in range(warmup)]
    rest = num_steps - warmup
    decay = [3e-4 * math.cos(math.pi / 2 * step / rest) ** 2 for step in range(rest)]
    rates = [learning_rate_at(step, num_steps, config) for step in range(num_steps)]
    assert rates == pytest.approx([*ramp, *decay], rel=1e-9)


def test_learning_rate_equals_that_of_transformers() -> None:
    import torch
    import transformers

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=SCHEDULE.learning_rate)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 5, 50)
    for step in range(50):
        assert learning_rate_at(step, 50, SCHEDULE) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
