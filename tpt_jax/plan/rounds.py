"""Lower bounds on the stages of a round: how often each phase's program runs, times its lower bound."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from tpt_jax.config import RunConfig, Sampling
from tpt_jax.plan.chips import Chip
from tpt_jax.plan.phases import Phase
from tpt_jax.think.state import SlotShape

PACKING = 0.95  # share of a training batch that is not padding
UNLIMITED = 10**12


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Assumed mean lengths in tokens, unknown until the model has sampled."""

    mean_prompt: int
    mean_completion: int


@dataclasses.dataclass(frozen=True)
class StageBound:
    """One stage of a round: tokens sampled or trained on, and the minimum of seconds; None if a phase does not fit."""

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
    """Think, train and evaluate of the first round. Pruning costs no device time.

    Args:
      shapes: slots of one batch shard, by sampling section.
      num_shards: batch shards.
    """
    seconds = {phase.name: phase.cost.seconds(chip) for phase in phases if phase.cost is not None}
    by_name = {phase.name for phase in phases}

    def sampling(kind: Sampling) -> StageBound:
        shape = shapes[kind]
        # Sections that differ only in their number of questions share the phases of the first.
        source = kind if f"{kind}: decode" in by_name else "think"
        step, prefill = seconds.get(f"{source}: decode"), seconds.get(f"{source}: prefill")
        tokens = shape.num_traces * lengths.mean_completion
        num_steps = math.ceil(tokens / shape.num_slots)
        num_prefills = math.ceil(shape.num_questions / shape.prefill_rows)
        total = None if step is None or prefill is None else num_steps * step + num_prefills * prefill
        return StageBound(kind, tokens * num_shards, total)

    return [
        sampling("think"),
        _train_bound(config, shapes["think"], num_shards, lengths, seconds),
        sampling("evaluate"),
    ]


def _train_bound(
    config: RunConfig, think: SlotShape, num_shards: int, lengths: Lengths, seconds: Mapping[str, float]
) -> StageBound:
    """Training on as many traces as the config lets pruning keep."""
    train, prune = config.train, config.prune
    num_kept = min(
        think.num_traces * num_shards,
        think.num_questions * num_shards * (prune.max_per_question or UNLIMITED),
        prune.max_traces or UNLIMITED,
    )
    tokens = num_kept * (lengths.mean_prompt + lengths.mean_completion) * train.num_epochs
    tokens_per_step = train.micro_batches * train.rows * train.sequence_length
    num_steps = min(math.ceil(tokens / (tokens_per_step * PACKING)), train.max_steps or UNLIMITED)
    step = seconds.get("train step")
    total = None if step is None else num_steps * step
    return StageBound("train", min(tokens, num_steps * tokens_per_step), total)
