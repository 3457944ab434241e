"""Several hosts: processes on one machine, each with devices of its own, that run one `tpt run` together."""

import json
import os
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

from tpt_jax.checkpoints.model import ModelFolder
from tpt_jax.runtime.sharding import Layout

ROOT = Path(__file__).parent.parent
TPT = (sys.executable, "-m", "tpt_jax")
CONFIG = f"""
extends: {ROOT}/configs/quickstart.yaml
name: small
task: {{num_train: 16, num_test: 8}}
num_rounds: 1
mesh: {{data: 2, fsdp: 2, tensor: 2}}
think: {{num_questions: 16, num_samples: 2, num_slots: 16}}
prune: {{num_workers: 1}}
train: {{num_epochs: 2, rows: 4, save_every: 1}}
evaluate: {{num_samples: 1, num_slots: 8}}
"""
# Over Gloo, collectives that do not wait for each other meet in any order; this scheduler has them wait.
IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
EARLY = "rounds/001/traces/think-001-00000.jsonl"  # the second host is killed when this is there


def start(config: Path, run_dir: Path, num_devices: int, *hosts: object) -> subprocess.Popen[str]:
    flags = f"--xla_force_host_platform_device_count={num_devices} --xla_backend_optimization_level=0 {IN_ORDER}"
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_NUMPY")}
    env |= {"XLA_FLAGS": flags, "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    command = [*TPT, "run", "--config", str(config), "--run_dir", str(run_dir), *map(str, hosts)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def start_two(config: Path, run_dir: Path) -> list[subprocess.Popen[str]]:
    options = ("--coordinator", free_address(), "--num_processes", 2, "--process_id")
    return [start(config, run_dir, 4, *options, index) for index in range(2)]


def ended(processes: list[subprocess.Popen[str]]) -> str:
    """What processes of which one has ended too soon have to say."""
    for process in processes:
        process.kill()
    return "\n".join(process.communicate()[1] for process in processes)


def wait_for(path: Path, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.01)


def traces(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """By stage, question and sample, whichever host sampled them."""
    lines = {}
    for part in folder.glob("rounds/*/traces/*.jsonl"):
        for line in map(json.loads, part.read_text().splitlines()):
            key = (part.parent.parent.name, part.name.partition("-")[0], line["id"], line["sample"])
            assert key not in lines, f"sampled twice: {key}"
            lines[key] = line
    return lines


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of one process, and one of two hosts of which one was killed and that was gone on with."""
    folder = tmp_path_factory.mktemp("hosts")
    config = folder / "small.yaml"
    config.write_text(CONFIG)
    one, two = folder / "one", folder / "two"
    first, second = start_two(config, two)
    wait_for(two / EARLY, [first, second])
    second.send_signal(signal.SIGKILL)
    second.communicate()
    killed_at = time.monotonic()
    alone = start(config, one, 8)
    _, words = first.communicate(timeout=90)
    assert time.monotonic() - killed_at < 60
    assert first.returncode not in (0, 2)
    assert "unhealthy (stopped sending heartbeats):\n1\n" in words or "another host is gone" in words
    assert alone.communicate(timeout=240)[1] is not None
    assert alone.returncode == 0
    both = start_two(config, two)
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    (results, progress), of_second = said[0], "".join(said[1])
    assert "report: " in results
    assert "round 1 train" in progress
    # Gloo's threads write over each other on standard output, so words are looked for and not lines.
    assert "report: " not in of_second
    assert "round" not in of_second
    return {"one": one, "two": two}


def test_two_hosts_sample_what_one_does(runs: dict[str, Path]) -> None:
    one, two = traces(runs["one"]), traces(runs["two"])
    assert one.keys() == two.keys()
    for key, line in one.items():
        assert two[key]["token_ids"] == line["token_ids"]
        assert abs(two[key]["logprob"] - line["logprob"]) < 1e-4
    assert {path.name.split("-")[1] for path in runs["two"].glob("rounds/001/traces/*")} == {"000", "001"}


def test_two_hosts_train_what_one_does(runs: dict[str, Path], layout: Layout) -> None:
    weights = [ModelFolder.open(runs[name] / "checkpoints" / "001").load(layout) for name in ("one", "two")]
    for one, two in zip(*map(jax.tree.leaves, weights), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(two), atol=1e-5)
    curves = [(runs[name] / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    steps = [[(line["phase"], line["step"]) for line in map(json.loads, lines)] for lines in curves]
    assert steps[0] == steps[1]


LATE = """
import sys, time
from tpt_jax.runtime import hosts

hosts.SECONDS_TO_WAIT = 3
host = int(sys.argv[1])
hosts.join(hosts.Coordinator(sys.argv[2], 2, host))
print(hosts.all_gather("numbers", host * 10), hosts.broadcast("a number", lambda: host))
time.sleep(6 * host)
try:
    hosts.barrier("the meeting")
except hosts.HostsError as error:
    print(error)
time.sleep(5 - 5 * host)  # the first one outlives the other
"""


def test_hosts_tell_each_other_and_name_the_one_that_is_late() -> None:
    address = free_address()
    commands = [[sys.executable, "-c", LATE, str(host), address] for host in range(2)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    for process in both:
        said = process.communicate(timeout=60)[0]
        assert "[0, 10] 0" in said
        assert f"host 1 ({socket.gethostname()}) is late or gone: waited 3 s for it at 'the meeting'" in said


def test_what_several_hosts_need_is_told() -> None:
    command = [*TPT, "run", "--config", "configs/quickstart.yaml", "--coordinator", "localhost:1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 2
    assert "give all three, or none" in done.stderr
