"""The loop, end to end, with the shipped model's first layer: `tpt run` in processes, some of them killed."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import ROOT, SMALL_TASK, TPT, CommandHere, process_environment, tpt, write_shallow_model
from safetensors.numpy import load_file

CONFIG = f"""{SMALL_TASK}
name: small
num_rounds: 2
think: {{num_questions: 24, num_samples: 2, temperature: 2.5, max_prompt_tokens: 32, num_slots: 4,
        weights: int8}}
prune: {{num_workers: 1, max_traces: 16}}
train: {{num_epochs: 3, save_every: 2, traces_of: all, optimizer: {{learning_rate: 1.0e-3}}}}
evaluate: {{num_samples: 2, max_prompt_tokens: 32, num_slots: 16}}
"""

# When a process gets a signal: as soon as a file exists. SIGTERM leaves it time to save its state. Two more of many
# places, see benchmarks/faults.py; test_hosts.py kills a host that samples.
SIGNALS = {
    "rounds/001/training/2": signal.SIGTERM,
    "checkpoints/002.orbax-checkpoint-tmp*": signal.SIGKILL,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    model = write_shallow_model(folder / "model")
    (folder / "small.yaml").write_text(f"{CONFIG}\nmodel: {{path: {model}}}")
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = tpt("run", "--config", config, "--run_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


def metrics(folder: Path, index: int) -> dict[str, Any]:
    return json.loads((folder / "rounds" / f"{index:03}" / "metrics.json").read_text())


def results(folder: Path) -> list[dict[str, Any]]:
    """A run's metrics, without those that depend on the clock, on the process, or on what was under way."""
    ignored = (
        "crc32",
        "seconds",
        "compilations",
        "slot_occupancy",
        "device_idle",
        "tokens",
        "num_surplus",
        "num_cancelled",
    )
    rounds = [metrics(folder, index) for index in range(3)]
    return [{name: value for name, value in figures.items() if name not in ignored} for figures in rounds]


def jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, without their checksums."""
    lines = map(json.loads, path.read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "crc32"} for line in lines]


def but_for_rounding(line: dict[str, Any]) -> dict[str, Any]:
    """A trace to compare with: sums over its tokens depend a little on what else was in the slots."""
    return {**line, **{name: pytest.approx(line[name], rel=1e-4) for name in ("logprob", "entropy")}}


def traces(folder: Path, index: int, sampling: str) -> dict[tuple[str, int], dict[str, Any]]:
    """The judged traces of a stage, from all its files; none is there twice."""
    files = (folder / "rounds" / f"{index:03}" / "traces").glob(f"{sampling}-*.jsonl")
    lines = [line for file in files for line in jsonl(file)]
    by_name = {(line["id"], line["sample"]): line for line in lines}
    assert len(by_name) == len(lines)
    return by_name


def logged_steps(folder: Path) -> list[tuple[int, str, int]]:
    """Training steps and rounds; how often a stage that samples logs depends on its speed."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["round"], line["phase"], line["step"]) for line in lines if line["phase"] in ("train", "round")]


def test_a_run_writes_its_metrics_curves_and_report(finished: Path) -> None:
    for index in range(3):
        figures = metrics(finished, index)
        assert figures["round"] == index
        assert 0 <= figures["intervals"]["pass_at_1"][0] <= figures["pass_at_1"] <= figures["pass_at_k"] <= 1
        assert figures["num_questions"] == 16
        weights = {stage: types["weights"] for stage, types in figures["sampler"].items()}
        assert weights == {"evaluate": "compute", **({"think": "int8"} if index else {})}
        assert set(figures["seconds"]) == {"train", "evaluate", *(["think", "prune"] if index else [])}
    first = metrics(finished, 1)
    assert first["num_kept"] == 16
    assert first["num_traces"] + first["num_surplus"] == len(traces(finished, 1, "think")) < 48
    assert 16 <= first["num_correct"] < first["num_traces"]  # some questions were asked twice
    assert first["train_is_estimate"]
    assert 0 < first["train_pass_at_1"] < 1
    assert metrics(finished, 2)["compilations"] == 0
    phases = [json.loads(line)["phase"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert phases.count("round") == 3
    assert phases.count("train") > 2
    assert {"think", "evaluate"} < {*phases}
    report = (finished / "report.html").read_text()
    assert "<html" in report
    assert "sampled with int8 weights" in report
    assert list((finished / "tensorboard").iterdir())


def test_no_question_is_asked_twice_or_tested_on(finished: Path) -> None:
    asked = []
    for index in (1, 2):
        lines = (finished / "rounds" / f"{index:03}" / "questions.jsonl").read_text().splitlines()
        asked += [json.loads(line) for line in lines if "/train/" in json.loads(line)["id"]]
    assert len({question["question"] for question in asked}) == 48


def test_training_moved_the_weights_and_export_writes_them(
    config: Path, finished: Path, tmp_path: Path, tpt_here: CommandHere
) -> None:
    import torch
    import transformers

    exported = {}
    for index in (0, 2):
        checkpoint = finished / f"checkpoints/{index:03}"
        done = tpt_here("export", "--checkpoint", checkpoint, "--output", tmp_path / str(index))
        assert done.returncode == 0, done.stderr
        exported[index] = load_file(tmp_path / str(index) / "model.safetensors")
    given = load_file(config.parent / "model/model.safetensors")
    for name, weight in given.items():
        np.testing.assert_array_equal(exported[0][name], weight)
    assert any((exported[2][name] != given[name]).any() for name in given)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "2", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "2")
    question = [{"role": "user", "content": "12 + 5 ="}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    out = model.generate(ids, max_new_tokens=20, do_sample=False)
    assert out[0, -1] == tokenizer.eos_token_id  # it has learnt to stop


def test_a_run_stopped_and_killed_ends_with_the_same_results(config: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    for point, number in SIGNALS.items():
        command = [*TPT, "run", "--config", str(config), "--run_dir", str(folder)]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=process_environment(), **quiet)
        deadline = time.monotonic() + 120
        while not any(folder.glob(point)):
            assert process.poll() is None, f"ended before {point}"
            assert time.monotonic() < deadline, f"{point} never appeared"
            time.sleep(0.005)
        process.send_signal(number)
        assert process.wait(timeout=30) == (os.EX_TEMPFAIL if number == signal.SIGTERM else -signal.SIGKILL)
    done = tpt("run", "--config", config, "--run_dir", folder)
    assert done.returncode == 0, done.stderr
    assert results(folder) == results(finished)
    for index in range(3):
        assert traces(folder, index, "evaluate") == traces(finished, index, "evaluate")
        ours, others = traces(folder, index, "think"), traces(finished, index, "think")
        both = ours.keys() & others.keys()
        assert [ours[name] for name in both] == [but_for_rounding(others[name]) for name in both]
        if index:
            lines, expected = (jsonl(each / f"rounds/{index:03}/training.jsonl") for each in (folder, finished))
            assert lines == [but_for_rounding(line) for line in expected]
    assert logged_steps(folder) == logged_steps(finished)
    assert not list(folder.glob("rounds/*/training"))


def test_a_broken_checkpoint_is_trained_again(config: Path, finished: Path, tmp_path: Path) -> None:
    """Also, keep_checkpoints removes all but the newest and the best."""
    folder = tmp_path / "broken"
    shutil.copytree(finished, folder)
    for path in (folder / "rounds/002", folder / "checkpoints/002"):
        shutil.rmtree(path)
    largest = max((folder / "checkpoints/001/parameters").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    done = tpt("run", "--config", config, "--run_dir", folder, "--keep_checkpoints", 1)
    assert done.returncode == 0, done.stderr
    assert f"{folder}/checkpoints/001: {largest.relative_to(folder / 'checkpoints/001')} was changed" in done.stderr
    assert "round 1 trains again" in done.stderr
    assert results(folder) == results(finished)
    best = max(range(3), key=lambda index: metrics(folder, index)["pass_at_1"])
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"002", f"{best:03}"}


def test_eval_and_sft(config: Path, finished: Path, tmp_path: Path, tpt_here: CommandHere) -> None:
    """`tpt sft` on a round's traces, then `tpt eval` of its output."""
    traces, output = finished / "rounds/001/training.jsonl", tmp_path / "sft"
    arguments = ("sft", "--config", config, "--model", config.parent / "model", "--traces", traces, "--output", output)
    done = tpt(*arguments)
    assert done.returncode == 0, done.stderr
    assert tpt_here(*arguments).returncode == 2
    done = tpt_here("eval", "--config", config, "--model", output)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_questions"] == 16


def test_mistakes_are_one_line_and_change_nothing(
    config: Path, finished: Path, tmp_path: Path, tpt_here: CommandHere
) -> None:
    """Mistakes that are found early; others have tests with the code that finds them."""
    before = (finished / "config.yaml").read_text()
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "other"
    shutil.copytree(ROOT / "tpt_jax/quickstart/model", other)
    (other / "tokenizer.json").unlink()
    run = ("run", "--config", config, "--run_dir")
    cases = {
        (*run, finished, "--seed", "7"): "holds a run with another config",
        (*run, ROOT): "is neither a run folder nor empty",
        (*run, tmp_path / "a", "--model.path", empty): "has no config.json",
        (*run, tmp_path / "b", "--model.path", other): "no tokenizer.json",
        (*run, tmp_path / "c", "--mesh.data", "3"): "(3, -1, 1) does not fit 8 devices",
        ("run", "--config", tmp_path / "none.yaml"): "no such config file",
        ("report", empty): "is not a run folder",
        ("sample", "--model", "quickstart", "--prompts", "p", "--output", "o", "--seed", "-1"): "-1 must be at least 0",
        ("run",): "the following arguments are required: --config",
    }
    for arguments, message in cases.items():
        done = tpt_here(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2, done.stderr  # one line, and the one that names the run
    assert (finished / "config.yaml").read_text() == before


def test_help_is_quick_and_needs_no_jax() -> None:
    started = time.monotonic()
    assert tpt("--help").returncode == 0
    assert time.monotonic() - started < 2.0  # half a second on an idle machine
