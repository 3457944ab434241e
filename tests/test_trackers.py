"""Trackers: what Weights & Biases (offline) and Trackio hold is what metrics.jsonl has, once, and they end no run."""

import json
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from processes import CommandHere, refused

from tpt_jax.config import TrackersConfig
from tpt_jax.errors import UserError
from tpt_jax.io.files import read_jsonl
from tpt_jax.io.paths import to_path
from tpt_jax.loop.events import scalars
from tpt_jax.loop.metrics import MetricsLog
from tpt_jax.loop.trackers import require_trackers

BOTH = TrackersConfig(wandb="mine", trackio="mine")
NO_TRACKERS = TrackersConfig()


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB__DISABLE_STATS", "true")  # no thread that measures the machine
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")


def log_steps(
    folder: Path, trackers: TrackersConfig, steps: Sequence[int], *, num_saved: int, ends: bool = False
) -> None:
    """Trains a round's steps, resumed with num_saved of them saved; a kill leaves no more than an early end does."""

    def is_kept(line: dict[str, Any]) -> bool:
        return line["step"] < num_saved

    log = MetricsLog(to_path(folder / "metrics.jsonl"), name="a run", trackers=trackers, is_kept=is_kept)
    for step in steps:
        log.log(1, "train", step, {"loss": 2.0 - step / 8, "learning_rate": step / 1024})
    if ends:
        log.log(1, "round", 1, {"pass_at_1": 0.5})
    log.close()


def wandb_history(folder: Path) -> list[dict[str, float]]:
    """The points in the .wandb files, in the order of their processes; the files are logs in the format of LevelDB.

    Blocks of 32 KiB hold chunks: checksum, length, kind (1 whole, 2 first, 3 middle, 4 last), bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    def records(data: bytes) -> Iterator[bytes]:
        start, parts = 7, b""  # after the file's own header
        while start + 7 <= len(data):
            if (room := -start % 2**15) and room < 7:
                start += room
                continue
            _, length, kind = struct.unpack("<IHB", data[start : start + 7])
            parts += data[start + 7 : start + 7 + length]
            start += 7 + length
            if kind in (1, 4):
                yield parts
                parts = b""

    points = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for record in map(Record.FromString, records(path.read_bytes())):
            if record.HasField("history"):
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                points.append({key: json.loads(value) for key, value in items.items() if not key.startswith("_")})
    return points


def trackio_history(name: str) -> list[dict[str, float]]:
    from trackio.sqlite_storage import SQLiteStorage

    points = SQLiteStorage.get_logs("mine", name)
    return [{key: value for key, value in point.items() if key not in ("timestamp", "step")} for point in points]


def run_id(folder: Path) -> str:
    return json.loads((folder / "trackers.json").read_text())["id"]


def expected(folder: Path) -> list[dict[str, float]]:
    lines = read_jsonl(folder / "metrics.jsonl")
    return [{**scalars(line), f"{line['phase']}/step": line["step"], "round": line["round"]} for line in lines]


def test_trackers_hold_each_point_of_a_killed_run_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed after five steps with two of them saved, then before it gets as far, and then not."""
    log_steps(tmp_path, BOTH, range(5), num_saved=0)
    log_steps(tmp_path, BOTH, range(2, 4), num_saved=2)
    log_steps(tmp_path, BOTH, range(2, 8), num_saved=2, ends=True)
    points = expected(tmp_path)
    assert [point["train/step"] for point in points[:-1]] == [*range(8)]
    assert points[3] == {
        "train/round_1/loss": 1.625,
        "train/round_1/learning_rate": 3 / 1024,
        "train/step": 3,
        "round": 1,
    }
    assert points[-1] == {"round/pass_at_1": 0.5, "round/step": 1, "round": 1}
    assert wandb_history(tmp_path) == points
    assert {path.stem for path in tmp_path.glob("wandb/offline-*/*.wandb")} == {f"run-{run_id(tmp_path)}"}
    assert trackio_history(f"a run-{run_id(tmp_path)[:8]}") == points
    assert capsys.readouterr().out == ""


def test_a_tracker_named_later_gets_the_curves_from_their_start(tmp_path: Path) -> None:
    log_steps(tmp_path, NO_TRACKERS, range(3), num_saved=0)
    assert not (tmp_path / "trackers.json").exists()
    log_steps(tmp_path, TrackersConfig(trackio="mine"), range(2, 4), num_saved=2)
    log_steps(tmp_path, BOTH, range(4, 5), num_saved=4)
    assert trackio_history(f"a run-{run_id(tmp_path)[:8]}") == expected(tmp_path)
    assert wandb_history(tmp_path) == expected(tmp_path)


class Broken:
    """A tracker's library whose server goes after two points."""

    def __init__(self, *, fails_at_start: bool = False):
        self.points: list[Any] = []
        self.fails_at_start = fails_at_start

    def init(self, **_: Any) -> "Broken":
        if self.fails_at_start:
            raise TimeoutError
        return self

    def log(self, values: Any) -> None:
        if len(self.points) == 2:
            raise ConnectionError("the server\nis gone")
        self.points.append(values)

    def finish(self) -> None:
        raise AssertionError("a tracker that failed is asked again")


@pytest.mark.parametrize(
    ("fails_at_start", "num_points", "reason"), [(False, 2, "the server is gone"), (True, 0, "TimeoutError")]
)
def test_a_tracker_that_fails_ends_no_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails_at_start: bool,
    num_points: int,
    reason: str,
) -> None:
    broken = Broken(fails_at_start=fails_at_start)
    monkeypatch.setitem(sys.modules, "trackio", broken)
    log_steps(tmp_path, TrackersConfig(trackio="mine"), range(5), num_saved=0, ends=True)
    assert [line.get("loss") for line in read_jsonl(tmp_path / "metrics.jsonl")] == [2.0, 1.875, 1.75, 1.625, 1.5, None]
    assert len(broken.points) == num_points
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"trackio: {reason}; the run goes on without it, and metrics.jsonl has all curves"]


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    require_trackers(NO_TRACKERS)
    require_trackers(BOTH)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(api=SimpleNamespace(api_key=None)))
    with pytest.raises(
        UserError, match=r"trackers.wandb \(mine\): nobody is logged in; run `wandb login`, or set WANDB"
    ):
        require_trackers(BOTH)
    for library in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(
            UserError, match=rf"{library} \(mine\) needs {library}; run: pip install 'tpt_jax\[{library}\]'"
        ):
            require_trackers(TrackersConfig(**{library: "mine"}))


def test_a_run_asks_for_its_trackers_before_it_reads_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tpt_here: CommandHere
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    config = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
    monkeypatch.chdir(tmp_path)
    line = refused(tpt_here, "run", "--config", config, "--model.path", "nowhere", "--trackers.trackio", "mine")
    assert "pip install 'tpt_jax[trackio]'" in line
    assert os.listdir() in ([], ["runs"])
