"""The Train phase: all steps over one round's traces."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from flax import nnx

from tpt_jax.config import TrainConfig
from tpt_jax.program import TrainerProgram
from tpt_jax.prompts import Example
from tpt_jax.train.data import packed_batches
from tpt_jax.train.optimizer import learning_rate_at
from tpt_jax.train.step import StepMetrics, TrainState


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one optimizer step did."""

    step: int  # from 0
    num_steps: int
    loss: float  # nats a completion token
    learning_rate: float
    grad_norm: float
    tokens: int  # completion tokens


class Fit:
    """Fine-tuning in progress: iterate for the steps, then take the parameters."""

    def __init__(
        self,
        program: TrainerProgram,
        parameters: nnx.State,
        examples: Sequence[Example],
        config: TrainConfig,
        seed: int,
    ):
        """Takes the parameters over: they are donated to the first step.

        Args:
          examples: each at most sequence_length + 1 tokens long.
        """
        self._program = program
        self._config = config
        self._state: TrainState = program.start(parameters)
        batches = packed_batches(examples, program.batch_shape, seed=seed, num_epochs=config.num_epochs)
        self._batches = list(itertools.islice(batches, config.max_steps))

    @property
    def num_steps(self) -> int:
        return len(self._batches)

    @property
    def parameters(self) -> nnx.State:
        return self._state.parameters

    def __iter__(self) -> Iterator[StepRecord]:
        """Steps through the batches; each step is reported when the next one is under way.

        Raises:
          FloatingPointError: the loss is not finite.
        """
        previous: tuple[int, float, StepMetrics] | None = None
        for step, batch in enumerate(self._batches):
            rate = learning_rate_at(step, self.num_steps, self._config.optimizer)
            self._state, metrics = self._program.step(self._state, batch, rate)
            if previous is not None:
                yield self._record(*previous)
            previous = (step, rate, metrics)
        if previous is not None:
            yield self._record(*previous)

    def _record(self, step: int, rate: float, metrics: StepMetrics) -> StepRecord:
        loss = float(metrics.loss)
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise FloatingPointError(f"train step {step}: the loss is {loss}; lower train.optimizer.learning_rate")
        return StepRecord(step, self.num_steps, loss, rate, float(metrics.grad_norm), int(metrics.num_tokens))
