"""Injects faults into small runs: each must end in the same result, or in one line and then in the same result.

    python benchmarks/faults.py                     # all faults, about an hour on two cores
    python benchmarks/faults.py --short             # a few of each kind, as in CI
    python benchmarks/faults.py --kinds kill disk   # only these

"The same result": the traces that are trained on or evaluated, the loss of every step, the weights (to 1e-6) and the
rates of every round are those of an uninterrupted run. After a fault that ends in a line, whatever was damaged is
restored, and the same command must end in the same result. Small file systems and users without a home need root.

The faults are in fault_list.py. Prints a table by kind; exits with 1 if a fault ended otherwise.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/without_torch")]),
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}

import jax
import numpy as np
from fault_list import CLOCK, FAULTS, PRUNE, Fault, Files, nothing

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.config import MeshConfig
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout

sys.path.insert(0, str(ROOT / "tests"))
from processes import write_shallow_model  # pyright: ignore[reportMissingImports]

QUESTIONS = ROOT / "tpt_jax/library/project_template"
CONFIG = f"""
extends: {ROOT}/configs/own_task.yaml
name: faults
model: {{path: MODEL}}
task: {{train: {QUESTIONS}/train.jsonl, test: {QUESTIONS}/test.jsonl}}
num_rounds: 2
think: {{num_questions: 24, num_samples: 2, temperature: 1.5, max_prompt_tokens: 32, num_slots: 4}}
prune: {{num_workers: 1, max_traces: 16, steps: [any]}}
train: {{num_epochs: 3, save_every: 2, traces_of: all, optimizer: {{learning_rate: 1.0e-3}}}}
evaluate: {{num_samples: 2, max_prompt_tokens: 32, num_slots: 16}}
"""
RATES = (
    "pass_at_1",
    "pass_at_k",
    "maj_at_k",
    "strict_pass_at_1",
    "num_kept",
    "distinct_answers",
    "num_won",
    "num_lost",
)
PROGRESS = ("faults: ", "sampler ready", "round ", "sample: ", "train: ", "hosts: ", "SIG")  # lines that are no failure
SECONDS = 600  # for one command


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
      lines: of standard error that are not progress.
    """

    status: int
    lines: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a fault: `end` in a few words, and what was wrong with it; "" if nothing was."""

    fault: Fault
    end: str
    wrong: str
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", help="only faults of these kinds, in this order")
    parser.add_argument("--names", nargs="*", help="only faults whose names contain one of these")
    parser.add_argument("--short", action="store_true", help="a few of each kind")
    parser.add_argument("--num_workers", type=int, default=2, help="faults at a time")
    args = parser.parse_args()
    faults = [fault for fault in FAULTS if not args.kinds or fault.kind in args.kinds]
    faults = [fault for fault in faults if not args.names or any(name in fault.name for name in args.names)]
    faults = [fault for fault in faults if fault.is_short or not args.short]
    if not can_mount():
        print(
            f"skipped, for want of the right to mount: {sum(bool(fault.room) for fault in faults)} faults", flush=True
        )
        faults = [fault for fault in faults if not fault.room]
    faults.sort(key=lambda fault: args.kinds.index(fault.kind) if args.kinds else 0)
    for number in (signal.SIGHUP, signal.SIGINT):  # nohup and shells ignore them for what they start
        signal.signal(number, signal.SIG_DFL)
    with tempfile.TemporaryDirectory(prefix="faults") as name:
        campaign = Campaign(Path(name), faults)
        with ThreadPoolExecutor(args.num_workers) as pool:
            outcomes = []
            for outcome in pool.map(campaign.inject, faults):
                outcomes.append(outcome)
                verdict = f"WRONG: {outcome.wrong}" if outcome.wrong else "ok"
                fault = outcome.fault
                print(f"{fault.kind}: {fault.name}: {outcome.end}, {outcome.seconds:.0f} s: {verdict}", flush=True)
    print_table(outcomes)
    return 1 if any(outcome.wrong for outcome in outcomes) else 0


def can_mount() -> bool:
    """Whether this process may make small file systems."""
    if shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        is_mounted = not subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode
        if is_mounted:
            subprocess.run(["umount", folder], check=True)
    return is_mounted


def print_table(outcomes: Sequence[Outcome]) -> None:
    print(
        "\n| kind | faults | the same result at once | one line, then the same result | wrong |\n|---|---|---|---|---|"
    )
    kinds = list(dict.fromkeys(outcome.fault.kind for outcome in outcomes))
    for kind, chosen in [*((kind, [each for each in outcomes if each.fault.kind == kind]) for kind in kinds)]:
        print(_row(kind, chosen))
    print(_row("all", outcomes))


def _row(name: str, outcomes: Sequence[Outcome]) -> str:
    same = sum(not outcome.wrong and outcome.end == "same result" for outcome in outcomes)
    wrong = sum(bool(outcome.wrong) for outcome in outcomes)
    return f"| {name} | {len(outcomes)} | {same} | {len(outcomes) - same - wrong} | {wrong} |"


@dataclasses.dataclass(frozen=True)
class Reference:
    """An uninterrupted run: its folder, the folder of one killed in its last round, its results and its weights."""

    done: Path
    half: Path
    results: Mapping[Any, Any]
    weights: Any


class Campaign:
    """Runs commands with faults in folders of their own, and compares with runs without."""

    def __init__(self, root: Path, faults: Sequence[Fault]) -> None:
        self._root = root
        self._layout = Layout(make_mesh(MeshConfig()), TRAIN_RULES)
        root.chmod(0o755)  # for commands of other users
        write_shallow_model(root / "model")
        (root / "config.yaml").write_text(CONFIG.replace("MODEL", str(root / "model")))
        self._files = Files(root, root / "config.yaml")
        by_hosts = {fault.num_hosts: fault.without_fault() for fault in [*faults, Fault("", "")]}
        (root / "clock").mkdir()
        (root / "clock/sitecustomize.py").write_text(CLOCK)
        self._references = {count: self._make_reference(fault) for count, fault in by_hosts.items()}

    def _make_reference(self, fault: Fault) -> Reference:
        done, half = self._root / f"done{fault.num_hosts}", self._root / f"half{fault.num_hosts}"
        ended = self._run(fault, done)
        if ended.status or ended.lines:
            sys.exit(f"the run without a fault failed: {ended}")
        make_half(done, half)
        copy_traces(done, self._root)
        return Reference(done, half, read_results(done), self._read_weights(done))

    def inject(self, fault: Fault) -> Outcome:
        """Injects one fault, and repeats the command without it where the first ended in a line."""
        started = time.monotonic()
        with self._folder(fault) as folder:
            end, wrong = self._inject(fault, folder)
        return Outcome(fault, end, wrong, time.monotonic() - started)

    def _inject(self, fault: Fault, folder: Path) -> tuple[str, str]:
        """How the command ended, and what was wrong with that."""
        run_dir, kept, reference = (
            folder / "run",
            folder.with_name(f"{folder.name}-kept"),
            self._references[fault.num_hosts],
        )
        if fault.start != "new":
            for target in (run_dir, kept):
                shutil.copytree(reference.half if fault.start == "half" else reference.done, target)
        fault.damage(run_dir)
        ended = self._run(fault, run_dir)
        said = " / ".join(ended.lines)[-600:]
        if ended.status not in fault.ends:
            return f"status {ended.status}", f"expected {sorted(fault.ends)}: {said}"
        noise = [line for line in ended.lines if not line.startswith((*fault.says, "judge: "))]
        if ended.status == 0:
            return "same result", self._difference(fault, run_dir) or (" / ".join(noise) if fault.hears else "")
        if fault.hears and (len(noise) != 1 or (fault.ends_with or "tpt: ") not in noise[0]):
            return f"status {ended.status}", f"not one line: {said}"
        end = f"status {ended.status}{f': {noise[-1][:200]}' if noise else ''}"
        if not fault.is_run:
            return end, ""
        if fault.damage is not nothing:  # as the line asks for
            restore(kept, run_dir)
        if fault.room:
            subprocess.run(["mount", "-o", "remount,size=200m", str(folder)], check=True)
        again = self._run(fault.without_fault(), run_dir)
        if again.status:
            return end, f"and then status {again.status}: {' / '.join(again.lines)[-600:]}"
        return end, self._difference(fault, run_dir)

    @contextlib.contextmanager
    def _folder(self, fault: Fault) -> Iterator[Path]:
        """An empty folder, on a file system with the fault's room."""
        folder = Path(tempfile.mkdtemp(dir=self._root, prefix=fault.prefix))
        if fault.room:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={fault.room}k", "none", str(folder)], check=True)
        try:
            yield folder
        finally:
            if fault.room:
                subprocess.run(["umount", "-l", str(folder)], check=True)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(folder.with_name(f"{folder.name}-kept"), ignore_errors=True)

    def _run(self, fault: Fault, run_dir: Path) -> Ended:
        """Runs the fault's command, and sends its signals."""
        command = fault.command(self._files, run_dir)
        log = self._root / f"{time.monotonic_ns()}.log"
        environment = dict(os.environ)
        for name, value in fault.environment.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value.format(root=self._root, path=os.environ["PYTHONPATH"])
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment,
                cwd=self._root,
                start_new_session=True,
            )
        try:
            fault.interfere(process, run_dir, log)
            status = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return Ended(-99, ["did not end"])
        lines = log.read_text(errors="replace").splitlines()
        log.unlink()
        return Ended(status, [line for line in lines if line.strip() and not line.startswith(PROGRESS)])

    def _difference(self, fault: Fault, run_dir: Path) -> str:
        """What of the run's results differs from those of the uninterrupted one; "" if nothing does."""
        if not fault.is_run:
            return "" if fault.verb != PRUNE else self._difference_in_verdicts(run_dir.parent / "judged.jsonl")
        reference, actual = self._references[fault.num_hosts], read_results(run_dir)
        for key in {**reference.results, **actual}:
            there, here = reference.results.get(key), actual.get(key)
            if there != here:
                return f"{key}: {here!s:.80}, not {there!s:.80}"
        leaves = map(jax.tree.leaves, (reference.weights, self._read_weights(run_dir)))
        largest = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(*leaves, strict=True))
        if largest > 1e-6:
            return f"weights differ by {largest:.1e}"
        left = [path.name for path in run_dir.rglob("*") if "tmp" in path.name or path.name == "lock"]
        return f"left behind: {left}" if left else ""

    def _difference_in_verdicts(self, output: Path) -> str:
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        run = [json.loads(line) for line in (self._root / "traces.jsonl").read_text().splitlines()]
        same = [line["correct"] for line in lines] == [line["correct"] for line in run]
        return "" if same else "the verdicts are not those of the run"

    def _read_weights(self, run_dir: Path) -> Any:
        return ModelFolder.open(run_dir / "checkpoints/002").load(self._layout)


def make_half(finished: Path, half: Path) -> None:
    """A run as one killed early in the last round's think stage leaves it."""
    shutil.copytree(finished, half)
    last = half / "rounds/002"
    for path in last.rglob("*"):
        if path.is_file() and path.name not in ("questions.jsonl", "think-000-00000.jsonl"):
            path.unlink()
    shutil.rmtree(half / "checkpoints/002")


def copy_traces(finished: Path, folder: Path) -> None:
    """The traces and questions of a run's first round, as files for `tpt prune`."""
    paths = sorted((finished / "rounds/001/traces").glob("think-*.jsonl"))
    (folder / "traces.jsonl").write_text("".join(path.read_text() for path in paths))
    shutil.copyfile(finished / "rounds/001/questions.jsonl", folder / "questions.jsonl")


def restore(kept: Path, run_dir: Path) -> None:
    """Puts back the files of a folder as they were before the damage; nothing, if there was no folder."""
    if not kept.exists():
        subprocess.run(["rm", "-rf", str(run_dir)], check=True)
    for path in kept.rglob("*"):
        if path.is_file():
            target = run_dir / path.relative_to(kept)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def read_results(run_dir: Path) -> Mapping[Any, Any]:
    """The token ids of every trace that is trained on or evaluated, the loss of every step, and the rounds' rates.

    A duplicate is marked, to count as a difference. Which traces are sampled besides depends on kills.
    """
    results: dict[Any, Any] = {}
    for path in sorted([*run_dir.glob("rounds/*/traces/evaluate-*.jsonl"), *run_dir.glob("rounds/*/training.jsonl")]):
        for line in map(json.loads, path.read_text().splitlines()):
            key = (path.relative_to(run_dir / "rounds").parts[0], path.name[:8], line["id"], line["sample"])
            results[key] = "duplicate" if key in results else line["token_ids"]
    for line in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()):
        if line["phase"] == "train":
            key = (line["round"], line["step"])
            results[key] = "duplicate" if key in results else round(line["loss"], 5)
    for path in sorted(run_dir.glob("rounds/*/metrics.json")):
        figures = json.loads(path.read_text())
        results |= {(path.parent.name, name): figures.get(name) for name in RATES}
    return results


if __name__ == "__main__":
    sys.exit(main())
