"""How long a round takes at best: how often each phase's program runs, times the least time that it can take."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from tpt_jax.config import RunConfig, Sampling
from tpt_jax.plan.chips import Chip
from tpt_jax.plan.phases import Phase
from tpt_jax.think.state import SlotShape

PACKING = 0.95  # of a batch that is not padding


@dataclasses.dataclass(frozen=True)
class Lengths:
    """What nobody knows before the model has spoken, in tokens."""

    mean_prompt: int
    mean_completion: int


@dataclasses.dataclass(frozen=True)
class StageBound:
    """One stage of a round: tokens sampled or trained on, and the least seconds; None where a phase does not fit."""

    stage: str
    tokens: int
    seconds: float | None


def stage_bounds(
    config: RunConfig,
    phases: Sequence[Phase],
    shapes: Mapping[Sampling, SlotShape],
    num_shards: int,
    lengths: Lengths,
    chip: Chip,
) -> list[StageBound]:
    """Think, train and evaluate of the first round; a trace that is pruned costs the device nothing."""
    by_name = {phase.name: phase for phase in phases}

    def bound(name: str) -> float | None:
        cost = by_name[name].cost if name in by_name else None
        return None if cost is None else cost.seconds(chip)

    def sampling(kind: Sampling) -> StageBound:
        shape = shapes[kind]
        # A section that differs in its number of questions only has no phases of its own.
        source = kind if f"{kind}: decode" in by_name else "think"
        step, prefill = bound(f"{source}: decode"), bound(f"{source}: prefill")
        tokens = shape.num_traces * lengths.mean_completion
        num_steps = math.ceil(tokens / shape.num_slots)
        num_prefills = math.ceil(shape.num_questions / shape.prefill_rows)
        seconds = None if step is None or prefill is None else num_steps * step + num_prefills * prefill
        return StageBound(kind, tokens * num_shards, seconds)

    train = config.train
    num_kept = min(shapes["think"].num_traces * num_shards, config.prune.max_traces or 10**12)
    num_kept = min(num_kept, shapes["think"].num_questions * num_shards * (config.prune.max_per_question or 10**12))
    tokens = num_kept * (lengths.mean_prompt + lengths.mean_completion) * train.num_epochs
    per_step = train.micro_batches * train.rows * train.sequence_length
    num_steps = min(math.ceil(tokens / (per_step * PACKING)), train.max_steps or 10**12)
    step = bound("train step")
    training = StageBound("train", min(tokens, num_steps * per_step), None if step is None else num_steps * step)
    return [sampling("think"), training, sampling("evaluate")]
