"""Eight devices compute what one does, on every mesh; sharding rules; invalid meshes are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from tpt_jax.config import MeshConfig
from tpt_jax.errors import UserError
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.transformer import abstract_parameters
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import DECODE_RULES, TRAIN_RULES, Layout, Rules

EIGHT_DEVICES = [MeshConfig(8, 1, 1), MeshConfig(1, 8, 1), MeshConfig(1, 1, 8), MeshConfig(2, 2, 2)]
BATCH, LENGTH = 8, 12  # longer than the sliding window of 8
TOLERANCE = 1e-5


def random_batch() -> dict[str, np.ndarray]:
    """Two packed segments per row, then padding."""
    tokens = np.random.default_rng(0).integers(1, 64, (BATCH, LENGTH))
    segment_ids = np.broadcast_to([1] * 9 + [2] * 2 + [0], tokens.shape)
    positions = np.broadcast_to([*range(9), *range(2), 0], tokens.shape)
    return {"tokens": tokens, "positions": positions, "segment_ids": segment_ids}


def random_parameters(config: ModelConfig) -> nnx.State:
    """Host arrays, large enough for soft caps to matter."""
    rng = np.random.default_rng(1)
    _, abstract = abstract_parameters(config)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32) * 0.3, abstract)


def run(
    config: ModelConfig, mesh: MeshConfig, devices: list, rules: Rules, *, gradients: bool
) -> dict[str, np.ndarray]:
    """Logits and masked cross-entropy of a batch, optionally with gradients, sharded by the rules."""
    layout = Layout(make_mesh(mesh, devices), rules)
    graph, _ = abstract_parameters(config)

    def loss_and_logits(parameters: nnx.State, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, parameters)
        tokens, segment_ids = batch["tokens"], batch["segment_ids"]
        logits = model.logits(model(tokens, batch["positions"], segment_ids, layout=layout))
        mask = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] != 0)
        log_probs = jax.nn.log_softmax(logits[:, :-1])
        chosen = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]
        return -(chosen * mask.astype(chosen.dtype)).sum() / mask.sum(dtype=chosen.dtype), logits

    function = jax.value_and_grad(loss_and_logits, has_aux=True) if gradients else loss_and_logits
    parameters = random_parameters(config)
    parameters = jax.device_put(parameters, layout.shardings(parameters))
    batch = {
        name: jax.device_put(array, layout.sharding(("batch", None), array.shape))
        for name, array in random_batch().items()
    }
    results, _ = jax.tree.flatten_with_path(jax.jit(function)(parameters, batch))
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in results}


@functools.cache
def run_on_one_device(config: ModelConfig, *, gradients: bool) -> dict[str, np.ndarray]:
    return run(config, MeshConfig(1, 1, 1), jax.devices()[:1], TRAIN_RULES, gradients=gradients)


@pytest.mark.parametrize(
    ("tiny_config", "mesh", "rules"),
    [
        *(("gemma2", mesh, rules) for mesh in EIGHT_DEVICES for rules in (TRAIN_RULES, DECODE_RULES)),
        ("gemma3", MeshConfig(2, 2, 2), TRAIN_RULES),
        ("relative", MeshConfig(2, 2, 2), TRAIN_RULES),
    ],
    ids=lambda value: {id(TRAIN_RULES): "train", id(DECODE_RULES): "decode"}.get(id(value), str(value)),
    indirect=["tiny_config"],
)
def test_eight_devices_compute_the_same_as_one(tiny_config: ModelConfig, mesh: MeshConfig, rules: Rules) -> None:
    gradients = rules is TRAIN_RULES
    expected = run_on_one_device(tiny_config, gradients=gradients)
    results = run(tiny_config, mesh, jax.devices(), rules, gradients=gradients)
    assert results.keys() == expected.keys()
    for name, x in expected.items():
        assert np.abs(x).max() > 0, name
        assert np.abs(results[name] - x).max() < TOLERANCE * np.abs(x).max(), name


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(0, 8, 1), ["(0, 8, 1)", "positive"]),
        (MeshConfig(1, -2, 1), ["(1, -2, 1)", "positive"]),
        (MeshConfig(-1, -1, 1), ["(-1, -1, 1)", "at most one"]),
        (MeshConfig(1, -1, 3), ["(1, -1, 3)", "8 devices", "divisor of 8"]),
        (MeshConfig(2, 2, 1), ["2 x 2 x 1 = 4", "8 devices", "-1"]),
        (MeshConfig(4, 4, 1), ["4 x 4 x 1 = 16", "8 devices"]),
    ],
    ids=str,
)
def test_invalid_mesh_sizes_are_refused(config: MeshConfig, words: list[str]) -> None:
    with pytest.raises(UserError, match=r"^mesh: ") as error:
        make_mesh(config)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_minus_one_takes_the_remaining_devices() -> None:
    assert make_mesh(MeshConfig()).shape == {"data": 1, "fsdp": 8, "tensor": 1}
    assert make_mesh(MeshConfig(-1, 2, 2)).shape == {"data": 2, "fsdp": 2, "tensor": 2}
    assert make_mesh(MeshConfig(), jax.devices()[:2]).shape == {"data": 1, "fsdp": 2, "tensor": 1}


def test_rules_split_dimensions_by_phase() -> None:
    mesh = make_mesh(MeshConfig(2, 2, 2))
    axes, shape = ("layers", "embed", "heads", "head_dim"), (3, 32, 8, 8)
    assert Layout(mesh, TRAIN_RULES).spec(axes, shape) == PartitionSpec(None, ("fsdp",), ("tensor",), None)
    assert Layout(mesh, DECODE_RULES).spec(axes, shape) == PartitionSpec(None, None, ("tensor",), None)
    assert Layout(mesh, TRAIN_RULES).spec(("batch", None), (8, 5)) == PartitionSpec(("data", "fsdp"), None)
    assert Layout(mesh, TRAIN_RULES).batch_ways == 4


def test_an_indivisible_dimension_is_replicated_or_refused() -> None:
    layout = Layout(make_mesh(MeshConfig(1, 2, 4)), TRAIN_RULES)
    assert layout.spec(("kv_heads",), (2,)) == PartitionSpec(None)  # replicated
    with pytest.raises(UserError, match=r"data=1 x fsdp=2 x tensor=4.*heads \(6\).*tensor \(4\).*divides 6"):
        layout.spec(("heads",), (6,))
    with pytest.raises(UserError, match=r"batch \(3\).*data x fsdp \(2\)"):
        layout.spec(("batch", None), (3, 5))


def test_contradictory_logical_axes_are_refused() -> None:
    layout = Layout(make_mesh(MeshConfig(1, 2, 4)), TRAIN_RULES)
    with pytest.raises(ValueError, match="twice"):
        layout.spec(("heads", "mlp"), (8, 8))
    with pytest.raises(ValueError, match="do not match"):
        layout.spec(("heads",), (8, 8))
