"""The run folder: what may change on resume, and what a killed process leaves."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tpt_jax.config import RunConfig, load_config
from tpt_jax.errors import UserError
from tpt_jax.io.files import write_atomically
from tpt_jax.loop.metrics import MetricsLog
from tpt_jax.loop.run_folder import RunFolder

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


def config(**overrides: str) -> RunConfig:
    return load_config(QUICKSTART, {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """A run with a result."""
    folder = RunFolder.open(tmp_path, config())
    folder.begin(config())
    folder.write_stages(0, {"train": {"seconds": 1.0}})
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        {"num_rounds": "7"},
        {"mesh__tensor": "2"},
        {"think__num_slots": "8"},
        {"train__save_every": "3"},
        {"train__offload": "true"},
        {"wandb_project": "mine"},
    ],
)
def test_mesh_speed_and_number_of_rounds_may_change_on_resume(started: Path, change: dict[str, str]) -> None:
    folder = RunFolder.open(started, config(**change))
    folder.begin(config(**change))
    RunFolder.open(started, config(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "3"}, "seed is 0 there, 3 here"),
        ({"train__rows": "8"}, "train.rows is 16 there, 8 here"),
        ({"think__temperature": "0.5"}, "think.temperature is 1.0 there, 0.5 here"),
    ],
)
def test_settings_that_change_results_are_refused(started: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunFolder.open(started, config(**change))


def test_a_folder_of_an_older_version_is_resumed(started: Path) -> None:
    """It lacks options that were added later; they take their defaults."""
    path = started / "config.yaml"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "save_every" not in line and not line.startswith("#")))
    RunFolder.open(started, config())


def test_run_and_eval_refuse_each_others_folders(started: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made by another command than tpt eval"):
        RunFolder.open(started, config(), "eval")
    other = RunFolder.open(tmp_path / "other", config(), "eval")
    other.begin(config())
    other.write_stages(0, {"evaluate": {"seconds": 1.0}})
    with pytest.raises(UserError, match="made by another command than tpt run"):
        RunFolder.open(other.path, config())


@pytest.mark.parametrize(
    "left", ["rounds/000/questions.jsonl", "checkpoints/000.orbax-checkpoint-tmp/a", "metrics.jsonl"]
)
def test_a_run_that_has_computed_nothing_yet_may_start_again_with_another_config(tmp_path: Path, left: str) -> None:
    RunFolder.open(tmp_path, config(seed="3")).begin(config(seed="3"))
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).touch()
    RunFolder.open(tmp_path, config()).begin(config())
    assert load_config(tmp_path / "config.yaml", {}).seed == 0


def test_a_temporary_file_and_the_lock_of_a_killed_process_are_ignored(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.123.tmp").write_text("na")
    (tmp_path / "lock").touch()
    RunFolder.open(tmp_path, config())


@pytest.mark.parametrize("tail", ['{"round": 1, "ph', "\0\0\0\0", '{"round": 1}\n\0'])
def test_a_log_cut_in_the_middle_of_a_line_is_resumed(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    first = {"round": 1, "phase": "train", "step": 0, "loss": 1.0}
    path.write_text(json.dumps(first) + "\n" + tail)

    def is_kept(line: dict[str, Any]) -> bool:
        return "phase" in line

    log = MetricsLog(path, name="n", wandb_project=None, is_kept=is_kept)
    log.log(1, "train", 1, {"loss": 0.5})
    log.close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 0.5]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
