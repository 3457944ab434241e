"""The Train phase: all steps over one round's traces."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import grain
from flax import nnx

from tpt_jax.checkpoints.training import Saved, TrainingCheckpoints
from tpt_jax.config import TrainConfig
from tpt_jax.errors import Stopped
from tpt_jax.prompts import Example
from tpt_jax.train.compile import TrainerProgram
from tpt_jax.train.data import PackedBatch, packed_batches
from tpt_jax.train.optimizer import learning_rate_at
from tpt_jax.train.step import StepMetrics, TrainState

READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)  # packed batches, made while the device works


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one optimizer step did."""

    step: int  # from 0
    num_steps: int
    loss: float  # a completion token's; nats
    learning_rate: float
    grad_norm: float
    tokens: int  # completion tokens
    packed_tokens: int  # those and the prompts', without padding

    @property
    def curves(self) -> dict[str, float]:
        """What is worth plotting."""
        return {name: getattr(self, name) for name in ("loss", "learning_rate", "grad_norm", "tokens")}


@dataclasses.dataclass
class Counts:
    """Of a whole training, over all processes that worked on it."""

    tokens: int = 0  # completion tokens
    packed_tokens: int = 0  # those and the prompts', without padding


@dataclasses.dataclass(frozen=True)
class _Dispatched:
    """A step that the device may still be at."""

    step: int
    learning_rate: float
    batch: PackedBatch
    metrics: StepMetrics


class Fit:
    """Fine-tuning in progress: iterate for the steps, then take the parameters."""

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
        """Begins, or goes on after the newest save.

        Args:
          parameters: gives the ones to begin with, which are taken over: they are donated to the first step.
          examples: each at most sequence_length + 1 tokens long.
          checkpoints: of this very training, if any; None to save nothing.
          should_stop: asked after every step.
        """
        self._program = program
        self._config = config
        self._checkpoints = checkpoints
        self._should_stop = should_stop
        batches = packed_batches(examples, program.batch_shape, seed=seed, num_epochs=config.num_epochs)
        self.num_steps = min(len(batches), config.max_steps or len(batches))
        self._batches = iter(batches[: self.num_steps].to_iter_dataset(READ_AHEAD))
        saved = checkpoints.restore(program.abstract_state) if checkpoints else None
        self.first_step = saved.step if saved else 0
        self._state: TrainState = saved.state if saved else program.start(parameters())
        self.counts = Counts(**saved.progress["counts"]) if saved else Counts()
        if saved:
            self._batches.set_state(saved.progress["iterator"])

    @property
    def parameters(self) -> nnx.State:
        return self._state.parameters

    def __iter__(self) -> Iterator[StepRecord]:
        """Steps through the batches that are left; each step is reported when the next one is under way.

        Raises:
          FloatingPointError: the loss or the gradient is not finite; the weights are those before that step.
          Stopped: it should stop, and has saved where it was.
        """
        under_way: _Dispatched | None = None
        for step, batch in enumerate(self._batches, start=self.first_step):
            rate = learning_rate_at(step, self.num_steps, self._config.optimizer)
            self._state, metrics = self._program.step(self._state, batch.arrays, rate)
            if under_way is not None:
                yield self._record(under_way)
            under_way = _Dispatched(step, rate, batch, metrics)
            stops = step + 1 < self.num_steps and self._should_stop()
            if self._checkpoints and step + 1 < self.num_steps and (stops or self._checkpoints.is_due(step + 1)):
                yield self._record(under_way)  # a step that failed must not be saved
                under_way = None
                progress = {"iterator": self._batches.get_state(), "counts": dataclasses.asdict(self.counts)}
                self._checkpoints.save(Saved(step + 1, self._state, progress))
            if stops:
                raise Stopped
        if under_way is not None:
            yield self._record(under_way)

    def _record(self, done: _Dispatched) -> StepRecord:
        loss, grad_norm = float(done.metrics.loss), float(done.metrics.grad_norm)
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            what = "loss" if not math.isfinite(loss) else "gradient"
            value = grad_norm if math.isfinite(loss) else loss
            raise FloatingPointError(
                f"train step {done.step}: the {what} is {value} and the weights are left as they were; lower "
                f"train.optimizer.learning_rate, or look at the step's traces: {', '.join(done.batch.example_ids)}"
            )
        tokens = int(done.metrics.num_tokens)
        self.counts.tokens += tokens
        self.counts.packed_tokens += done.batch.num_tokens
        return StepRecord(done.step, self.num_steps, loss, done.learning_rate, grad_norm, tokens, done.batch.num_tokens)
