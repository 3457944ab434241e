"""`tpt sample`, in separate processes: output, resuming after a kill, and mistakes."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from processes import TPT, CommandHere, process_environment, tpt

SAMPLE = ("sample", "--model", "quickstart", "--compute_dtype", "float32", "--max_new_tokens", "24")
QUESTIONS = [f"{left} + {right} =" for left in range(10, 20) for right in range(3, 23)]


def arguments(folder: Path, *options: str) -> tuple[str, ...]:
    return (*SAMPLE, "--prompts", str(folder / "prompts.jsonl"), "--output", str(folder / "out.jsonl"), *options)


def write_prompts(folder: Path, prompts: list[dict[str, Any]]) -> None:
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))


def completions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_prompts(folder, [{"id": index, "prompt": text} for index, text in enumerate(QUESTIONS)])
    done = tpt(*arguments(folder, "--num_samples", "2"))
    assert done.returncode == 0, done.stderr
    return completions(folder)


def test_every_sample_of_every_prompt_in_order(uninterrupted: list[dict[str, Any]]) -> None:
    assert [(line["id"], line["sample"]) for line in uninterrupted] == [(str(i), s) for i in range(200) for s in (0, 1)]
    assert set(uninterrupted[0]) == {"id", "sample", "completion", "token_ids", "logprob", "finish_reason"}
    right = sum(line["completion"] == str(eval(QUESTIONS[int(line["id"])][:-1])) for line in uninterrupted)
    assert right > 200  # the shipped model can add, mostly


def test_a_killed_command_resumes_to_the_same_output(
    tmp_path: Path, uninterrupted: list[dict[str, Any]], tpt_here: CommandHere
) -> None:
    write_prompts(tmp_path, [{"id": index, "prompt": text} for index, text in enumerate(QUESTIONS)])
    command = [*TPT, *arguments(tmp_path, "--num_samples", "2", "--num_slots", "2")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=process_environment())
    partial = tmp_path / "out.jsonl.partial"
    deadline = time.monotonic() + 60
    while not partial.is_file() or partial.read_bytes().count(b"\n") < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    partial.write_bytes(partial.read_bytes()[:-7])  # an incomplete last line
    other = tpt_here(*arguments(tmp_path, "--num_samples", "2", "--seed", "1"))
    assert other.returncode == 2
    assert "was started with --seed 0, not 1" in other.stderr
    done = tpt(*arguments(tmp_path, "--num_samples", "2"))
    assert done.returncode == 0, done.stderr
    assert not partial.exists()
    ours = [{**line, "logprob": 0} for line in completions(tmp_path)]
    assert ours == [{**line, "logprob": 0} for line in uninterrupted]


def test_stop_strings_end_a_trace_before_them(tmp_path: Path, tpt_here: CommandHere) -> None:
    question = (
        "James has 2 times as many TikTok friends as Emily. David has 3 times as many friends on TikTok as Emily. "
    )
    question += "If James has 10 friends on TikTok, how many TikTok friends does David have?"
    write_prompts(tmp_path, [{"prompt": question}])
    greedy = ("--temperature", "0", "--max_new_tokens", "60")
    done = tpt_here(*arguments(tmp_path, *greedy))
    (complete,) = completions(tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith("sample: asking with the checkpoint's chat template; --plain continues")
    assert "\n" in complete["completion"]
    (tmp_path / "out.jsonl").unlink()
    done = tpt_here(*arguments(tmp_path, *greedy, "--stop", "\n", "--stop", "never"))
    assert done.returncode == 0, done.stderr
    (stopped,) = completions(tmp_path)
    assert stopped["completion"] == complete["completion"].partition("\n")[0]
    assert stopped["finish_reason"] == "stop"
    assert stopped["token_ids"] == complete["token_ids"][: len(stopped["token_ids"])]


def test_mistakes(tmp_path: Path, tpt_here: CommandHere) -> None:
    cases = {
        '{"prompt": "x"}\n{"id": 0, "prompt": "y"}': "prompts.jsonl:2: the id '0' belongs to an earlier prompt",
        '{"id": 1}': 'prompts.jsonl:1: lacks text under "prompt"',
        "": "holds no prompts",
    }
    for text, message in cases.items():
        (tmp_path / "prompts.jsonl").write_text(text)
        done = tpt_here(*arguments(tmp_path))
        assert done.returncode == 2
        assert message in done.stderr
    write_prompts(tmp_path, [{"prompt": "2 + 3 ="}, {"id": "long", "prompt": "2 + 3 = " * 40}])
    done = tpt_here(*arguments(tmp_path, "--max_prompt_tokens", "60"))
    assert done.returncode == 0
    assert "leaving out 1 prompts longer than max_prompt_tokens: long" in done.stderr
    assert len(completions(tmp_path)) == 1
    done = tpt_here(*arguments(tmp_path))
    assert done.returncode == 2
    assert "exists already" in done.stderr
