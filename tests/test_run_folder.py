"""The run folder: what may change on resume, and what a killed process leaves."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from tpt_jax.config import RunConfig, TrackersConfig
from tpt_jax.config_parsing import load_config
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
        {"trackers__wandb": "mine"},
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
    first = {"time": 1.0, "round": 1, "phase": "train", "step": 0, "loss": 1.0}
    path.write_text(json.dumps(first) + "\n" + tail)

    def is_kept(line: dict[str, Any]) -> bool:
        return "phase" in line

    log = MetricsLog(path, name="n", trackers=TrackersConfig(), is_kept=is_kept)
    log.log(1, "train", 1, {"loss": 0.5})
    log.close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 0.5]


def log_steps(folder: Path, index: int, steps: range, *, num_done: int, ends: bool = False) -> None:
    """Logs steps of a round, as a process that resumes it with num_done of them saved; it ends early unless it ends."""

    def is_kept(line: dict[str, Any]) -> bool:
        return line["round"] < index or line["step"] < num_done

    log = MetricsLog(folder / "metrics.jsonl", name="n", trackers=TrackersConfig(), is_kept=is_kept)
    for step in steps:
        log.log(index, "train", step, {"loss": index + step / 100})
    if ends:
        log.log(index, "round", index, {"pass_at_1": index / 10})
    log.close()  # a kill leaves no more than this


def read_events(folder: Path) -> list[tuple[str, int, float]]:
    """The names, steps and values of all events, read by the format: length, checksum, record, checksum."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    events = []
    for path in (folder / "tensorboard").iterdir():
        data, start = path.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack("<Q", data[start : start + 8])
            event = Event.FromString(data[start + 12 : start + 12 + length])
            events += [(value.tag, event.step, round(value.simple_value, 6)) for value in event.summary.value]
            start += length + 16
    return sorted(events)


def test_a_killed_run_leaves_no_step_in_tensorboard_twice(tmp_path: Path) -> None:
    """Round 1 ends, round 2 is killed after five steps with two of them saved, and again, and ends."""
    log_steps(tmp_path, 1, range(3), num_done=0, ends=True)
    (first,) = (tmp_path / "tensorboard").iterdir()
    log_steps(tmp_path, 2, range(5), num_done=0)
    log_steps(tmp_path, 2, range(2, 4), num_done=2)
    log_steps(tmp_path, 2, range(4, 6), num_done=4, ends=True)
    (tmp_path / "tensorboard" / "events.of.another.tool").touch()
    log_steps(tmp_path, 3, range(1), num_done=0)
    expected = [
        (f"train/round_{index}/loss", step, index + step / 100)
        for index, count in ((1, 3), (2, 6), (3, 1))
        for step in range(count)
    ]
    expected += [("round/pass_at_1", 1, 0.1), ("round/pass_at_1", 2, 0.2)]
    assert read_events(tmp_path) == sorted(expected)
    assert first.exists()  # a round that has ended is not drawn anew
    assert len([*(tmp_path / "tensorboard").iterdir()]) == 4


def test_a_log_that_loses_nothing_is_not_written_again(tmp_path: Path) -> None:
    log_steps(tmp_path, 1, range(3), num_done=0, ends=True)
    before = (tmp_path / "metrics.jsonl").stat()
    log_steps(tmp_path, 2, range(1), num_done=0)
    after = (tmp_path / "metrics.jsonl").stat()
    assert after.st_ino == before.st_ino
    assert after.st_size > before.st_size


def test_a_last_line_without_its_end_is_completed(tmp_path: Path) -> None:
    log_steps(tmp_path, 1, range(3), num_done=0)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    log_steps(tmp_path, 1, range(3, 4), num_done=3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


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
