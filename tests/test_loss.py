"""Chunked cross-entropy against the plain formula: values and gradients, on several meshes, for uneven chunks."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tpt_jax.config import LossConfig, MeshConfig
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
from tpt_jax.train.linear_cross_entropy import Exchanges, linear_cross_entropy, smaller_exchange
from tpt_jax.train.loss import token_loss

ROWS, LENGTH, EMBED = 8, 6, 16
VOCAB_SIZE = 1004
LOSSES = {
    "cross_entropy": LossConfig(),
    "focal": LossConfig(name="focal", focal_gamma=1.5),
    "clipped": LossConfig(name="clipped", clip_above=0.3),
}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Random hidden states, output table and targets; about a quarter of the tokens have no loss."""

    hidden: np.ndarray
    table: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def random_inputs() -> Inputs:
    rng = np.random.default_rng(0)
    return Inputs(
        rng.standard_normal((ROWS, LENGTH, EMBED)).astype(np.float32),
        rng.standard_normal((VOCAB_SIZE, EMBED)).astype(np.float32),
        rng.integers(0, VOCAB_SIZE, (ROWS, LENGTH)).astype(np.int32),
        (rng.random((ROWS, LENGTH)) < 0.75).astype(np.float32),
    )


def plain_loss(inputs: Inputs, cap: float | None, loss: LossConfig) -> tuple[float, np.ndarray, np.ndarray]:
    """Sum and gradients of the plain formula, by torch in double precision."""
    hidden, table = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (inputs.hidden, inputs.table))
    logits = hidden @ table.T
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    log_p = torch.log_softmax(logits, -1).gather(-1, torch.tensor(inputs.targets).long()[..., None])[..., 0]
    p = log_p.exp()
    factors: dict[str, Callable[[], torch.Tensor]] = {
        "cross_entropy": lambda: torch.ones_like(p),
        "focal": lambda: (1 - p) ** loss.focal_gamma,
        "clipped": lambda: (p <= loss.clip_above).double(),
    }
    total = (-factors[loss.name]() * log_p * torch.tensor(inputs.weights)).sum()
    total.backward()
    assert hidden.grad is not None
    assert table.grad is not None
    return float(total.detach()), hidden.grad.numpy(), table.grad.numpy()


def chunked_loss(
    inputs: Inputs, cap: float | None, loss: LossConfig, exchanges: Exchanges, layout: Layout, max_logits: int
) -> tuple[float, np.ndarray, np.ndarray]:
    def loss_sum(hidden: jax.Array, table: jax.Array) -> jax.Array:
        return linear_cross_entropy(
            hidden,
            table,
            jnp.asarray(inputs.targets),
            jnp.asarray(inputs.weights),
            layout=layout,
            cap=cap,
            token_loss=token_loss(loss),
            exchanges=exchanges,
            max_logits=max_logits,
        )

    # Differentiates twice the sum, to test a cotangent other than 1.
    value, (grad_hidden, grad_table) = jax.jit(jax.value_and_grad(lambda *x: 2 * loss_sum(*x), argnums=(0, 1)))(
        inputs.hidden, inputs.table
    )
    return float(value) / 2, np.asarray(grad_hidden) / 2, np.asarray(grad_table) / 2


@pytest.mark.parametrize("exchanges", ["table", "tokens"])
@pytest.mark.parametrize(
    ("loss", "cap", "max_logits", "mesh"),
    [
        ("cross_entropy", 5.0, 2**26, (1, 1, 1)),  # one chunk
        ("cross_entropy", 5.0, 6000, (1, 1, 1)),  # chunks that divide neither the vocabulary nor the tokens
        ("cross_entropy", None, 6000, (1, 1, 1)),
        ("focal", 5.0, 6000, (1, 1, 1)),
        ("clipped", 5.0, 6000, (1, 1, 1)),
        ("focal", 5.0, 2000, (2, 2, 2)),
        ("cross_entropy", 5.0, 2000, (1, 8, 1)),
        ("cross_entropy", 5.0, 2000, (1, 2, 4)),  # shares of the vocabulary differ
    ],
)
def test_chunked_loss_and_gradients_equal_the_plain_formula(
    loss: str, cap: float | None, max_logits: int, mesh: tuple[int, int, int], exchanges: Exchanges
) -> None:
    devices = jax.devices()[: int(np.prod(mesh))]
    layout = Layout(make_mesh(MeshConfig(*mesh), devices), TRAIN_RULES)
    inputs = random_inputs()
    expected = plain_loss(inputs, cap, LOSSES[loss])
    results = chunked_loss(inputs, cap, LOSSES[loss], exchanges, layout, max_logits)
    for name, result, expected_result in zip(("sum", "hidden", "table"), results, expected, strict=True):
        np.testing.assert_allclose(result, expected_result, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("exchanges", ["table", "tokens"])
def test_the_full_logits_never_exist(exchanges: Exchanges, layout: Layout) -> None:
    """Loss and gradient together need less memory than one [tokens, vocabulary] array."""
    rows, length, vocab_size, embed = 8, 64, 4096, 16
    max_logits = rows * length * vocab_size // 8

    def loss_sum(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> jax.Array:
        options = {"layout": layout, "cap": 30.0, "token_loss": token_loss(LossConfig())}
        weights = jnp.ones(targets.shape, jnp.float32)
        return linear_cross_entropy(
            hidden, table, targets, weights, **options, exchanges=exchanges, max_logits=max_logits
        )

    shapes = [
        jax.ShapeDtypeStruct((rows, length, embed), jnp.float32),
        jax.ShapeDtypeStruct((vocab_size, embed), jnp.float32),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
    ]
    compiled = jax.jit(jax.grad(loss_sum, argnums=(0, 1))).lower(*shapes).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4 * rows * length * vocab_size


def test_the_smaller_of_tokens_and_table_is_exchanged() -> None:
    """By hand: 2 x 2 x 2 devices gather half of the tokens of a batch, or half of the rows of the table."""
    layout = Layout(make_mesh(MeshConfig(2, 2, 2)), TRAIN_RULES)
    assert smaller_exchange(num_tokens=1000, vocab_size=1000, layout=layout) == "tokens"
    assert smaller_exchange(num_tokens=1002, vocab_size=1000, layout=layout) == "table"
    only_tensor = Layout(make_mesh(MeshConfig(1, 4, 2)), TRAIN_RULES)
    assert smaller_exchange(num_tokens=502, vocab_size=1000, layout=only_tensor) == "table"
