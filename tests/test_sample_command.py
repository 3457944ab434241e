"""`tpt sample`, in separate processes: output, resuming after a kill, and mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TPT = (sys.executable, "-m", "tpt_jax", "sample", "--model", "quickstart", "--compute_dtype", "float32")
QUESTIONS = [f"{left} + {right} =" for left in range(10, 30) for right in range(3, 23)]
LENGTH = ("--max_new_tokens", "24")


def environment() -> dict[str, str]:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    return {name: value for name, value in os.environ.items() if not name.startswith("JAX_NUMPY")} | flags


def sample(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = ("--prompts", str(folder / "prompts.jsonl"), "--output", str(folder / "out.jsonl"))
    command = [*TPT, *LENGTH, *paths, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, check=False)


def write_prompts(folder: Path, prompts: list[dict[str, Any]]) -> None:
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))


def completions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_prompts(folder, [{"id": index, "prompt": text} for index, text in enumerate(QUESTIONS)])
    done = sample(folder, "--num_samples", "2")
    assert done.returncode == 0, done.stderr
    return completions(folder)


def test_every_sample_of_every_prompt_in_order(uninterrupted: list[dict[str, Any]]) -> None:
    assert [(line["id"], line["sample"]) for line in uninterrupted] == [(str(i), s) for i in range(400) for s in (0, 1)]
    assert set(uninterrupted[0]) == {"id", "sample", "completion", "token_ids", "logprob", "finish_reason"}
    right = sum(line["completion"] == str(eval(QUESTIONS[int(line["id"])][:-1])) for line in uninterrupted)
    assert right > 400  # the shipped model can add, mostly


def test_a_killed_command_resumes_to_the_same_output(tmp_path: Path, uninterrupted: list[dict[str, Any]]) -> None:
    write_prompts(tmp_path, [{"id": index, "prompt": text} for index, text in enumerate(QUESTIONS)])
    paths = ("--prompts", str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / "out.jsonl"))
    command = [*TPT, *LENGTH, *paths, "--num_samples", "2", "--num_slots", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    partial = tmp_path / "out.jsonl.partial"
    deadline = time.monotonic() + 60
    while not partial.is_file() or partial.read_bytes().count(b"\n") < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    partial.write_bytes(partial.read_bytes()[:-7])  # an incomplete last line
    other = sample(tmp_path, "--num_samples", "2", "--seed", "1")
    assert other.returncode == 2
    assert "was started with --seed 0, not 1" in other.stderr
    done = sample(tmp_path, "--num_samples", "2")
    assert done.returncode == 0, done.stderr
    assert not partial.exists()
    ours = [{**line, "logprob": 0} for line in completions(tmp_path)]
    assert ours == [{**line, "logprob": 0} for line in uninterrupted]


def test_stop_strings_end_a_trace_before_them(tmp_path: Path) -> None:
    question = (
        "James has 2 times as many TikTok friends as Emily. David has 3 times as many friends on TikTok as Emily. "
    )
    question += "If James has 10 friends on TikTok, how many TikTok friends does David have?"
    write_prompts(tmp_path, [{"prompt": question}])
    done = sample(tmp_path, "--temperature", "0", "--max_new_tokens", "60")
    (complete,) = completions(tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith("sample: asking with the checkpoint's chat template; --plain continues")
    assert "\n" in complete["completion"]
    (tmp_path / "out.jsonl").unlink()
    done = sample(tmp_path, "--temperature", "0", "--max_new_tokens", "60", "--stop", "\n", "--stop", "never")
    assert done.returncode == 0, done.stderr
    (stopped,) = completions(tmp_path)
    assert stopped["completion"] == complete["completion"].partition("\n")[0]
    assert stopped["finish_reason"] == "stop"
    assert stopped["token_ids"] == complete["token_ids"][: len(stopped["token_ids"])]


def test_mistakes(tmp_path: Path) -> None:
    cases = {
        '{"prompt": "x"}\n{"id": 0, "prompt": "y"}': "prompts.jsonl:2: the id '0' belongs to an earlier prompt",
        '{"id": 1}': 'prompts.jsonl:1: lacks text under "prompt"',
        "": "holds no prompts",
    }
    for text, message in cases.items():
        (tmp_path / "prompts.jsonl").write_text(text)
        done = sample(tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
    write_prompts(tmp_path, [{"prompt": "2 + 3 ="}, {"id": "long", "prompt": "2 + 3 = " * 40}])
    done = sample(tmp_path, "--max_prompt_tokens", "60")
    assert done.returncode == 0
    assert "leaving out 1 prompts longer than max_prompt_tokens: long" in done.stderr
    assert len(completions(tmp_path)) == 1
    done = sample(tmp_path)
    assert done.returncode == 2
    assert "exists already" in done.stderr
