"""How many traces a round samples that asks only for what it will train on, by real traces and simulated slots.

    python benchmarks/demand.py TRACES [--num_questions 7473] [--max_traces 2000] [--slots 64 512]

TRACES holds judged traces of some model, as JSON lines with "id", "sample", "correct" and "tokens" (or "completion",
whose words then count as tokens). A round's questions are drawn from them with replacement. Slots decode a token a
step; the host sees a chunk of 32 steps after the next one has been queued, as in tpt_jax/think/engine.py.
"""

import argparse
import collections
import random
import sys
from pathlib import Path
from typing import Any

from tpt_jax.io.files import read_jsonl
from tpt_jax.prune.candidate import Candidate
from tpt_jax.prune.demand import Demand
from tpt_jax.prune.order import question_order
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.prune.registry import parse_steps
from tpt_jax.records import Trace, TraceName, Until, Verdict

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from simulated_slots import sample  # pyright: ignore[reportMissingImports]

UNTIL: tuple[Until, ...] = ("all", "enough")


class RealTraces:
    """Questions drawn from those of a file, and their samples in a random order."""

    def __init__(self, path: Path, num_questions: int, seed: int):
        by_question: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
        for line in read_jsonl(path):
            by_question[line["id"]].append(line)
        generator = random.Random(seed)
        self._lines: dict[str, list[dict[str, Any]]] = {}
        for index in range(num_questions):
            lines = by_question[generator.choice(list(by_question))]
            self._lines[f"q{index}"] = generator.sample(lines, len(lines))
        self.names = list(self._lines)
        self.num_samples = min(map(len, by_question.values()))

    def length(self, name: TraceName) -> int:
        line = self._line(name)
        return line.get("tokens") or max(1, len(line["completion"].split()))

    def candidate(self, pipeline: Pipeline, name: TraceName) -> Candidate:
        right = bool(self._line(name)["correct"])
        return pipeline.candidate(Trace(*name, completion=str(name)), Verdict(None, right, right))

    def _line(self, name: TraceName) -> dict[str, Any]:
        return self._lines[name[0]][name[1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path)
    parser.add_argument("--num_questions", type=int, default=7473)
    parser.add_argument("--max_traces", type=int, default=2000)
    parser.add_argument("--num_samples", type=int, default=4)
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 512])
    args = parser.parse_args()
    model = RealTraces(args.traces, args.num_questions, seed=0)
    pipeline = Pipeline(parse_steps("correct"), max_per_question=1, max_traces=args.max_traces)
    print("| until | slots | traces needed | surplus | tokens | steps | busy while questions are left | busy |")
    print("|---|---|---|---|---|---|---|---|")
    for num_slots in args.slots:
        for until in UNTIL:
            order = question_order(model.names, pipeline.seed)
            demand = Demand(order, pipeline, until=until, num_samples=args.num_samples)
            (device,) = sample(demand, pipeline, model, num_slots)
            surplus = len(device.written) - demand.num_needed
            print(
                f"| {until} | {num_slots} | {demand.num_needed:,} | {surplus} ({surplus / len(device.written):.1%}) | "
                f"{device.num_busy:,} | {device.num_steps:,} | "
                f"{device.num_open_busy / max(1, device.num_open_steps) / num_slots:.1%} | "
                f"{device.num_busy / device.num_steps / num_slots:.1%} |"
            )


if __name__ == "__main__":
    main()
