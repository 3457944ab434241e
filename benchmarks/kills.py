"""Kills a small run at random moments and goes on with it, over and over; then compares with a run that nobody killed.

    python benchmarks/kills.py --num_kills 20

Prints where each kill fell, and exits with 1 if a trace, a step of a curve, or a weight, by more than 1e-6, is another.
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

from tpt_jax.checkpoints.model import ModelFolder
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
LONGEST = 8.0  # seconds until a kill, from when the process is ready to sample: starting up writes nothing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "kills.yaml"
        config.write_text(CONFIG.format(configs=Path(__file__).parent.parent / "configs"))
        whole = folder / "whole"
        run(config, whole, None)
        num_kills, faults = 0, 0
        while num_kills < args.num_kills:
            killed = folder / f"killed{num_kills}"
            while run(config, killed, draw.uniform(0, LONGEST)):
                num_kills += 1
                print(f"kill {num_kills}: {where(killed)}", flush=True)
            faults += compare(whole, killed)
    print(f"{num_kills} kills, {faults} faults")
    return 1 if faults else 0


def run(config: Path, run_dir: Path, seconds: float | None) -> bool:
    """Whether the run was killed so many seconds after its start, rather than done before."""
    command = [sys.executable, "-m", "tpt_jax", "run", "--config", str(config), "--run_dir", str(run_dir)]
    said = run_dir.with_suffix(".log")
    with said.open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    while process.poll() is None and "sampler ready" not in said.read_text():
        time.sleep(0.05)
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    if code:
        sys.exit(f"the run ended by itself with {code}")
    return False


def where(run_dir: Path) -> str:
    """The newest thing that the killed process had written."""
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    if not files:
        return "before it wrote anything"
    newest = max(files, key=lambda path: path.stat().st_mtime)
    return f"{time.time() - newest.stat().st_mtime:.1f} s after {newest.relative_to(run_dir)}"


def compare(whole: Path, killed: Path) -> int:
    """How many of traces, curves and weights are others."""
    faults = sum(found(whole)[key] != found(killed).get(key) for key in found(whole))
    faults += found(whole).keys() != found(killed).keys()
    layout = Layout(make_mesh(MeshConfig()), TRAIN_RULES)
    weights = [ModelFolder.open(run_dir / "checkpoints/002").load(layout) for run_dir in (whole, killed)]
    pairs = zip(*map(jax.tree.leaves, weights), strict=True)
    difference = max(float(np.abs(np.asarray(one) - np.asarray(two)).max()) for one, two in pairs)
    print(f"  {len(found(whole))} traces and steps, {faults} others; weights differ by {difference:.1e}", flush=True)
    return faults + (difference > 1e-6)


def found(run_dir: Path) -> dict[Any, Any]:
    """Tokens of every trace and the loss of every step; one that stands there twice is a fault of its own."""
    lines: dict[Any, Any] = {}
    for part in sorted(run_dir.glob("rounds/*/traces/*.jsonl")):
        for line in map(json.loads, part.read_text().splitlines()):
            key = (part.parent.parent.name, part.name.partition("-")[0], line["id"], line["sample"])
            lines[key] = "twice" if key in lines else line["token_ids"]
    for line in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()):
        if line["phase"] == "train":
            key = (line["round"], line["step"])
            lines[key] = "twice" if key in lines else line["loss"]
    return lines


if __name__ == "__main__":
    sys.exit(main())
