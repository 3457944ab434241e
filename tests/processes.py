"""The `tpt` command in tests: in processes as a user starts them, or, for mistakes found early, in the test's own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from tpt_jax.commands.main import main
from tpt_jax.errors import MAX_MESSAGE

ROOT = Path(__file__).parent.parent
TPT = (sys.executable, "-m", "tpt_jax")

# The start of a run's config: easy questions with short answers, which need no library that takes seconds to import.
PROJECT = ROOT / "tpt_jax/library/project_template"  # what `tpt init` writes
EASY_TASK = f"""
extends: {ROOT}/configs/own_task.yaml
task: {{train: {PROJECT}/train.jsonl, test: {PROJECT}/test.jsonl}}"""
# The same, judged for a model that answers nonsense; without a text to end at, such a model would never stop.
SMALL_TASK = f"""{EASY_TASK[:-1]}, checker: "nonsense_checker:check"}}
prompt: {{stop: ["e", "s", "8", "0"]}}"""
SHIPPED = ROOT / "tpt_jax/quickstart/model"

Done = subprocess.CompletedProcess[str]


def process_environment(num_devices: int = 1, optimization: int = 0) -> dict[str, str]:
    """Of a process with emulated devices, and neither PyTorch nor the tests' strict JAX settings.

    Args:
      optimization: the level of XLA: 0 compiles fastest, 1 is better for programs that run for seconds.
    """
    flags = f"--xla_force_host_platform_device_count={num_devices} --xla_backend_optimization_level={optimization}"
    # Over Gloo, independent collectives may run in any order; this scheduler makes them wait for each other.
    flags += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_NUMPY")}
    path = [str(ROOT / "tests/without_torch"), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return env | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(path)}


def tpt(*arguments: object) -> Done:
    """Runs the command in a process on one device."""
    command = [*TPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=process_environment(), timeout=240, check=False)


class CommandHere:
    """Runs the command in this process, on its eight devices: a mistake takes no seconds to import libraries."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Done:
        self._capsys.readouterr()
        words = [str(argument) for argument in arguments]
        try:
            status = main(words)
        except SystemExit as exit:  # argparse ends the process
            status = int(exit.code or 0)
        printed = self._capsys.readouterr()
        return Done(words, status, printed.out, printed.err)


def refused(tpt: CommandHere, *arguments: object) -> str:
    """The one line with which the command refuses its input."""
    done = tpt(*arguments)
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert line.isprintable()
    assert len(line) <= MAX_MESSAGE + len("tpt: ")
    return line


def write_json(path: Path, content: Any) -> Path:
    """Writes a file with one JSON value."""
    path.write_text(json.dumps(content))
    return path


def write_shallow_model(folder: Path) -> Path:
    """The shipped model with its first layer only: it answers nonsense, but a command starts in half of the time."""
    shutil.copytree(SHIPPED, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    weights = load_file(folder / "model.safetensors")
    shallow = {name: value for name, value in weights.items() if ".layers." not in name or ".layers.0." in name}
    save_file(shallow, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
