"""What long runs cost their hosts: seconds and memory of rounds with many traces, of long curves, and of many rounds.

    python benchmarks/long_runs.py traces [--num_traces 3000 30000 300000] [--folder DIR]
    python benchmarks/long_runs.py curves [--num_lines 10000000] [--folder DIR]
    python benchmarks/long_runs.py rounds [--num_rounds 200] [--folder DIR]

`traces` needs neither a model nor an accelerator. It runs the host's part of a round, step by step, each in a process
of its own: a stand-in for the engine returns made-up traces (300 tokens, 900 characters, from a seed) in as many chunks
as the round has part files, and they are judged, written, selected, read for training, counted and reported by the code
of a run. An evaluation has a tenth of the traces. Seconds are those of the CPU, without making the traces; memory is
the step's peak over what the process had before it.

`curves` reads and resumes a long metrics.jsonl. `rounds` runs many short rounds of the quickstart model, and fits a
line to the memory of the process after each.
"""

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tpt_jax.config import RunConfig, TrackersConfig
from tpt_jax.config_parsing import load_config
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.records import Question, QuestionSet, Trace, Verdict

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
NUM_SAMPLES = 4
TRACES_PER_FILE = 30
TOKENS_PER_SECOND = 10_000  # of the round that the host's part is compared with
NAMES = ("Ann", "Bob", "Carol", "Dana", "Emil", "Fay")
THINGS = ("apples", "boxes", "tickets", "pages", "miles", "coins")


# Traces.


def make_trace(name: str, sample: int) -> tuple[Trace, Verdict]:
    """A trace of about 300 tokens and 900 characters, and its verdict; the same for every call."""
    draw = random.Random(f"{name}/{sample}")
    lines = []
    for _ in range(draw.randint(8, 18)):
        first, second = draw.randint(2, 99), draw.randint(2, 99)
        sum_of_both = f"{first} + {second} = {first + second}"
        lines.append(f"{draw.choice(NAMES)} has {sum_of_both} {draw.choice(THINGS)} now, so we go on from there.")
    answer = str(draw.randint(1, 3))
    lines.append(f"#### {answer}")
    count = max(1, round(draw.gauss(300, 60)))
    token_ids = tuple(np.random.default_rng(draw.randrange(2**32)).integers(0, 256_000, count).tolist())
    finish_reason = "length" if draw.random() < 0.03 else "stop"
    trace = Trace(name, sample, "\n".join(lines), token_ids, -draw.random() * count, finish_reason, None, draw.random())
    return trace, Verdict(answer, strict=answer == "1", correct=answer == "1")


class Engine:
    """Stands in for think.engine.Engine: returns what is asked for, a part file a chunk; notes the time that takes."""

    seconds = 0.0
    verdicts: dict[int, Verdict] = {}  # noqa: RUF012  by the identity of a trace

    def __init__(self, *_: Any) -> None:
        from tpt_jax.think.engine import Statistics

        self.statistics = Statistics(seconds=1.0)

    def sample(self, parameters: Any, schedule: Any, **options: Any) -> Iterator[list[Trace]]:
        queue: list[tuple[str, int]] = []
        num_left = 1
        while not schedule.is_done(num_left):
            if len(queue) < TRACES_PER_FILE:
                requests = schedule.take(0, count=TRACES_PER_FILE, num_idle=TRACES_PER_FILE)
                queue += [(request.id, sample) for request in requests for sample in request.samples]
            chunk, queue = queue[:TRACES_PER_FILE], queue[TRACES_PER_FILE:]
            started = time.process_time()
            made = [make_trace(*name) for name in chunk]
            Engine.seconds += time.process_time() - started
            Engine.verdicts = {id(trace): verdict for trace, verdict in made}
            num_left = len(queue)
            yield [trace for trace, _ in made]


def submit_batch(pairs: Sequence[tuple[Question, Trace]]) -> Future[list[Verdict]]:
    future: Future[list[Verdict]] = Future()
    future.set_result([Engine.verdicts[id(trace)] for _, trace in pairs])
    return future


class Prompt:
    """Stands in for prompts.Prompt."""

    def example(self, question: str, completion_ids: Sequence[int], id: str = "") -> Any:
        from tpt_jax.prompts import Example

        return Example((*range(100), *completion_ids, 1), 100, id)


def no_parameters() -> Any:
    """Nothing here reads them."""


def make_questions(split: str, count: int) -> QuestionSet:
    return QuestionSet(
        tuple(Question(f"big/{split}/{index}", f"What is {index} + 1? " * 12, "1") for index in range(count))
    )


def make_setup(config: RunConfig, num_traces: int) -> Any:
    """What the stages need of a Setup, with num_traces / NUM_SAMPLES training questions, a tenth of them held out."""
    from tpt_jax.tasks import Task
    from tpt_jax.think.sampling import Filters
    from tpt_jax.think.sampling_plan import plan_sampling

    train, test = (make_questions(split, num_traces // part // NUM_SAMPLES) for split, part in (("a", 1), ("b", 10)))

    def plan(questions: QuestionSet) -> Any:
        return plan_sampling(
            {question.id: (1, 2) for question in questions},
            num_questions=None,
            num_samples=NUM_SAMPLES,
            max_prompt_tokens=8,
            max_new_tokens=512,
            num_slots=TRACES_PER_FILE,
            num_shards=1,
            filters=Filters(),
            cache_type="compute",
            weights="compute",
            option="think.",
        )

    plans = {"think": plan(train), "evaluate": plan(test)}
    programs = {name: SimpleNamespace(shape=plan.shape) for name, plan in plans.items()}
    return SimpleNamespace(
        config=config,
        plans=plans,
        sampler=SimpleNamespace(slots=programs, reshards=programs, layout=SimpleNamespace(batch_ways=1)),
        prompt=Prompt(),
        stop_strings=None,
        pool=SimpleNamespace(submit_batch=submit_batch),
        task=Task("big", train, test),
        compilations=SimpleNamespace(take=lambda: 0),
    )


@dataclasses.dataclass(frozen=True)
class Round:
    """The host's part of rounds 0 and 1 in a run folder."""

    folder: RunFolder
    setup: Any
    num_traces: int

    @property
    def loop(self) -> Any:
        from tpt_jax.loop.rounds import Loop

        nothing: Any = None
        return Loop(self.setup, nothing, self.folder, nothing, None)

    def think(self) -> None:
        from tpt_jax.loop.sampling import Pass, sample_on_demand

        questions = self.setup.task.train
        sampled = sample_on_demand(Pass(self.setup, self.folder, 1, "think", questions, no_parameters))
        assert sampled.num_surplus == 0

    def evaluate(self, index: int = 1) -> None:
        from tpt_jax.loop.sampling import Pass, sample_all

        questions = self.setup.task.test
        sample_all(Pass(self.setup, self.folder, index, "evaluate", questions, no_parameters))

    def select(self) -> None:
        from tpt_jax.loop.selection import select_traces

        names = [question.id for question in self.setup.task.train]
        facts = select_traces(self.setup, self.folder, 1, names)
        (self.folder.path / "prune.json").write_text(json.dumps(facts))

    def examples(self) -> None:
        self.loop._examples(1)

    def metrics(self) -> None:
        """Those of round 1, in a process that did not see round 0."""
        from tpt_jax.loop.recovery import RoundState

        seconds = {"seconds": 1.0, "num_prompts_too_long": 0}
        prune = json.loads((self.folder.path / "prune.json").read_text())
        for index in (0, 1):  # round 0 is written beforehand
            stages: Any = {"train": seconds, "evaluate": seconds}
            if index:
                stages |= {"think": seconds, "prune": {**seconds, **prune}}
            figures = self.loop._metrics(RoundState(index, stages))
            self.folder.write_stages(index, stages)
            self.folder.write_metrics(index, figures)

    def report(self) -> None:
        from tpt_jax.report import write_report

        write_report([self.folder.path], self.folder.report)


# A step's name in the table, the method, and whether it is part of every round.
STEPS = {
    "think: judge, write, decide": ("think", True),
    "think, resumed when done": ("think", False),
    "select": ("select", True),
    "read examples": ("examples", True),
    "evaluate: judge, write": ("evaluate", True),
    "metrics, also of round 0": ("metrics", True),
    "report": ("report", True),
}


def open_round(folder: Path, num_traces: int) -> Round:
    settings = {
        "think": {"until": "all", "num_samples": NUM_SAMPLES},
        "prune.max_traces": num_traces // 15,  # of 30,000 traces the paper kept 2,000
        "evaluate.num_samples": NUM_SAMPLES,
    }
    config = load_config(QUICKSTART, settings)
    run_folder = RunFolder.open(folder, config)
    run_folder.begin(config)
    return Round(run_folder, make_setup(config, num_traces), num_traces)


def run_step(step: str, folder: Path, num_traces: int) -> None:
    """One step in this process; prints its seconds and its peak memory, in bytes, as JSON."""
    from tpt_jax.loop import sampling
    from tpt_jax.report import page, read, sweep_page, traces  # noqa: F401  before the memory is measured

    sampling.Engine = Engine  # pyright: ignore[reportAttributeAccessIssue]
    sampling.reshard = lambda program, parameters, label: parameters
    this_round = open_round(folder, num_traces)
    if step == "base":
        this_round.folder.write_questions(0, this_round.setup.task.test)
        this_round.folder.write_questions(1, [*this_round.setup.task.train, *this_round.setup.task.test])
        this_round.evaluate(0)
        return
    before, started = reset_peak(), time.process_time()
    getattr(this_round, STEPS[step][0])()
    seconds = time.process_time() - started - Engine.seconds
    print(json.dumps([seconds, max(0, memory("VmHWM") - before)]))


def measure_traces(folder: Path, sizes: Sequence[int]) -> None:
    rows: dict[str, list[str]] = {step: [] for step in (*STEPS, "all, and share of the round")}
    for num_traces in sizes:
        where = folder / f"traces_{num_traces}"
        call_step("base", where, num_traces)
        total = 0.0
        for step, (_, is_always) in STEPS.items():
            seconds, peak = json.loads(call_step(step, where, num_traces))
            total += seconds * is_always
            rows[step].append(f"{seconds:,.1f} s, {peak / 1e6:,.0f} MB")
            print(f"{num_traces:,} {step}: {rows[step][-1]}", file=sys.stderr, flush=True)
        files = sum(1 for _ in (where / "rounds/001/traces").glob("think-*.jsonl"))
        share = total / (1.1 * num_traces * 300 / TOKENS_PER_SECOND)
        rows["all, and share of the round"].append(f"{total:,.1f} s, {share:.2%} ({files:,} files)")
    print(f"| step | {' | '.join(f'{size:,} traces' for size in sizes)} |")
    print("|---" * (1 + len(sizes)) + "|")
    for step, cells in rows.items():
        print(f"| {step} | {' | '.join(cells)} |")


# Curves.

LINES_PER_ROUND = 50_000


def write_curves(path: Path, num_lines: int) -> None:
    """Rounds of many steps each, the last one without its end: a process was killed in it."""
    with path.open("w") as file:
        for index in range(num_lines):
            number, step = divmod(index, LINES_PER_ROUND)
            curves = {"loss": 1 / (1 + index % 977), "learning_rate": 1e-6, "grad_norm": 0.123456789 + index % 13}
            line = {"time": 1.7e9 + index, "round": number, "phase": "train", "step": step, **curves, "tokens": 12345}
            if step == LINES_PER_ROUND - 1 and index < num_lines - 1:
                line = {"time": 1.7e9 + index, "round": number, "phase": "round", "step": number, "pass_at_1": 0.5}
            file.write(json.dumps(line) + "\n")


def run_curves_step(step: str, folder: Path) -> None:
    from tpt_jax.loop.metrics import MetricsLog
    from tpt_jax.report import curves

    run_folder = RunFolder.open_existing(folder)
    last = sum(1 for _ in (folder / "rounds").iterdir())

    def is_kept(line: Any) -> bool:
        return line["round"] < last or (step == "curves: resume, nothing lost" or line["step"] < 1000)

    before, started = reset_peak(), time.process_time()
    if step == "curves: report":
        curves.read_curves(run_folder)
    else:
        MetricsLog(run_folder.metrics_log, name="n", trackers=TrackersConfig(), is_kept=is_kept).close()
    seconds = time.process_time() - started
    print(json.dumps([seconds, max(0, memory("VmHWM") - before)]))


def measure_curves(folder: Path, num_lines: int) -> None:
    where = folder / "curves"
    config = load_config(QUICKSTART)
    RunFolder.open(where, config).begin(config)
    (where / "rounds").mkdir(exist_ok=True)
    write_curves(where / "metrics.jsonl", num_lines)
    for index in range((num_lines - 1) // LINES_PER_ROUND):
        (where / "rounds" / f"{index:03}").mkdir(exist_ok=True)
    size = (where / "metrics.jsonl").stat().st_size
    print(f"metrics.jsonl: {num_lines:,} lines, {size / 1e9:.2f} GB")
    for step in ("curves: report", "curves: resume, nothing lost", "curves: resume, steps lost"):
        seconds, peak = json.loads(call_step(step, where, 0))
        print(f"{step}: {seconds:,.1f} s, {peak / 1e6:,.0f} MB", flush=True)


# Rounds.


def measure_rounds(folder: Path, num_rounds: int) -> None:
    """Runs rounds of a few traces, and fits a line to the memory after each of them but the first quarter."""
    import tpt_jax as tpt

    used: list[int] = []
    times: list[float] = []

    def note(rounds: Sequence[Any]) -> None:
        used.append(memory("VmRSS"))
        times.append(time.monotonic())
        if len(used) % 10 == 1:
            print(f"round {len(used) - 1}: {used[-1] / 1e6:.1f} MB", file=sys.stderr, flush=True)

    sampled = {"num_questions": 8, "num_samples": 1, "max_new_tokens": 48, "num_slots": 8, "max_prompt_tokens": 64}
    path = folder / f"rounds_{num_rounds}_{os.getpid()}"
    tpt.run(
        QUICKSTART,
        run_dir=path,
        on_round=note,
        num_rounds=num_rounds,
        keep_checkpoints=1,
        task={"num_train": 8 * num_rounds, "num_test": 32},
        think=sampled,
        evaluate=sampled,
        prune={"steps": "any", "num_workers": 1},
        train={"max_steps": 1, "rows": 4, "traces_of": "round"},
    )
    first = len(used) // 4
    slope = np.polyfit(range(first, len(used)), used[first:], 1)[0]
    (path / "memory.json").write_text(json.dumps(used))
    seconds = (times[-1] - times[first]) / (len(times) - 1 - first)
    print(
        f"{num_rounds} rounds of {seconds:.1f} s: {used[0] / 1e6:.0f} MB after round 0, {used[first] / 1e6:.0f} after "
        f"round {first}, {used[-1] / 1e6:.0f} at the end; from round {first} on {slope / 1e3:+.1f} kB a round"
    )


# Processes.


def call_step(step: str, folder: Path, num_traces: int) -> str:
    """What a step prints in a process of its own."""
    command = [sys.executable, __file__, "step", "--step", step, "--folder", folder, "--num_traces", num_traces]
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def memory(field: str) -> int:
    """VmRSS, the memory of this process, or VmHWM, its peak; in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def reset_peak() -> int:
    """Starts a new peak, where the system lets us; returns the memory in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("traces", "curves", "rounds", "step"))
    parser.add_argument("--num_traces", type=int, nargs="+", default=[3_000, 30_000, 300_000])
    parser.add_argument("--num_lines", type=int, default=10_000_000)
    parser.add_argument("--num_rounds", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder if not given")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        measures: dict[str, Callable[[], None]] = {
            "traces": lambda: measure_traces(folder, args.num_traces),
            "curves": lambda: measure_curves(folder, args.num_lines),
            "rounds": lambda: measure_rounds(folder, args.num_rounds),
        }
        if args.what != "step":
            measures[args.what]()
        elif args.step in (*STEPS, "base"):
            run_step(args.step, folder, args.num_traces[0])
        else:
            run_curves_step(args.step, folder)


if __name__ == "__main__":
    main()
