"""Lower bounds on the stages of a round: how often each phase's program runs, times its lower bound."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from tpt_jax.config import RunConfig, Sampling
from tpt_jax.plan.chips import Chip
from tpt_jax.plan.phases import Phase
from tpt_jax.prune.demand import asks_one_by_one, takes_all_samples
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.think.state import SlotShape

PACKING = 0.95  # share of a training batch, or of a prefill batch, that is not padding
UNLIMITED = 10**12


# How much questions differ: their shares of right traces are taken to follow a beta distribution, a + b of which is
# this. Gemma 2 2B's 2,500 traces on GSM8K fit it: 63% right, 78% of questions solved in four samples.
SPREAD = 0.56


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What is unknown until the model has sampled.

    Attributes:
      mean_prompt, mean_completion: lengths in tokens.
      right_share: of the traces on training questions.
    """

    mean_prompt: int
    mean_completion: int
    right_share: float


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
    assumed: Assumptions,
    chip: Chip,
) -> list[StageBound]:
    """Think, train and evaluate of the first round. Pruning costs no device time.

    Args:
      shapes: questions and traces of one batch shard, by sampling section.
      num_shards: batch shards.
    """
    seconds = {phase.name: phase.cost.seconds(chip) for phase in phases if phase.cost is not None}
    by_name = {phase.name: phase for phase in phases}

    def sampling(kind: Sampling) -> StageBound:
        shape = shapes[kind]
        num_traces, num_prefills = shape.num_traces, shape.num_questions
        if kind == "think":
            wanted = expected_traces(config, shape.num_questions * num_shards, assumed.right_share)
            num_traces = math.ceil(wanted / num_shards)
            if shape.prefills_per_question > 1:
                num_prefills = num_traces
        # Sections that differ only in their number of questions share the phases of the first.
        source = kind if f"{kind}: decode" in by_name else "think"
        step, prefill = seconds.get(f"{source}: decode"), seconds.get(f"{source}: prefill")
        tokens = num_traces * assumed.mean_completion * num_shards
        tokens_per_step = by_name[f"{source}: decode"].tokens
        if step is None or prefill is None or tokens_per_step is None:
            return StageBound(kind, tokens, None)
        num_steps = math.ceil(tokens / tokens_per_step)
        num_batches = math.ceil(num_prefills * assumed.mean_prompt / (PACKING * shape.prefill_batches[1]))
        return StageBound(kind, tokens, num_steps * step + num_batches * prefill)

    return [
        sampling("think"),
        _train_bound(config, shapes["think"], num_shards, assumed, seconds),
        sampling("evaluate"),
    ]


def expected_traces(config: RunConfig, num_questions: int, right_share: float) -> float:
    """How many traces a think stage samples, on average, surplus left out; see prune.demand.

    With a question's share of right traces beta-distributed, its first n samples are all wrong with probability
    b (b + 1) ... (b + n - 1) / ((a + b) ... (a + b + n - 1)).
    """
    think, pipeline = config.think, Pipeline.from_config(config.prune, config.seed)
    num_samples = think.max_samples or think.num_samples
    wrong = [1.0]  # by number of samples
    for sample in range(num_samples):
        wrong.append(wrong[-1] * ((1 - right_share) * SPREAD + sample) / (SPREAD + sample))
    if takes_all_samples(pipeline, think.until):
        return float(num_questions * think.num_samples)
    wanted = pipeline.max_per_question or num_samples
    samples = sum(wrong[:num_samples]) if asks_one_by_one(pipeline, think.until) else num_samples
    samples = min(num_samples, samples * wanted)
    asked = min(num_questions, (pipeline.max_traces or UNLIMITED) / max(1 / UNLIMITED, (1 - wrong[-1]) * wanted))
    return asked * samples


def _train_bound(
    config: RunConfig, think: SlotShape, num_shards: int, assumed: Assumptions, seconds: Mapping[str, float]
) -> StageBound:
    """Training on as many traces as the config lets pruning keep."""
    train, prune = config.train, config.prune
    num_kept = min(
        think.num_questions * num_shards * (prune.max_per_question or UNLIMITED),
        prune.max_traces or UNLIMITED,
    )
    tokens = num_kept * (assumed.mean_prompt + assumed.mean_completion) * train.num_epochs
    tokens_per_step = train.micro_batches * train.rows * train.sequence_length
    num_steps = min(math.ceil(tokens / (tokens_per_step * PACKING)), train.max_steps or UNLIMITED)
    step = seconds.get("train step")
    total = None if step is None else num_steps * step
    return StageBound("train", min(tokens, num_steps * tokens_per_step), total)
