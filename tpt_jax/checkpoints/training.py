"""The two newest saves of an unfinished training, in orbax: weights, optimizer and data iterator."""

import dataclasses
from typing import Any

import jax
import orbax.checkpoint as ocp

from tpt_jax.checkpoints.checksums import BrokenCheckpointError, verify_checksums, write_checksums
from tpt_jax.checkpoints.storage import system_errors
from tpt_jax.checkpoints.writer import unfinished_folder
from tpt_jax.io.paths import AnyPath, to_path
from tpt_jax.terminal import say


@dataclasses.dataclass(frozen=True)
class Saved:
    """One save.

    Attributes:
      step: the number of steps done.
      state: a pytree of arrays.
      progress: the state of grain's iterator, which is about to yield the next batch, and the counts so far.
    """

    step: int
    state: Any
    progress: dict[str, Any]


class TrainingCheckpoints:
    """Saves in a folder, written atomically and in the background while training continues."""

    def __init__(self, path: AnyPath, save_every: int):
        """Uses a folder that is new, or has the saves of an earlier process.

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
        """Whether to save after this many steps."""
        return num_steps % self._save_every == 0

    def save(self, saved: Saved) -> None:
        """Starts writing a save; returns once the state is copied off the devices.

        Raises:
          OSError: this save or the one before could not be written.
        """
        with system_errors(self._path):
            self._manager.wait_until_finished()
            self._save(saved)

    def _save(self, saved: Saved) -> None:
        self._saving = saved.step
        items: Any = {
            "state": ocp.args.StandardSave(_named(saved.state)),  # pyright: ignore[reportCallIssue]
            "progress": ocp.args.JsonSave(saved.progress),  # pyright: ignore[reportCallIssue]
        }
        self._manager.save(saved.step, args=ocp.args.Composite(**items))

    def restore(self, abstract: Any) -> Saved | None:
        """The newest intact save; None if there is none. Broken ones are removed.

        Args:
          abstract: shapes and shardings of the state, on any mesh.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                verify_checksums(self._path / str(step))
                return self._restore(step, abstract)
            except BrokenCheckpointError as error:
                say(f"{error}; falling back to an earlier save, if there is one")
                self._manager.delete(step)
        return None

    def _restore(self, step: int, abstract: Any) -> Saved:
        items: Any = {
            "state": ocp.args.StandardRestore(_named(abstract)),  # pyright: ignore[reportCallIssue]
            "progress": ocp.args.JsonRestore(),  # pyright: ignore[reportCallIssue]
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        leaves = [restored["state"][name] for name in _named(abstract)]
        return Saved(step, jax.tree.unflatten(jax.tree.structure(abstract), leaves), restored["progress"])

    def _write_checksums(self) -> None:
        """Orbax calls it on the first host when everything is written, before the folder gets its final name."""
        path = self._path / str(self._saving)
        write_checksums(unfinished_folder(path) or path)

    def close(self) -> None:
        """Waits for the save being written.

        Raises:
          OSError: it could not be written.
        """
        with system_errors(self._path):
            self._manager.close()


def _named(state: Any) -> dict[str, Any]:
    """The state's arrays by their paths, which do not depend on how a library nests its classes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
