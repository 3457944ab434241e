"""Several hosts: processes on one machine, each with its own devices, that work on one command."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from processes import ROOT, SMALL_TASK, TPT, CommandHere, process_environment, write_shallow_model

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.runtime import hosts
from tpt_jax.runtime.sharding import Layout

CONFIG = f"""{SMALL_TASK}
name: small
mesh: {{fsdp: 2, tensor: 2}}
think: {{num_questions: 16, num_samples: 2, max_prompt_tokens: 32, num_slots: 8}}
prune: {{num_workers: 1}}
train: {{num_epochs: 2, save_every: 1, optimizer: {{learning_rate: 2.0e-3}}}}
evaluate: {{num_samples: 1, max_prompt_tokens: 32, num_slots: auto}}
"""
EARLY = "rounds/001/traces/think-001-00000.jsonl"  # the second host is killed when this appears

Process = subprocess.Popen[str]


def start(num_devices: int, *arguments: object) -> Process:
    env = process_environment(num_devices) | {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    command = [*TPT, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def start_two(*arguments: object) -> list[Process]:
    options = ("--coordinator", free_address(), "--num_processes", 2, "--process_id")
    return [start(2, *arguments, *options, index) for index in range(2)]


def stderr_after_kill(processes: list[Process]) -> str:
    for process in processes:
        process.kill()
    return "\n".join(process.communicate()[1] for process in processes)


def wait_for(path: Path, processes: list[Process]) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appeared"
        assert all(process.poll() is None for process in processes), stderr_after_kill(processes)
        time.sleep(0.01)


def traces(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The traces of all hosts by round, stage, question and sample."""
    lines = {}
    for path in folder.glob("rounds/*/traces/*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            key = (path.parent.parent.name, path.name.partition("-")[0], line["id"], line["sample"])
            assert key not in lines, f"sampled twice: {key}"
            lines[key] = line
    return lines


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of one process, and a run of two hosts, one of which was killed before both resumed."""
    folder = tmp_path_factory.mktemp("hosts")
    config = folder / "small.yaml"
    config.write_text(f"{CONFIG}\nmodel: {{path: {write_shallow_model(folder / 'model')}}}")
    one, two = folder / "one", folder / "two"
    first, second = start_two("run", "--config", config, "--run_dir", two)
    wait_for(two / EARLY, [first, second])
    second.send_signal(signal.SIGKILL)
    second.communicate()
    killed_at = time.monotonic()
    single = start(4, "run", "--config", config, "--run_dir", one)
    _, stderr = first.communicate(timeout=90)
    assert time.monotonic() - killed_at < 60
    assert first.returncode not in (0, 2)
    assert "unhealthy (stopped sending heartbeats):\n1\n" in stderr or "another host is gone" in stderr
    assert single.communicate(timeout=240)[1] is not None
    assert single.returncode == 0
    both = start_two("run", "--config", config, "--run_dir", two)
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    (first_stdout, first_stderr), second_output = outputs[0], "".join(outputs[1])
    assert "report: " in first_stdout
    assert "round 1 train" in first_stderr
    # Gloo's threads write over each other on standard output: look for words, not lines.
    assert "report: " not in second_output
    assert "round" not in second_output
    return {"one": one, "two": two}


def test_two_hosts_sample_the_traces_of_one(runs: dict[str, Path]) -> None:
    """But for surplus ones: which those are depends on what was under way when there was enough."""
    one, two = traces(runs["one"]), traces(runs["two"])
    for key in one.keys() & two.keys():
        assert two[key].get("token_ids") == one[key].get("token_ids")  # a trace may have none
        # After the training, weights differ by rounding; see below.
        assert abs(two[key]["logprob"] - one[key]["logprob"]) < (1e-3 if key[:2] == ("001", "evaluate") else 1e-4)
    assert {key for key in one if key[1] == "evaluate"} == {key for key in two if key[1] == "evaluate"}
    trained = [(runs[name] / "rounds/001/training.jsonl").read_text().splitlines() for name in ("one", "two")]
    names = [[(line["id"], line["sample"]) for line in map(json.loads, lines)] for lines in trained]
    assert names[0] == names[1]
    assert names[0]
    assert {path.name.split("-")[1] for path in runs["two"].glob("rounds/001/traces/*")} == {"000", "001"}


def test_two_hosts_train_the_weights_of_one(runs: dict[str, Path], layout: Layout) -> None:
    weights = [ModelFolder.open(runs[name] / "checkpoints" / "001").load(layout) for name in ("one", "two")]
    pairs = zip(*map(jax.tree.leaves, weights), strict=True)
    difference = np.concatenate([np.abs(np.asarray(one) - np.asarray(two)).ravel() for one, two in pairs])
    # Adam moves a weight by about the learning rate, 2e-3, however small its gradient: where that is next to nothing,
    # the order of a sum decides by how much.
    assert difference.max() < 2e-3
    assert np.mean(difference > 1e-5) < 5e-3
    curves = [(runs[name] / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    # How often a stage that samples logs depends on its speed.
    logged = [[line for line in map(json.loads, lines) if line["phase"] in ("train", "round")] for lines in curves]
    steps = [[(line["round"], line["phase"], line["step"]) for line in lines] for lines in logged]
    assert steps[0] == steps[1]
    assert len(steps[0]) > 2


# Both hosts run each case as the body of end_together; `host` is 0 or 1. One process imports what they need, and forks.
CASES = """
import os, sys, time
import orbax.checkpoint
from pathlib import Path
from tpt_jax.errors import HostsError, UserError
from tpt_jax.runtime import hosts

hosts.SECONDS_TO_WAIT = 3
hosts.CHUNK = 10  # bytes: every message takes several chunks

def exchange(host):
    shares = hosts.all_gather("shares", hosts.own_share([1, 2, 3, 4, 5]))
    print(hosts.all_gather("numbers", (host * 10,)), hosts.broadcast("a dictionary", lambda: {1: (host,)}), shares)

def late(host):
    time.sleep(6 * host)
    hosts.barrier("the meeting")

def diverged(host):
    hosts.broadcast("pruning" if host else "checkpoint", lambda: 1)
    hosts.barrier("afterwards")

def mistake_in_broadcast(host):
    def read():
        raise UserError("no such file; give another")
    hosts.broadcast("file", read)

def mistake_of_one_host(host):
    if host == 1:
        raise UserError("host 1 lacks the file")
    hosts.barrier("files read")

def full_disk_on_one_host(host):
    if host == 1:
        raise OSError("no space left")
    hosts.barrier("files written")

children = {}
for case, address in zip(sys.argv[2::2], sys.argv[3::2]):
    for host in range(2):
        child = os.fork()
        if child:
            children[child] = f"{case}{host}"
            continue
        output = os.open(f"{sys.argv[1]}/{case}{host}", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        hosts.join(hosts.Coordinator(address, 2, host))
        try:
            with hosts.end_together():
                globals()[case](host)
        except (HostsError, OSError, UserError) as error:
            print(type(error).__name__, error)
        sys.exit()
for child, name in children.items():
    Path(f"{sys.argv[1]}/{name}.status").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


EXPECTED = {
    "exchange": "[[0], [10]] {'1': [0]} [[1, 3, 5], [2, 4]]",
    "late": "HostsError host 1 ({hostname}) is late or gone: waited 3 s for it at 'the meeting'",
    "diverged": "HostsError the hosts have diverged: host 0 ({hostname}) is at 'checkpoint', host 1 at 'pruning'",
    "mistake_in_broadcast": "UserError no such file; give another",
    "mistake_of_one_host": "UserError host 1 lacks the file",
    "full_disk_on_one_host": "no space left",
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what both hosts printed in each case, and of the statuses with which they ended."""
    folder = tmp_path_factory.mktemp("cases")
    words = [word for case in EXPECTED for word in (case, free_address())]
    subprocess.run([sys.executable, "-c", CASES, str(folder), *words], check=True, timeout=120)
    return folder


@pytest.mark.parametrize("case", EXPECTED)
def test_both_hosts_get_the_same_values_and_the_same_error(case: str, cases: Path) -> None:
    for host in range(2):
        printed = (cases / f"{case}{host}").read_text()
        assert EXPECTED[case].replace("{hostname}", socket.gethostname()) in printed
        assert (cases / f"{case}{host}.status").read_text() == "0", printed


def test_a_single_host_gets_its_values_as_others_would() -> None:
    """Read back from JSON: code that works on one host must not fail, or differ, on two."""
    assert hosts.broadcast("a dictionary", lambda: {1: (2,)}) == {"1": [2]}
    assert hosts.all_gather("a dictionary", {1: (2,)}) == [{"1": [2]}]
    assert hosts.own_share([1, 2, 3]) == [1, 2, 3]


def test_a_mistake_on_one_host_ends_the_command_on_both(tmp_path: Path) -> None:
    """The first host has no prompts file: both print its one-line message and exit with 2, within seconds."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "2 + 3 ="}\n')
    options = ("--coordinator", free_address(), "--num_processes", 2, "--process_id")
    both = [
        start(1, "sample", "--model", "quickstart", "--prompts", path, "--output", tmp_path / "out", *options, index)
        for index, path in enumerate((tmp_path / "missing.jsonl", prompts))
    ]
    for process in both:
        stderr = process.communicate(timeout=60)[1]
        assert process.returncode == 2, stderr
        assert f"tpt: {tmp_path}/missing.jsonl: no such file" in stderr


def test_incomplete_host_options_are_refused(tpt_here: CommandHere) -> None:
    done = tpt_here("run", "--config", ROOT / "configs/own_task.yaml", "--coordinator", "localhost:1")
    assert done.returncode == 2
    assert "give all three, or none" in done.stderr
