"""Weak scaling by the plan: bounds of a train and a decode step as chips are added, with constant work per chip.

    python benchmarks/weak_scaling.py --config configs/gemma2_9b_gsm8k.yaml --topologies v5e:4x4 v5e:8x8 v5e:16x16

Compiles ahead of time, without a TPU, and prints a table row per topology and phase. Efficiency is the bound on the
first topology that fits over the bound on this one; the second figure counts what a step waits for, too. The mesh keeps
the config's `tensor`; `fsdp` takes all other chips.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

PHASES = ("train", "decode")
COLUMNS = (
    "topology",
    "chips",
    "phase",
    "compute ms",
    "memory ms",
    "wires ms",
    "waits ms",
    "by",
    "efficiency",
    "compile s",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--topologies", nargs="+", required=True)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--rows_per_chip", type=int, default=2, help="sequences per chip in a train step")
    parser.add_argument("--slots_per_chip", type=int, default=16, help="traces per chip in a decode step")
    args = parser.parse_args()

    from tpt_jax.plan.topology import prepare_environment

    prepare_environment()  # before JAX is imported
    from tpt_jax.runtime import environment

    environment.prepare(keep_programs=False)
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    first: dict[str, tuple[float, float]] = {}
    for topology in args.topologies:
        for phase in args.phases:
            print(row_of(topology, phase, args, first), flush=True)


def row_of(topology: str, phase: str, args: argparse.Namespace, first: dict[str, tuple[float, float]]) -> str:
    """A row of the table; remembers the bound on the first topology that fits, without and with waits."""
    from tpt_jax.config_parsing import load_config
    from tpt_jax.plan.chips import slice_shape
    from tpt_jax.plan.planner import make_compiler
    from tpt_jax.runtime.memory import DoesNotFitError

    num_chips = math.prod(slice_shape(topology))
    overrides = {
        "train.rows": str(args.rows_per_chip * num_chips),
        "think.num_slots": str(args.slots_per_chip * num_chips),
    }
    compiler = make_compiler(load_config(args.config, overrides), topology)
    started = time.monotonic()
    try:
        cost = phase_cost(compiler, phase)
    except DoesNotFitError as error:
        return f"| {topology} | {num_chips} | {phase} | does not fit: {error.need} |"
    seconds, waits = cost.seconds(compiler.chip), cost.wires.waited_seconds
    bounds = first.setdefault(phase, (seconds, seconds + waits))
    parts = " | ".join(f"{1000 * part:,.2f}" for part in cost.parts(compiler.chip).values())
    efficiency = f"{bounds[0] / seconds:.0%}, {bounds[1] / (seconds + waits):.0%}"
    return (
        f"| {topology} | {num_chips} | {phase} | {parts} | {1000 * waits:,.2f} | {cost.bound_by(compiler.chip)} | "
        f"{efficiency} | {time.monotonic() - started:.0f} |"
    )


def phase_cost(compiler: Any, phase: str) -> Any:
    """The cost of a train step or a decode step."""
    if phase == "train":
        return compiler.cost(compiler.compile_train_step(compiler.config.train))
    num_questions, _ = compiler.config.task.num_questions()
    return compiler.decode_step_cost(compiler.compile_sampler("think", compiler.slot_shape("think", num_questions)))


if __name__ == "__main__":
    main()
