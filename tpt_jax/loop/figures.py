"""Figures of work in progress for the curves: what a training step, or some seconds of sampling, did and took.

All is read on the host, from results that it has fetched anyway: no device waits for it.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from jax.sharding import Mesh

from tpt_jax.config import LoRAConfig
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.plan.chips import peak_flops
from tpt_jax.runtime import hosts
from tpt_jax.runtime.memory import GIB, memory_in_use
from tpt_jax.think.engine import Statistics
from tpt_jax.train.fine_tuning import StepRecord
from tpt_jax.train.flops import model_flops

SECONDS_BETWEEN_POINTS = 5.0  # of a sampling stage

Clock = Callable[[], float]  # in seconds


class StepFigures:
    """The curves of training steps, given their records as each step has finished.

    A step's seconds are those since the step before it; the first one after a start has none. They include a save.
    """

    def __init__(
        self, model: ModelConfig, mesh: Mesh, *, lora: LoRAConfig | None = None, clock: Clock = time.monotonic
    ):
        """Starts before the first step; `lora` if only adapters are trained."""
        self._model = model
        self._mesh = mesh
        self._lora = lora
        self._clock = clock
        peak = peak_flops(mesh.devices.flat[0].device_kind)
        self._peak = None if peak is None else peak * mesh.size
        self._finished_at: float | None = None

    def __call__(self, record: StepRecord) -> dict[str, float]:
        """The record's own curves, tokens_per_second (without padding), mfu where the chip is known, and memory.

        memory_gib_0 is in use on this host's first device, peak_memory_gib_0 was at most since the process started;
        CPUs do not report theirs.
        """
        now, curves = self._clock(), dict(record.curves)
        if self._finished_at is not None:
            seconds = now - self._finished_at
            curves |= {"seconds": seconds, "tokens_per_second": record.packed_tokens / seconds}
            if self._peak is not None:
                curves["mfu"] = model_flops(self._model, record.lengths, self._lora) / (seconds * self._peak)
        self._finished_at = now
        for index, memory in enumerate(memory_in_use(self._mesh.local_devices)):
            curves |= {f"memory_gib_{index}": memory.now / GIB, f"peak_memory_gib_{index}": memory.peak / GIB}
        return curves


class Progress(NamedTuple):
    """How many traces of a sampling stage are done, and how many it will take; estimates while it goes on."""

    num_done: int
    num_expected: int


class SamplingFigures:
    """The curves of a sampling stage, every few seconds; of all hosts, taken to be as fast as this one."""

    def __init__(self, num_slots: int, clock: Clock = time.monotonic):
        """Starts the clock; num_slots counts those of all hosts."""
        self._num_slots = num_slots
        self._clock = clock
        self._since = clock()
        self._num_tokens = self._num_steps = 0  # by then

    def due(self, statistics: Statistics, reached: Progress, *, is_last: bool = False) -> dict[str, float] | None:
        """The curves since the last ones: traces, tokens_per_second, slots_busy; None if it is too early for them.

        Args:
          statistics: of this host, since the stage began.
          is_last: the stage is over, so that nothing is too early.
        """
        now = self._clock()
        seconds = now - self._since
        if seconds < SECONDS_BETWEEN_POINTS and not is_last:
            return None
        num_tokens = (statistics.num_tokens - self._num_tokens) * hosts.count()
        num_steps = statistics.num_steps - self._num_steps
        self._since, self._num_tokens, self._num_steps = now, statistics.num_tokens, statistics.num_steps
        curves = {"traces": float(reached.num_done), "expected_traces": float(reached.num_expected)}
        if num_steps and seconds:
            busy = min(1.0, num_tokens / (num_steps * self._num_slots))
            curves |= {"tokens_per_second": num_tokens / seconds, "slots_busy": busy}
        return curves
