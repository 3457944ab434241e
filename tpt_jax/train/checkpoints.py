"""The state of a training under way, in orbax: weights, optimizer and the data iterator, of the newest save only."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from tpt_jax.train.step import TrainState


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a save holds.

    Attributes:
      step: how many steps had been done.
      progress: the state of grain's iterator, which stands before the next batch, and what was counted so far.
    """

    step: int
    state: TrainState
    progress: dict[str, Any]


class TrainingCheckpoints:
    """Saves in a folder, written in the background while training goes on; each whole or not there."""

    def __init__(self, path: Path, save_every: int):
        """Takes the folder, new or with the saves of an earlier process.

        Args:
          save_every: steps between saves.
        """
        self._save_every = save_every
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(path.resolve(), options=options)

    def is_due(self, num_steps: int) -> bool:
        """Whether to save after so many steps."""
        return num_steps % self._save_every == 0

    def save(self, saved: Saved) -> None:
        """Returns once the state is copied off the devices."""
        items = {"state": ocp.args.StandardSave(_named(saved.state)), "progress": ocp.args.JsonSave(saved.progress)}  # pyright: ignore[reportCallIssue]
        self._manager.save(saved.step, args=ocp.args.Composite(**items))

    def restore(self, abstract: TrainState) -> Saved | None:
        """The newest save; None where there is none.

        Args:
          abstract: shapes and shardings, on whatever mesh.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        items = {"state": ocp.args.StandardRestore(_named(abstract)), "progress": ocp.args.JsonRestore()}  # pyright: ignore[reportCallIssue]
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        leaves = [restored["state"][name] for name in _named(abstract)]
        return Saved(step, jax.tree.unflatten(jax.tree.structure(abstract), leaves), restored["progress"])

    def close(self) -> None:
        """Waits for what is still being written."""
        self._manager.close()


def _named(state: TrainState) -> dict[str, Any]:
    """The state's arrays by the paths to them, which do not depend on how a library nests its classes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
