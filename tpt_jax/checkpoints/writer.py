"""Writes a run's checkpoints: orbax parameters, and the config and tokenizer that make them a model folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from flax import nnx

from tpt_jax.checkpoints.checksums import write_checksums
from tpt_jax.checkpoints.model_folder import PARAMETERS, ModelFolder
from tpt_jax.checkpoints.storage import system_errors
from tpt_jax.config import LoRAConfig
from tpt_jax.io.paths import Path, copy
from tpt_jax.models.huggingface_export import copy_side_files
from tpt_jax.models.masters import split_trained
from tpt_jax.runtime import hosts

FACTS = "training.json"  # about the training that made a checkpoint
TEMPORARY = ".orbax-checkpoint-tmp"  # orbax's suffix for a folder that it is writing


class CheckpointWriter:
    """Writes checkpoints atomically and in the background, with config, tokenizer and checksums."""

    def __init__(self) -> None:
        self._path = Path()  # of the checkpoint being written
        self._write_side_files: Callable[[], None] = lambda: None
        # Orbax calls it on the first host when all weights are written, before the folder gets its final name.
        options = ocp.AsyncOptions(post_finalization_callback=lambda: self._write_side_files())
        self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)

    def save(
        self,
        path: Path,
        parameters: nnx.State,
        source: ModelFolder,
        facts: Mapping[str, Any],
        extra_files: Sequence[Path] = (),
        lora: LoRAConfig | None = None,
    ) -> None:
        """Starts writing a checkpoint, after the previous one; returns once the parameters are copied off the devices.

        Args:
          parameters: only those that are trained are written.
          source: the model that training began with; its config and tokenizer go with the parameters.
          facts: about the training, for `read_facts`.
          extra_files: files and folders to copy into the checkpoint.
          lora: settings of the parameters' adapters.
        """
        self.wait()
        self._path = path
        remove_unfinished(path)
        adapters = source.adapter_file(lora) if lora is not None else None

        def write_side_files() -> None:
            folder = unfinished_folder(path) or path  # in a bucket it has its final name from the start
            copy_side_files(source.path, folder, dtype="float32")
            (folder / FACTS).write_text(json.dumps(dict(facts), indent=2) + "\n")
            if adapters is not None:
                adapters.write(folder)
            for each in extra_files:
                copy(each, folder / each.name)
            write_checksums(folder)

        self._write_side_files = write_side_files
        items = {PARAMETERS: ocp.args.StandardSave(nnx.to_pure_dict(split_trained(parameters)[0]))}  # pyright: ignore[reportCallIssue]
        with system_errors(path):
            self._checkpointer.save(path.resolve(), args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Returns once the last checkpoint is complete.

        Raises:
          OSError: it could not be written.
        """
        with system_errors(self._path):
            self._checkpointer.wait_until_finished()

    def close(self) -> None:
        """As `wait`; frees the writer's threads."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()


def is_complete(path: Path) -> bool:
    """Whether a checkpoint is complete."""
    return path.is_dir() and ocp.utils.is_checkpoint_finalized(path)


def unfinished_folder(path: Path) -> Path | None:
    """The temporary folder in which orbax is writing this checkpoint, or was when it was killed."""
    return next(iter(path.parent.glob(f"{path.name}{TEMPORARY}*")), None)


def remove_unfinished(path: Path) -> None:
    """Removes what a killed process left of a checkpoint; every host may call it."""
    if hosts.is_first():
        left = unfinished_folder(path) or (path if path.is_dir() and not is_complete(path) else None)
        if left is not None:
            left.rmtree()


def read_facts(path: Path) -> dict[str, Any]:
    """The facts about the training that made a checkpoint."""
    return json.loads((path / FACTS).read_text())
