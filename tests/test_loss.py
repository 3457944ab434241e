"""Cross-entropy in pieces against the plain formula: values, gradients, meshes, vocabularies of any size."""

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
from tpt_jax.train.linear_cross_entropy import Saves, linear_cross_entropy
from tpt_jax.train.loss import token_loss

ROWS, LENGTH, EMBED = 8, 6, 16
LOSSES = {
    "cross_entropy": LossConfig(),
    "focal": LossConfig(name="focal", focal_gamma=1.5),
    "clipped": LossConfig(name="clipped", clip_above=0.3),
}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One batch; every fourth token has no loss."""

    hidden: np.ndarray
    table: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def inputs(vocab_size: int) -> Inputs:
    random = np.random.default_rng(0)
    return Inputs(
        random.standard_normal((ROWS, LENGTH, EMBED)).astype(np.float32),
        random.standard_normal((vocab_size, EMBED)).astype(np.float32),
        random.integers(0, vocab_size, (ROWS, LENGTH)).astype(np.int32),
        (random.random((ROWS, LENGTH)) < 0.75).astype(np.float32),
    )


def in_torch(batch: Inputs, cap: float | None, loss: LossConfig) -> tuple[float, np.ndarray, np.ndarray]:
    """Sum and gradients by the plain formula, in double precision."""
    hidden, table = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (batch.hidden, batch.table))
    scores = hidden @ table.T
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    log_p = torch.log_softmax(scores, -1).gather(-1, torch.tensor(batch.targets).long()[..., None])[..., 0]
    p = log_p.exp()
    factors: dict[str, Callable[[], torch.Tensor]] = {
        "cross_entropy": lambda: torch.ones_like(p),
        "focal": lambda: (1 - p) ** loss.focal_gamma,
        "clipped": lambda: (p <= loss.clip_above).double(),
    }
    total = (-factors[loss.name]() * log_p * torch.tensor(batch.weights)).sum()
    total.backward()
    assert hidden.grad is not None
    assert table.grad is not None
    return float(total.detach()), hidden.grad.numpy(), table.grad.numpy()


def in_pieces(
    batch: Inputs, cap: float | None, loss: LossConfig, saves: Saves, layout: Layout, at_once: int
) -> tuple[float, np.ndarray, np.ndarray]:
    def total(hidden: jax.Array, table: jax.Array) -> jax.Array:
        return linear_cross_entropy(
            hidden,
            table,
            jnp.asarray(batch.targets),
            jnp.asarray(batch.weights),
            layout=layout,
            cap=cap,
            token_loss=token_loss(loss),
            saves=saves,
            scores_at_once=at_once,
        )

    # Twice the sum, so that the cotangent is not one.
    value, (to_hidden, to_table) = jax.jit(jax.value_and_grad(lambda *x: 2 * total(*x), argnums=(0, 1)))(
        batch.hidden, batch.table
    )
    return float(value) / 2, np.asarray(to_hidden) / 2, np.asarray(to_table) / 2


@pytest.mark.parametrize("saves", ["memory", "flops"])
@pytest.mark.parametrize(
    ("loss", "cap", "vocab_size", "at_once", "mesh"),
    [
        ("cross_entropy", 5.0, 1000, 2**26, (1, 1, 1)),  # one piece
        ("cross_entropy", 5.0, 1000, 6000, (1, 1, 1)),  # pieces that do not divide vocabulary or tokens
        ("cross_entropy", None, 1000, 6000, (1, 1, 1)),
        ("focal", 5.0, 1000, 6000, (1, 1, 1)),
        ("clipped", 5.0, 1000, 6000, (1, 1, 1)),
        ("focal", 5.0, 1000, 2000, (2, 2, 2)),
        ("cross_entropy", 5.0, 1000, 2000, (1, 8, 1)),
        ("cross_entropy", 5.0, 1000, 2000, (1, 1, 8)),
    ],
)
def test_pieces_are_the_plain_formula(
    loss: str, cap: float | None, vocab_size: int, at_once: int, mesh: tuple[int, int, int], saves: Saves
) -> None:
    devices = jax.devices()[: int(np.prod(mesh))]
    layout = Layout(make_mesh(MeshConfig(*mesh), devices), TRAIN_RULES)
    batch = inputs(vocab_size)
    expected = in_torch(batch, cap, LOSSES[loss])
    got = in_pieces(batch, cap, LOSSES[loss], saves, layout, at_once)
    for name, theirs, ours in zip(("sum", "hidden", "table"), expected, got, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("saves", ["memory", "flops"])
def test_whole_scores_never_exist(saves: Saves, layout: Layout) -> None:
    """No array of the compiled loss and its gradient is as large as [tokens, vocabulary]."""
    rows, length, vocab_size, embed = 8, 64, 4096, 16
    at_once = rows * length * vocab_size // 8

    def total(hidden: jax.Array, table: jax.Array, ids: jax.Array) -> jax.Array:
        options = {"layout": layout, "cap": 30.0, "token_loss": token_loss(LossConfig())}
        weights = jnp.ones(ids.shape, jnp.float32)
        return linear_cross_entropy(hidden, table, ids, weights, **options, saves=saves, scores_at_once=at_once)

    shapes = [
        jax.ShapeDtypeStruct((rows, length, embed), jnp.float32),
        jax.ShapeDtypeStruct((vocab_size, embed), jnp.float32),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
    ]
    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*shapes).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4 * rows * length * vocab_size
