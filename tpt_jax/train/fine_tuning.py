"""Fine-tuning on one round's traces: all optimizer steps, with saves to resume from."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import grain
from flax import nnx

from tpt_jax.checkpoints.training import Saved, TrainingCheckpoints
from tpt_jax.config import TrainConfig
from tpt_jax.errors import Stopped
from tpt_jax.models.masters import split_trained
from tpt_jax.prompts import Example
from tpt_jax.train.compile import TrainerProgram
from tpt_jax.train.data import PackedBatch, packed_batches
from tpt_jax.train.optimizer import learning_rate_at
from tpt_jax.train.step import StepMetrics, TrainState

READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)  # batches are packed while the devices work


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """The metrics of one optimizer step."""

    step: int  # from 0
    num_steps: int
    loss: float  # mean over completion tokens, in nats
    learning_rate: float
    grad_norm: float
    tokens: int  # completion tokens
    packed_tokens: int  # prompt and completion tokens, without padding

    @property
    def curves(self) -> dict[str, float]:
        """The metrics worth plotting."""
        return {name: getattr(self, name) for name in ("loss", "learning_rate", "grad_norm", "tokens")}


@dataclasses.dataclass
class TokenCounts:
    """Tokens trained on since step 0, including steps before a resume."""

    tokens: int = 0  # completion tokens
    packed_tokens: int = 0  # prompt and completion tokens, without padding


@dataclasses.dataclass(frozen=True)
class _PendingStep:
    """A dispatched step whose metrics have not been read yet."""

    step: int
    learning_rate: float
    batch: PackedBatch
    metrics: StepMetrics


class FineTuning:
    """Fine-tuning in progress: iterate to run the steps, then read `parameters`."""

    def __init__(
        self,
        program: TrainerProgram,
        parameters: Callable[[], nnx.State],
        examples: Sequence[Example],
        config: TrainConfig,
        seed: int,
        checkpoints: TrainingCheckpoints | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        """Starts at step 0, or after the newest save in `checkpoints`.

        Args:
          parameters: returns the initial parameters; on resume only called for frozen ones, which are not saved. The
            first step donates them.
          examples: each at most sequence_length + 1 tokens long.
          checkpoints: saves of this fine-tuning; None to save nothing.
          should_stop: called after every step; True saves the state and raises Stopped.
        """
        self._program = program
        self._config = config
        self._checkpoints = checkpoints
        self._should_stop = should_stop
        batches = packed_batches(examples, program.batch_shape, seed=seed, num_epochs=config.num_epochs)
        self.num_steps = min(len(batches), config.max_steps or len(batches))
        self._batches = iter(batches[: self.num_steps].to_iter_dataset(READ_AHEAD))
        saved = checkpoints.restore(_without_frozen(program.abstract_state)) if checkpoints else None
        self.first_step = saved.step if saved else 0
        if saved is None:
            self._state: TrainState = program.init_state(parameters())
        else:
            frozen = split_trained(parameters())[1] if config.lora else nnx.State({})
            self._state = dataclasses.replace(saved.state, frozen=frozen)
        self.counts = TokenCounts(**saved.progress["counts"]) if saved else TokenCounts()
        if saved:
            self._batches.set_state(saved.progress["iterator"])

    @property
    def parameters(self) -> nnx.State:
        return self._state.parameters

    def __iter__(self) -> Iterator[StepRecord]:
        """Runs the remaining steps. Each record is yielded once the next step has been dispatched.

        Raises:
          FloatingPointError: the loss or the gradient is not finite; the weights are those from before that step.
          Stopped: should_stop returned True; the state has been saved.
        """
        pending: _PendingStep | None = None
        for step, batch in enumerate(self._batches, start=self.first_step):
            learning_rate = learning_rate_at(step, self.num_steps, self._config)
            self._state, metrics = self._program.step(self._state, batch.arrays, learning_rate)
            if pending is not None:
                yield self._record(pending)
            pending = _PendingStep(step, learning_rate, batch, metrics)
            stop = step + 1 < self.num_steps and self._should_stop()
            if self._checkpoints and step + 1 < self.num_steps and (stop or self._checkpoints.is_due(step + 1)):
                yield self._record(pending)  # raises if the step failed: a failed step must not be saved
                pending = None
                progress = {"iterator": self._batches.get_state(), "counts": dataclasses.asdict(self.counts)}
                self._checkpoints.save(Saved(step + 1, _without_frozen(self._state), progress))
            if stop:
                raise Stopped
        if pending is not None:
            yield self._record(pending)

    def _record(self, pending: _PendingStep) -> StepRecord:
        """Waits for the step, checks that it was finite and counts its tokens."""
        loss, grad_norm = float(pending.metrics.loss), float(pending.metrics.grad_norm)
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            name, value = ("gradient norm", grad_norm) if math.isfinite(loss) else ("loss", loss)
            raise FloatingPointError(
                f"train step {pending.step}: the {name} is {value} and the step was not applied; lower "
                f"train.optimizer.learning_rate, or inspect the step's traces: {', '.join(pending.batch.example_ids)}"
            )
        tokens, packed_tokens = int(pending.metrics.num_tokens), pending.batch.num_tokens
        self.counts.tokens += tokens
        self.counts.packed_tokens += packed_tokens
        return StepRecord(pending.step, self.num_steps, loss, pending.learning_rate, grad_norm, tokens, packed_tokens)


def _without_frozen(state: TrainState) -> TrainState:
    """The state as it is saved."""
    return dataclasses.replace(state, frozen=nnx.State({}))
