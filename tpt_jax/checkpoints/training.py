"""The state of a training under way, in orbax: weights, optimizer and the data iterator, of the two newest saves."""

import dataclasses
from typing import Any

import jax
import orbax.checkpoint as ocp

from tpt_jax.checkpoints.checksums import BrokenCheckpointError, verify_checksums, write_checksums
from tpt_jax.checkpoints.model import being_written
from tpt_jax.io.paths import AnyPath, to_path
from tpt_jax.terminal import say


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a save holds.

    Attributes:
      step: how many steps had been done.
      progress: the state of grain's iterator, which stands before the next batch, and what was counted so far.
    """

    step: int
    state: Any  # a pytree of arrays
    progress: dict[str, Any]


class TrainingCheckpoints:
    """Saves in a folder, written in the background while training goes on; each whole or not there."""

    def __init__(self, path: AnyPath, save_every: int):
        """Takes the folder, new or with the saves of an earlier process.

        Args:
          save_every: steps between saves.
        """
        self._save_every = save_every
        self._path = to_path(path).resolve()
        self._saving = 0
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums)
        )
        self._manager = ocp.CheckpointManager(self._path, options=options)

    def is_due(self, num_steps: int) -> bool:
        """Whether to save after so many steps."""
        return num_steps % self._save_every == 0

    def save(self, saved: Saved) -> None:
        """Returns once the state is copied off the devices."""
        self._manager.wait_until_finished()
        self._saving = saved.step
        items = {"state": ocp.args.StandardSave(_named(saved.state)), "progress": ocp.args.JsonSave(saved.progress)}  # pyright: ignore[reportCallIssue]
        self._manager.save(saved.step, args=ocp.args.Composite(**items))

    def restore(self, abstract: Any) -> Saved | None:
        """The newest save that is whole; None where there is none. Broken ones are removed.

        Args:
          abstract: shapes and shardings, on whatever mesh.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                verify_checksums(self._path / str(step))
                return self._restore(step, abstract)
            except BrokenCheckpointError as error:
                say(f"{error}; an earlier one is, if there is any")
                self._manager.delete(step)
        return None

    def _restore(self, step: int, abstract: Any) -> Saved:
        items = {"state": ocp.args.StandardRestore(_named(abstract)), "progress": ocp.args.JsonRestore()}  # pyright: ignore[reportCallIssue]
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        leaves = [restored["state"][name] for name in _named(abstract)]
        return Saved(step, jax.tree.unflatten(jax.tree.structure(abstract), leaves), restored["progress"])

    def _write_checksums(self) -> None:
        """What orbax calls on the first host when all is written, before the folder takes its name."""
        write_checksums(being_written(self._path / str(self._saving)))

    def close(self) -> None:
        """Waits for what is still being written."""
        self._manager.close()


def _named(state: Any) -> dict[str, Any]:
    """The state's arrays by the paths to them, which do not depend on how a library nests its classes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
