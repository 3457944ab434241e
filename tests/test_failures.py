"""A failure is one line with exit status 1, whichever thread it begins in; its traceback only comes if asked for."""

import logging
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from processes import EASY_TASK, process_environment

from tpt_jax.checkpoints import writer
from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.commands import report
from tpt_jax.commands.main import main
from tpt_jax.io.paths import to_path
from tpt_jax.runtime import environment

XLA_ERROR = "UNIMPLEMENTED: Unsupported element type\nand much more"
LINE = "tpt: JaxRuntimeError: UNIMPLEMENTED: Unsupported element type"
HINT = " (TPT_TRACEBACK=1 shows where)"

# The first chunk fails, in the thread that fetches it, while a checkpoint is written. Nothing is trained.
FAILING_RUN = f"""
import sys, jax
from tpt_jax.commands.main import main
from tpt_jax.loop import setup
from tpt_jax.think import engine
def fail(*_): raise jax.errors.JaxRuntimeError({XLA_ERROR!r})
engine._fetch = fail
setup.compile_trainer = lambda *_, **options: None
sys.exit(main(sys.argv[1:]))
"""
CONFIG = f"""{EASY_TASK}
name: failing
num_rounds: 1
think: {{num_slots: 4}}
prune: {{num_workers: 1}}
evaluate: {{num_slots: 4}}
"""
PROGRESS = ("failing:", "sampler ready", "round 0")


def test_a_run_that_fails_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    arguments = ["run", "--config", str(tmp_path / "config.yaml"), "--run_dir", str(tmp_path / "run")]
    command = [sys.executable, "-c", FAILING_RUN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=process_environment(), timeout=240, check=False)
    assert done.returncode == 1
    *before, last = done.stderr.splitlines()
    assert last == LINE + HINT
    assert not [line for line in before if line and not line.startswith(PROGRESS)]
    assert (tmp_path / "run/checkpoints/000/config.json").is_file()  # what was being written is complete


def test_a_failed_background_write_is_raised_and_not_logged_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(folder: object) -> None:
        raise jax.errors.JaxRuntimeError(XLA_ERROR)

    monkeypatch.setattr(writer, "write_checksums", fail)
    logging.getLogger("absl").setLevel(logging.NOTSET)
    environment.prepare()
    checkpoints = writer.CheckpointWriter()
    source = ModelFolder.open("quickstart")
    checkpoints.save(to_path(tmp_path / "checkpoint"), nnx.State({"weight": nnx.Param(jnp.zeros(2))}), source, {})
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNIMPLEMENTED"):
        checkpoints.wait()
    assert not caplog.records


@pytest.mark.parametrize("shows_traceback", [False, True])
def test_the_traceback_comes_if_asked_for(
    shows_traceback: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> None:
        raise jax.errors.JaxRuntimeError(XLA_ERROR)

    monkeypatch.setattr(report, "main", fail)
    monkeypatch.setenv("TPT_TRACEBACK", "1" if shows_traceback else "")
    assert main(["report", "folder"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == (LINE if shows_traceback else LINE + HINT)
    assert (lines[0] == "Traceback (most recent call last):") == shows_traceback
    assert shows_traceback or len(lines) == 1
