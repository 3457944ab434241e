"""Checkpoints: damaged ones are refused with the file's name; intact ones load on any mesh."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tpt_jax.checkpoints.checksums import CHECKSUMS, BrokenCheckpointError
from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.checkpoints.writer import CheckpointWriter, is_complete, read_facts, remove_unfinished
from tpt_jax.config import MeshConfig
from tpt_jax.io.paths import to_path
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout


@pytest.fixture(scope="module")
def eight() -> Layout:
    return Layout(make_mesh(MeshConfig(2, 2, 2)), TRAIN_RULES)


@pytest.fixture(scope="module")
def parameters(eight: Layout) -> nnx.State:
    return ModelFolder.open("quickstart").load(eight)


@pytest.fixture
def checkpoint(parameters: nnx.State, tmp_path: Path) -> Path:
    writer = CheckpointWriter()
    writer.save(to_path(tmp_path / "001"), parameters, ModelFolder.open("quickstart"), {"tokens": 7})
    writer.close()
    return tmp_path / "001"


def test_a_checkpoint_loads_on_any_mesh(checkpoint: Path, parameters: nnx.State, layout: Layout, eight: Layout) -> None:
    """Saved from eight devices and loaded on one, and vice versa."""
    assert is_complete(to_path(checkpoint))
    assert read_facts(to_path(checkpoint)) == {"tokens": 7}
    alone = ModelFolder.open(checkpoint).load(layout)
    writer = CheckpointWriter()
    again = checkpoint.with_name("002")
    writer.save(to_path(again), alone, ModelFolder.open(checkpoint), {})
    writer.close()
    back = ModelFolder.open(again).load(eight)
    for first, last in zip(jax.tree.leaves(parameters), jax.tree.leaves(back), strict=True):
        assert first.sharding == last.sharding
        np.testing.assert_array_equal(np.asarray(first), np.asarray(last))


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "words"), [(flip_a_byte, "was changed"), (truncate, "bytes"), (Path.unlink, "is missing")]
)
def test_every_damaged_file_is_named(
    checkpoint: Path, layout: Layout, damage: Callable[[Path], None], words: str
) -> None:
    names = json.loads((checkpoint / CHECKSUMS).read_text())
    assert {"config.json", "tokenizer.json", "training.json"} < names.keys()
    assert sum(size for size, _ in names.values()) > 1_000_000  # the weights too
    for name in names:
        path = checkpoint / name
        before = path.read_bytes()
        if not before:
            continue
        damage(path)
        with pytest.raises(BrokenCheckpointError, match=words) as error:
            ModelFolder(to_path(checkpoint), ModelFolder.open("quickstart").config).load(layout)
        assert name in str(error.value)
        assert str(checkpoint) in str(error.value)
        path.write_bytes(before)
    ModelFolder.open(checkpoint).load(layout)  # repaired, it loads again


def test_a_checkpoint_without_checksums_was_cut_short(checkpoint: Path, layout: Layout) -> None:
    (checkpoint / CHECKSUMS).unlink()
    with pytest.raises(BrokenCheckpointError, match="incomplete"):
        ModelFolder.open(checkpoint).load(layout)


def test_remains_of_a_killed_process_are_removed(parameters: nnx.State, tmp_path: Path) -> None:
    left = tmp_path / "001.orbax-checkpoint-tmp"
    (left / "parameters").mkdir(parents=True)
    target = to_path(tmp_path / "001")
    assert not is_complete(target)
    remove_unfinished(target)
    assert not left.exists()
