"""Profiles hold the steps that were asked for, and no others, with the model's parts by name; they end no training."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from conftest import TINY

from tpt_jax.config import TrainConfig
from tpt_jax.config_parsing import load_config
from tpt_jax.errors import UserError
from tpt_jax.io.paths import to_path
from tpt_jax.loop.training import fine_tune
from tpt_jax.models.transformer import initialize_parameters
from tpt_jax.prompts import Example
from tpt_jax.runtime.profiling import Profile
from tpt_jax.runtime.sharding import Layout
from tpt_jax.train.compile import TrainerProgram, compile_trainer
from tpt_jax.train.fine_tuning import StepRecord

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
TRAIN = TrainConfig(rows=2, sequence_length=8)
EXAMPLES = [Example(tuple(range(1, 9)), 3, str(index)) for index in range(12)]  # six steps


@pytest.fixture(scope="module")
def trainer(layout: Layout) -> TrainerProgram:
    return compile_trainer(TINY["llama"], layout.mesh, compute_dtype="float32", train=TRAIN)


def train(
    trainer: TrainerProgram, folder: Path, steps: range, on_step: Callable[[StepRecord], None] | None = None
) -> list[int]:
    done: list[int] = []
    fine_tune(
        trainer,
        lambda: initialize_parameters(TINY["llama"], trainer.layout, seed=0),
        EXAMPLES,
        TRAIN,
        seed=0,
        label="train",
        on_step=on_step or (lambda record: done.append(record.step)),
        profile=Profile(to_path(folder), "train-001", steps),
    )
    return done


def traced_steps(folder: Path, suffix: str) -> list[int]:
    (path,) = (folder / "plugins" / "profile" / "train-001").glob(f"*{suffix}")
    trace: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    assert ("metadata" in trace) == (suffix == ".trace.json.gz")
    return [int(event["args"]["step_num"]) for event in trace["traceEvents"] if event.get("name") == "train"]


@pytest.mark.parametrize(("steps", "traced"), [(range(2, 4), [2, 3]), (range(4, 9), [4, 5]), (range(0, 1), [0])])
def test_a_profile_has_the_steps_asked_for(
    trainer: TrainerProgram, tmp_path: Path, steps: range, traced: list[int]
) -> None:
    assert train(trainer, tmp_path, steps) == [*range(6)]
    assert traced_steps(tmp_path, ".trace.json.gz") == traced_steps(tmp_path, ".perfetto.json.gz") == traced
    (planes,) = tmp_path.glob("plugins/profile/train-001/*.xplane.pb")
    for scope in (b"layer/", b"attention/", b"norm/", b"jvp(embedding)", b"jvp(loss)", b"optimizer/"):
        assert scope in planes.read_bytes()


def test_no_step_runs_while_a_trace_starts_or_ends(
    trainer: TrainerProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere a step is done only after the next one has been dispatched."""
    events: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: events.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    train(trainer, tmp_path, range(2, 4), on_step=lambda record: events.append(f"{record.step} done"))
    assert events == ["0 done", "1 done", "start", "2 done", "3 done", "stop", "4 done", "5 done"]


def test_a_profile_that_cannot_be_written_ends_no_training(
    trainer: TrainerProgram, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profiles").write_text("a file where the folder should be")
    assert train(trainer, tmp_path / "profiles", range(1, 2)) == [*range(6)]
    assert "profile train-001: " in capsys.readouterr().err


def test_steps_that_never_come_are_named(
    trainer: TrainerProgram, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(trainer, tmp_path, range(6, 8))
    assert "profile train-001: the stage ended before step 6; nothing was traced" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("value", ["13:10", "10", "10:10", "a:b", "-1:3", 613, True, "1:2:3", ""])
def test_a_bad_range_is_one_line(value: Any) -> None:
    rule = 'must be A:B with A below B, in quotes in a file: "10:13" are steps 10, 11 and 12'
    with pytest.raises(UserError, match=rf"^profile_steps \(.*\): .*{rule}$"):
        load_config(QUICKSTART, {"profile_steps": value})


def test_a_range_on_the_command_line_needs_no_quotes() -> None:
    assert load_config(QUICKSTART, {"profile_steps": "10:13"}).profile_steps == "10:13"
    assert load_config(QUICKSTART, {"profile_steps": "null"}).profile_steps is None
