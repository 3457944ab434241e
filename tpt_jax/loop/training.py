"""The train stage of a round: fine-tuning on traces, resumed where an earlier process was killed."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx

from tpt_jax.checkpoints.training import TrainingCheckpoints
from tpt_jax.config import LORA_LEARNING_RATE, TrainConfig
from tpt_jax.io.paths import Path
from tpt_jax.prompts import Example
from tpt_jax.runtime import preemption
from tpt_jax.runtime.profiling import Profile
from tpt_jax.terminal import listed, progress, say
from tpt_jax.train.compile import TrainerProgram
from tpt_jax.train.data import split_by_length
from tpt_jax.train.fine_tuning import FineTuning, StepRecord

LOW_LORA_RATE = 1e-5


@dataclasses.dataclass(frozen=True)
class Trained:
    """The result of a fine-tuning.

    Attributes:
      num_too_long: examples longer than train.sequence_length; they are left out, never truncated.
      tokens: completion tokens trained on, repeats included.
      packing: share of the batches' tokens that are not padding.
    """

    parameters: nnx.State
    num_examples: int
    num_too_long: int
    tokens: int
    packing: float

    @property
    def facts(self) -> Mapping[str, Any]:
        return {name: getattr(self, name) for name in ("num_examples", "num_too_long", "tokens", "packing")}


def fine_tune(
    trainer: TrainerProgram,
    load_parameters: Callable[[], nnx.State],
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    seed: int,
    label: str,
    saves: Path | None = None,
    on_step: Callable[[StepRecord], None] = lambda record: None,
    profile: Profile | None = None,
) -> Trained:
    """Trains on the examples, or on the rest of them after an earlier process was killed.

    Args:
      load_parameters: returns the parameters to start from, which are donated.
      examples: at least one fits train.sequence_length.
      profile: traces some of the steps.
      saves: folder for the state of the unfinished training, which the caller removes afterwards; None to save nothing.

    Raises:
      FloatingPointError: the loss or the gradient is not finite.
      Stopped: the process was asked to stop; the state of the training is saved.
    """
    if config.lora is not None and config.learning_rate < LOW_LORA_RATE:
        say(
            f"{label}: adapters hardly move at a train.optimizer.learning_rate of {config.learning_rate:g}; "
            f"{LORA_LEARNING_RATE:g} is usual with LoRA"
        )
    fitting, too_long = split_by_length(examples, config.sequence_length)
    if too_long:
        say(
            f"{label}: leaving out {len(too_long)} traces longer than train.sequence_length "
            f"({config.sequence_length}): {listed([example.id for example in too_long])}"
        )
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if saves is not None:
            checkpoints = stack.enter_context(contextlib.closing(TrainingCheckpoints(saves, config.save_every)))
        if profile is not None:
            stack.enter_context(profile)
        fit = FineTuning(trainer, load_parameters, fitting, config, seed, checkpoints, preemption.should_stop, profile)
        started, tokens_before = time.monotonic(), fit.counts.packed_tokens
        with progress(label, fit.num_steps, "steps", fit.first_step) as advance, preemption.defer():
            for record in fit:
                on_step(record)
                advance(1)
        rate = (fit.counts.packed_tokens - tokens_before) / (time.monotonic() - started)
    packing = fit.counts.packed_tokens / (fit.num_steps * trainer.batch_shape.num_tokens)
    say(f"{label}: {rate:,.0f} tokens/s, batches {packing:.1%} full")
    return Trained(fit.parameters, len(fitting), len(too_long), fit.counts.tokens, packing)
