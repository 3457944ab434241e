"""Resuming: which rounds count as trained, given what an earlier process left in the run folder."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.checkpoints.writer import CheckpointWriter, is_complete
from tpt_jax.config import RunConfig
from tpt_jax.config_parsing import load_config
from tpt_jax.io.paths import to_path
from tpt_jax.loop.recovery import make_line_filter, recover
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.runtime.sharding import Layout

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
LAST = 3  # round


@pytest.fixture(scope="module")
def checkpoint(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "000"
    model = ModelFolder.open("quickstart")
    writer = CheckpointWriter()
    writer.save(to_path(path), model.load(layout), model, {"tokens": 7, "seconds": 1.0})
    writer.close()
    return path


def config(**train: str) -> RunConfig:
    return load_config(QUICKSTART, {"num_rounds": LAST, "train": train})


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> RunFolder:
    """A run whose rounds are all trained, and evaluated but for the last one."""
    folder = RunFolder.open(tmp_path / "run", config())
    folder.begin(config())
    for index in range(LAST + 1):
        shutil.copytree(checkpoint, folder.checkpoint(index))
        sampled: dict[Any, Any] = {"think": {}, "prune": {}} if index else {}
        folder.write_stages(index, {**sampled, "train": {"seconds": 1.0, "tokens": 7}})
        if index < LAST:
            folder.write_metrics(index, {"round": index, "pass_at_1": 0.5})
    return folder


def damage(folder: RunFolder, index: int) -> None:
    path = folder.checkpoint(index) / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-1])


def untrained(folder: RunFolder, config: RunConfig) -> list[int]:
    """The rounds that must train, from what recover returns, which must agree with what it wrote."""
    states = recover(folder, config)
    assert [dict(state.stages) for state in states] == [dict(folder.stages(state.index)) for state in states]
    return [state.index for state in states if "train" not in state.stages]


@pytest.mark.parametrize("start_from", ["previous", "base"])
def test_a_new_run_has_nothing_to_recover(tmp_path: Path, start_from: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder.open(tmp_path / "run", config())
    assert untrained(folder, config(start_from=start_from)) == [0, 1, 2, 3]
    assert capsys.readouterr().err == ""


def test_intact_checkpoints_are_kept(folder: RunFolder) -> None:
    assert untrained(folder, config()) == []
    assert untrained(folder, config(start_from="base")) == []


def test_broken_checkpoints_are_removed_back_to_the_first_intact_one(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in (0, 2, 3):
        damage(folder, index)
    assert untrained(folder, config()) == [2, 3]
    assert "round 3 trains again" in capsys.readouterr().err
    assert [is_complete(folder.checkpoint(index)) for index in range(LAST + 1)] == [True, True, False, False]


def test_rounds_that_start_from_the_base_need_no_others(folder: RunFolder) -> None:
    """keep_checkpoints has removed the ones in between."""
    damage(folder, 3)
    for index in (1, 2):
        folder.checkpoint(index).rmtree()
    assert untrained(folder, config(start_from="base")) == [3]
    damage(folder, 0)
    assert untrained(folder, config(start_from="base")) == [0, 3]


def test_a_round_that_has_not_sampled_needs_the_one_before_it(folder: RunFolder) -> None:
    folder.write_stages(3, {})
    for index in (2, 3):
        folder.checkpoint(index).rmtree()
    assert untrained(folder, config(start_from="base")) == [2, 3]


def test_a_checkpoint_completed_before_a_kill_is_recorded(folder: RunFolder) -> None:
    folder.write_stages(3, {"think": {}})
    assert untrained(folder, config()) == []
    assert folder.stages(3) == {"think": {}, "train": {"tokens": 7, "seconds": 1.0}}


def test_a_half_removed_checkpoint_is_removed(folder: RunFolder) -> None:
    folder.write_stages(3, {})
    (folder.checkpoint(3) / "training.json").unlink()
    assert untrained(folder, config()) == [3]
    assert not folder.checkpoint(3).exists()


def test_only_lines_that_will_not_be_logged_again_stay(folder: RunFolder) -> None:
    damage(folder, 3)
    (folder.training_saves(3) / "20").mkdir(parents=True)
    is_kept = make_line_filter(folder, recover(folder, config()))
    cases = {
        (2, "train", 99): True,
        (2, "round", 2): True,
        (3, "train", 19): True,
        (3, "train", 20): False,
        (3, "round", 3): False,
        (4, "train", 0): True,  # of a run that had more rounds
    }
    for (index, phase, step), expected in cases.items():
        assert is_kept({"round": index, "phase": phase, "step": step}) == expected, (index, phase, step)
