"""The owner of a run's one set of training parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.checkpoints.writer import CheckpointWriter
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.loop.setup import Setup
from tpt_jax.runtime.sharding import in_memory


@dataclasses.dataclass(frozen=True)
class _Held:
    """The training parameters after a round, on the devices or in host memory."""

    round_index: int
    parameters: nnx.State


class Weights:
    """Holds and hands out the training parameters of a round, and writes checkpoints in the background.

    At most one round's parameters are held. Those of any other round are loaded from its checkpoint, in place of the
    ones held before; `loop.recovery` has verified the checkpoints a resumed run can need.
    """

    def __init__(self, setup: Setup, folder: RunFolder):
        self._setup = setup
        self._folder = folder
        self._writer = CheckpointWriter()
        self._held: _Held | None = None

    def lend(self, round_index: int) -> nnx.State:
        """The parameters after a round, on the devices, for a caller that only reads them.

        With `train.offload` they are kept in host memory afterwards.
        """
        parameters = self._on_devices(round_index)
        offload = self._setup.config.train.offload
        self._held = _Held(round_index, in_memory(parameters, "pinned_host") if offload else parameters)
        return parameters

    def take(self, round_index: int) -> nnx.State:
        """The parameters after a round, on the devices, for a caller that donates them; they are no longer held."""
        parameters = self._on_devices(round_index)
        self._held = None
        return parameters

    def put(self, round_index: int, parameters: nnx.State, facts: Mapping[str, Any]) -> None:
        """Holds the parameters after a round, and starts writing their checkpoint.

        Args:
          facts: about the training, kept in the checkpoint.
        """
        self._held = _Held(round_index, parameters)
        path, lora = self._folder.checkpoint(round_index), self._setup.config.train.lora
        self._writer.save(path, parameters, self._setup.model, facts, lora=lora)

    def wait(self) -> None:
        """Returns once the last checkpoint is complete."""
        self._writer.wait()

    def close(self) -> None:
        self._writer.close()

    def _on_devices(self, round_index: int) -> nnx.State:
        if self._held is not None and self._held.round_index == round_index:
            return in_memory(self._held.parameters, "device")
        self._held = None  # frees its memory before the next is read
        self.wait()
        return self._setup.load(ModelFolder.open(self._folder.checkpoint(round_index)), verify=False)
