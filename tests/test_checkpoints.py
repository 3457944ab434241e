"""Checkpoints: damaged ones are refused with the file's name; intact ones load on any mesh."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tpt_jax.checkpoints import checksums
from tpt_jax.checkpoints.checksums import CHECKSUMS, BrokenCheckpointError, verify_checksums, write_checksums
from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.checkpoints.training import Saved, TrainingCheckpoints
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


def test_a_checksum_covers_the_whole_of_a_file_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "CHUNK", 4)
    folder, data = to_path(tmp_path), b"0123456789"
    (tmp_path / "weights").write_bytes(data)
    write_checksums(folder)
    assert json.loads((tmp_path / CHECKSUMS).read_text()) == {"weights": [10, zlib.crc32(data)]}
    (tmp_path / "weights").write_bytes(b"x" + data[1:])
    with pytest.raises(BrokenCheckpointError, match="weights was changed"):
        verify_checksums(folder)


def test_a_training_resumes_from_its_newest_intact_save(tmp_path: Path) -> None:
    """Of the two that are kept; a broken one is removed, so that the training can save at its step again."""

    def state(step: int) -> dict[str, jax.Array]:
        return {"weight": jnp.full(4, step, jnp.float32)}

    def reopen_and_restore() -> tuple[int, float, dict[str, int]] | None:
        saves = TrainingCheckpoints(tmp_path, save_every=2)
        saved = saves.restore(state(0))
        saves.close()
        return None if saved is None else (saved.step, float(saved.state["weight"][0]), saved.progress)

    assert reopen_and_restore() is None
    saves = TrainingCheckpoints(tmp_path, save_every=2)
    assert [step for step in range(1, 7) if saves.is_due(step)] == [2, 4, 6]
    for step in (2, 4, 6):
        saves.save(Saved(step, state(step), {"count": step}))
    saves.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "6"]
    assert reopen_and_restore() == (6, 6.0, {"count": 6})
    (tmp_path / "6" / CHECKSUMS).unlink()
    assert reopen_and_restore() == (4, 4.0, {"count": 4})
    assert [path.name for path in tmp_path.iterdir()] == ["4"]


def test_remains_of_a_killed_process_are_removed(parameters: nnx.State, tmp_path: Path) -> None:
    left = tmp_path / "001.orbax-checkpoint-tmp"
    (left / "parameters").mkdir(parents=True)
    target = to_path(tmp_path / "001")
    assert not is_complete(target)
    remove_unfinished(target)
    assert not left.exists()
