"""Makes and prints a plan: a table of the phases, then the round and what does not fit in lines of text."""

import json
import time
from pathlib import Path

import rich.box
from rich.table import Table

from tpt_jax.config import RunConfig
from tpt_jax.io.files import write_atomically
from tpt_jax.io.tables import print_table, stdout_console
from tpt_jax.plan.chips import GIB
from tpt_jax.plan.phases import Cost, Memory, Phase
from tpt_jax.plan.planner import Plan, assumptions, make_plan
from tpt_jax.terminal import say

FILE_WIDTH = 120  # characters of a printed line, where no terminal sets it
MEMORY_COLUMNS = ("args", "temps", "resident", "peak", "of HBM")
COST_COLUMNS = ("GFLOP", "GB", "GB sent", "wires ms", "min ms", "by", "+ waits")
COLUMNS = ("per device", *MEMORY_COLUMNS, *COST_COLUMNS)


def print_plan(
    config: RunConfig,
    topology: str,
    *,
    mean_prompt_tokens: int | None = None,
    mean_new_tokens: int | None = None,
    right_share: float = 0.6,
    search: bool = False,
    price: float | None = None,
    json_path: Path | None = None,
) -> bool:
    """Makes a plan and prints it; returns whether everything fits.

    Args:
      mean_prompt_tokens, mean_new_tokens, right_share: see Assumptions.
      search: also find the most slots and rows that fit; takes minutes longer.
      price: of an hour of a chip; None not to speak of money.
      json_path: file to write the figures to.

    Raises:
      UserError: see make_plan.
    """
    started = time.monotonic()
    assumed = assumptions(config, mean_prompt_tokens, mean_new_tokens, right_share)
    plan = make_plan(config, topology, assumed, search=search, price=price)
    stdout = stdout_console(FILE_WIDTH)
    print_table(stdout, phase_table(plan))
    stdout.print(summary(plan), highlight=False, markup=False, soft_wrap=True)
    if json_path:
        write_atomically(json_path, json.dumps(plan.as_json(), indent=2) + "\n")
    say(f"planned in {time.monotonic() - started:.0f} s")
    return plan.fits


def phase_table(plan: Plan) -> Table:
    """Memory (GiB) and cost of each phase on one device."""
    table = Table(box=rich.box.SIMPLE, padding=(0, 1, 0, 0))
    for index, heading in enumerate(COLUMNS):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for phase in plan.phases:
        table.add_row(phase.name, *_memory_cells(plan, phase), *_cost_cells(plan, phase.cost))
    return table


def _memory_cells(plan: Plan, phase: Phase) -> tuple[str, ...]:
    memory: Memory | None = phase.memory
    if memory is None:
        return ("", "", "", "", "does not fit" if phase.advice else "")
    sizes = (memory.arguments, memory.temporaries, memory.resident, memory.needed)
    return (*(f"{size / GIB:.2f}" for size in sizes), f"{memory.needed / plan.chip.memory:.0%}")


def _cost_cells(plan: Plan, cost: Cost | None) -> tuple[str, ...]:
    if cost is None:
        return ("",) * len(COST_COLUMNS)
    return (
        f"{cost.flops / 1e9:,.1f}",
        f"{cost.bytes / 1e9:,.2f}",
        f"{sum(cost.wires.sent.values()) / 1e9:,.3f}",
        f"{1000 * cost.wires.seconds:,.2f}",
        f"{1000 * cost.seconds(plan.chip):,.2f}",
        cost.bound_by(plan.chip),
        f"{1000 * cost.wires.waited_seconds:,.2f}",
    )


def summary(plan: Plan) -> str:
    """Explains the table's rows; then the round, the largest sizes that fit, and advice for what does not fit."""
    lines = [
        "Memory in GiB. resident: the parameters of training, which stay on the devices while the model samples. "
        "+ waits: ms more, for collectives that run beside no computation."
    ]
    lines += [_phase_line(plan, phase) for phase in plan.phases]
    lines += _round_lines(plan)
    for key, value in (plan.largest or {}).items():
        lines.append(f"largest {key} that fits: {value}" if value else f"no {key} fits")
    lines += [f"{phase.name} does not fit: {phase.advice}" for phase in plan.phases if phase.advice]
    lines.append(
        "All times are lower bounds: the largest of flops over the chip's peak, bytes over its bandwidth, and "
        "collectives over the links between chips; loops counted once per iteration, every slot at maximum length. "
        "Waiting for collectives, as given above, and for the hosts comes on top."
    )
    return "\n".join(lines)


def _phase_line(plan: Plan, phase: Phase) -> str:
    line, cost = f"{phase.name}: {phase.unit}", phase.cost
    if cost is None:
        return line
    if cost.least:
        line += _efficiency(plan, phase, cost, cost.least)
    wires = cost.wires
    if wires.sent:
        large = [f"{kind} {size / 1e9:.3f} GB" for kind, size in wires.sent.items() if size > 1e6]
        line += f"; sends {', '.join(large) or 'less than 1 MB'}"
        line += f"; waits {1000 * wires.waited_seconds:,.2f} ms for {wires.waited_bytes / 1e9:.3f} GB of it"
    return line


def _efficiency(plan: Plan, phase: Phase, cost: Cost, least: float) -> str:
    """What the bound of a train or decode step means."""
    seconds, chip = cost.seconds(plan.chip), plan.chip
    rate = f"at most {plan.tokens_per_second(phase):,.0f} tokens/s a chip"
    if phase.name == "train step":
        mfu, waiting = (least / (time * chip.flops) for time in (seconds, seconds + cost.wires.waited_seconds))
        return (
            f"; {cost.flops / least:.2f} times the flops of the model; {rate}, {mfu:.0%} MFU; {waiting:.0%} with waits"
        )
    share = cost.bytes / (seconds * chip.bandwidth)
    return f"; {cost.bytes / least:.2f} times the bytes of weights and KV cache; {rate}, {share:.0%} of the bandwidth"


def _round_lines(plan: Plan) -> list[str]:
    assumed = plan.assumed
    lines = [
        f"A round with prompts of {assumed.mean_prompt} tokens, completions of {assumed.mean_completion}, and "
        f"{assumed.right_share:.0%} of traces right takes at least"
    ]
    for stage in plan.stages:
        seconds = "does not fit" if stage.seconds is None else f"{stage.seconds:,.0f} s"
        lines.append(f"  {stage.stage:9} {stage.tokens:>12,} tokens  {seconds}")
    if plan.round_seconds is not None and plan.round_chip_hours is not None:
        lines.append(
            f"  total: {plan.round_seconds:,.0f} s on {plan.num_chips} chips, {plan.round_chip_hours:.2f} chip-hours; "
            f"{plan.round_chip_hours * plan.config.num_rounds:.1f} for {plan.config.num_rounds} rounds"
        )
    if plan.round_price is not None:
        lines.append(
            f"  at {plan.price:g} per chip-hour: {plan.round_price:,.2f}; "
            f"{plan.round_price * plan.config.num_rounds:,.2f} for {plan.config.num_rounds} rounds"
        )
    return lines
