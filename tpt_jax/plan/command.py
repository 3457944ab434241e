"""`tpt plan`: what a run needs on a TPU slice, compiled for it on any machine."""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpt_jax.commands.arguments import positive
from tpt_jax.config import RunConfig, Sampling
from tpt_jax.errors import UserError
from tpt_jax.io.files import write_atomically
from tpt_jax.plan.chips import GIB

if TYPE_CHECKING:
    from tpt_jax.models.architecture import ModelConfig
    from tpt_jax.plan.chips import Chip
    from tpt_jax.plan.phases import Compiler, Phase
    from tpt_jax.plan.rounds import StageBound


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", required=True, help="the slice: v5e:2x4, v6e:8x8, v5p:4x4x4, ...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--fit", action="store_true", help="find the most slots and rows that fit; some minutes more")
    parser.add_argument(
        "--mean_prompt_tokens", type=positive, help="of a question; half of think.max_prompt_tokens if not given"
    )
    parser.add_argument(
        "--mean_new_tokens", type=positive, help="of a trace; a third of think.max_new_tokens if not given"
    )


def main(args: argparse.Namespace, config: RunConfig) -> int:
    """Prints the plan; 1 if something does not fit."""
    from rich.console import Console

    from tpt_jax.plan.chips import chip_of
    from tpt_jax.plan.phases import Compiler
    from tpt_jax.plan.rounds import Lengths, stage_bounds
    from tpt_jax.plan.topology import tpu_devices
    from tpt_jax.runtime.mesh import make_mesh
    from tpt_jax.terminal import say

    started = time.monotonic()
    chip = chip_of(args.topology)
    compiler = Compiler(config, model_shape(config), make_mesh(config.mesh, tpu_devices(args.topology)), chip)
    num_train, num_test = config.task.num_questions()
    shapes: dict[Sampling, Any] = {
        "think": compiler.shape("think", num_train),
        "evaluate": compiler.shape("evaluate", num_test),
    }
    lengths = Lengths(
        args.mean_prompt_tokens or -(-config.think.max_prompt_tokens // 2),
        args.mean_new_tokens or -(-config.think.max_new_tokens // 3),
    )
    say(
        f"{config.name}: {compiler.model.num_parameters / 1e9:.2f}B parameters on {args.topology}, "
        f"mesh {dict(compiler.mesh.shape)}; compiling"
    )
    phases = compiler.phases(shapes)
    stages = stage_bounds(config, phases, shapes, compiler.decode_layout.batch_ways, lengths, chip)
    fitting = find_largest(compiler, num_train) if args.fit else None
    plan = as_json(args.topology, compiler, phases, stages, lengths, fitting)
    stdout = Console(width=max(Console().width, 100))
    stdout.print(phase_table(phases, chip))
    stdout.print(round_text(plan), highlight=False, markup=False, soft_wrap=True)
    if args.json:
        write_atomically(args.json, json.dumps(plan, indent=2) + "\n")
    say(f"planned in {time.monotonic() - started:.0f} s")
    return 1 if any(phase.advice for phase in phases) else 0


def model_shape(config: RunConfig) -> "ModelConfig":
    """That of the model's folder, or of the published model that it is to hold.

    Raises:
      UserError: the folder is not there and what it is to hold is not known.
    """
    from tpt_jax.checkpoints.model import ModelFolder
    from tpt_jax.models.architecture import PUBLISHED, published

    path = Path(config.model.path).expanduser()
    if config.model.path == "quickstart" or path.is_dir():
        return ModelFolder.open(config.model.path).config
    source = (config.model.source or "").partition(" ")[0]
    shape = published(config.model.path) or published(source)
    if shape is None:
        raise UserError(
            f"model.path ({config.model.path}): no such folder, and neither it nor model.source names a published "
            f"model; give a folder with a config.json, or one of {', '.join(PUBLISHED)}"
        )
    return shape


def find_largest(compiler: "Compiler", num_train: int) -> dict[str, int]:
    from tpt_jax.plan.search import fit_rows, fit_slots

    return {"think.num_slots": fit_slots(compiler, "think", num_train), "train.rows": fit_rows(compiler)}


def as_json(
    topology: str,
    compiler: "Compiler",
    phases: "Sequence[Phase]",
    stages: "Sequence[StageBound]",
    lengths: Any,
    fitting: dict[str, int] | None,
) -> dict[str, Any]:
    """All figures; bytes, flops and seconds."""
    chip, num_devices = compiler.chip, compiler.mesh.size
    bounds = [stage.seconds for stage in stages if stage.seconds is not None]
    seconds = sum(bounds) if len(bounds) == len(stages) else None
    num_chips = num_devices // chip.per_chip
    return {
        "config": compiler.config.name,
        "topology": topology,
        "num_chips": num_chips,
        "mesh": dict(compiler.mesh.shape),
        "num_parameters": compiler.model.num_parameters,
        "chip": dataclasses.asdict(chip),
        "phases": [
            {**dataclasses.asdict(phase), "seconds": phase.cost.seconds(chip) if phase.cost else None}
            for phase in phases
        ],
        "round": {
            "assumes": dataclasses.asdict(lengths),
            "stages": [dataclasses.asdict(stage) for stage in stages],
            "seconds": seconds,
            "chip_hours": None if seconds is None else seconds * num_chips / 3600,
            "num_rounds": compiler.config.num_rounds,
        },
        "largest": fitting,
    }


def phase_table(phases: "Sequence[Phase]", chip: "Chip") -> Any:
    """Memory (GiB) and cost of each phase on a device."""
    import rich.box
    from rich.table import Table

    table = Table(box=rich.box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("a device", "args", "temps", "besides", "peak", "of HBM", "GFLOP", "GB", "GB sent", "bound ms"):
        table.add_column(heading, justify="left" if heading == "a device" else "right", no_wrap=True)
    for phase in phases:
        held, cost = phase.memory, phase.cost
        sizes = (held.arguments, held.temporaries, held.resident, held.needed) if held else ()
        share = f"{held.needed / chip.memory:.0%}" if held else ("does not fit" if phase.advice else "")
        table.add_row(
            phase.name,
            *(f"{size / GIB:.2f}" for size in sizes),
            *([""] * (4 - len(sizes))),
            share,
            *(
                (
                    f"{cost.flops / 1e9:,.1f}",
                    f"{cost.bytes / 1e9:,.2f}",
                    f"{sum(cost.collectives.values()) / 1e9:,.3f}",
                    f"{1000 * cost.seconds(chip):,.2f}",
                )
                if cost
                else ("",) * 4
            ),
        )
    return table


def round_text(plan: dict[str, Any]) -> str:
    """What the table's rows are, the round, and what does not fit, in lines."""
    lines = ["Memory in GiB; besides: the fp32 weights, which stay on the devices while they sample."]
    for phase in plan["phases"]:
        cost = phase["cost"]
        lines.append(f"{phase['name']}: {phase['unit']}")
        if cost and cost["least"]:
            least = "flops of the model" if phase["name"] == "train step" else "bytes of weights and cache"
            lines[-1] += f"; {cost[least.partition(' ')[0]] / cost['least']:.2f} times the {least}"
        if cost and cost["collectives"]:
            kinds = (f"{kind} {size / 1e9:.3f} GB" for kind, size in cost["collectives"].items() if size > 1e6)
            lines[-1] += f"; sends {', '.join(kinds) or 'next to nothing'}"
    of_round, assumes = plan["round"], plan["round"]["assumes"]
    lines.append(
        f"A round, with prompts of {assumes['mean_prompt']} tokens and traces of {assumes['mean_completion']}: "
        "no less than"
    )
    for stage in of_round["stages"]:
        seconds = "does not fit" if stage["seconds"] is None else f"{stage['seconds']:,.0f} s"
        lines.append(f"  {stage['stage']:9} {stage['tokens']:>12,} tokens  {seconds}")
    if of_round["seconds"] is not None:
        hours = of_round["chip_hours"]
        lines.append(
            f"  in all {of_round['seconds']:,.0f} s on {plan['num_chips']} chips: {hours:.2f} chip-hours, "
            f"{hours * of_round['num_rounds']:.1f} for {of_round['num_rounds']} rounds"
        )
    for name, value in (plan["largest"] or {}).items():
        lines.append(f"largest {name} that fits: {value}" if value else f"no {name} fits")
    lines += [f"{phase['name']} does not fit: {phase['advice']}" for phase in plan["phases"] if phase["advice"]]
    lines.append(
        "Bounds: the larger of flops over the chip's peak and bytes over its bandwidth, loops counted with their "
        "trips, every slot at its longest. No run is faster; what is sent and what waits comes on top."
    )
    return "\n".join(lines)
