"""Kills a small run at random times and resumes it, repeatedly; then compares it with an uninterrupted run.

    python benchmarks/kills.py --num_kills 20

Prints how far each run had got when killed. Exits with 1 if a trace or a loss differs, or a weight by more than 1e-6.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.config import MeshConfig
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout

CONFIG = """
extends: {configs}/quickstart.yaml
name: kills
task: {{num_train: 240, num_test: 60}}
num_rounds: 2
think: {{num_questions: 120, num_slots: 32}}
train: {{num_epochs: 4, rows: 4, save_every: 3}}
evaluate: {{num_slots: 32}}
"""
MAX_SECONDS = 8.0  # longest time to a kill, counted from "sampler ready", since nothing is written before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "kills.yaml"
        config.write_text(CONFIG.format(configs=Path(__file__).parent.parent / "configs"))
        uninterrupted = folder / "uninterrupted"
        run(config, uninterrupted, None)
        num_kills, num_differences = 0, 0
        while num_kills < args.num_kills:
            killed = folder / f"killed{num_kills}"
            while run(config, killed, rng.uniform(0, MAX_SECONDS)):
                num_kills += 1
                print(f"kill {num_kills}: {last_write(killed)}", flush=True)
            num_differences += compare(uninterrupted, killed)
    print(f"{num_kills} kills, {num_differences} differences")
    return 1 if num_differences else 0


def run(config: Path, run_dir: Path, seconds: float | None) -> bool:
    """Starts or resumes the run; returns true if it was killed after this many seconds, false if it finished before."""
    command = [sys.executable, "-m", "tpt_jax", "run", "--config", str(config), "--run_dir", str(run_dir)]
    log_path = run_dir.with_suffix(".log")
    with log_path.open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    while process.poll() is None and "sampler ready" not in log_path.read_text():
        time.sleep(0.05)
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    if code:
        sys.exit(f"the run failed with exit status {code}; see {log_path}")
    return False


def last_write(run_dir: Path) -> str:
    """The newest file of the killed process, and its age."""
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    if not files:
        return "before the first write"
    newest = max(files, key=lambda path: path.stat().st_mtime)
    return f"{time.time() - newest.stat().st_mtime:.1f} s after {newest.relative_to(run_dir)}"


def compare(uninterrupted: Path, killed: Path) -> int:
    """The number of differing traces and losses, plus one if the weights differ."""
    expected, actual = read_results(uninterrupted), read_results(killed)
    num_differences = sum(expected[key] != actual.get(key) for key in expected)
    num_differences += expected.keys() != actual.keys()
    layout = Layout(make_mesh(MeshConfig()), TRAIN_RULES)
    weights = [ModelFolder.open(run_dir / "checkpoints/002").load(layout) for run_dir in (uninterrupted, killed)]
    pairs = zip(*map(jax.tree.leaves, weights), strict=True)
    weight_difference = max(float(np.abs(np.asarray(first) - np.asarray(second)).max()) for first, second in pairs)
    print(
        f"  {len(expected)} traces and losses, {num_differences} different; "
        f"largest weight difference {weight_difference:.1e}",
        flush=True,
    )
    return num_differences + (weight_difference > 1e-6)


def read_results(run_dir: Path) -> dict[Any, Any]:
    """The token ids of every trace that is trained on or evaluated, and the loss of every step.

    A duplicate is marked, to count as a difference. Which traces are sampled besides depends on the kills.
    """
    results: dict[Any, Any] = {}
    paths = [*run_dir.glob("rounds/*/traces/evaluate-*.jsonl"), *run_dir.glob("rounds/*/training.jsonl")]
    for path in sorted(paths):
        for line in map(json.loads, path.read_text().splitlines()):
            key = (path.relative_to(run_dir / "rounds").parts[0], path.name[:8], line["id"], line["sample"])
            results[key] = "duplicate" if key in results else line["token_ids"]
    for line in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()):
        if line["phase"] == "train":
            key = (line["round"], line["step"])
            results[key] = "duplicate" if key in results else line["loss"]
    return results


if __name__ == "__main__":
    sys.exit(main())
