"""A run's checkpoints: parameters in orbax format, beside them the config and tokenizer of a model folder."""

import dataclasses
import importlib.resources
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from flax import nnx

from tpt_jax.checkpoints.checksums import verify_checksums, write_checksums
from tpt_jax.errors import UserError
from tpt_jax.io.paths import Path, copy, is_remote, to_path
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.huggingface import copy_side_files, load_parameters, read_model_config, save_parameters
from tpt_jax.models.transformer import abstract_parameters, place_abstract
from tpt_jax.runtime import hosts
from tpt_jax.runtime.sharding import Layout

PARAMETERS = "parameters"  # the orbax folder inside a checkpoint
FACTS = "training.json"
TEMPORARY = ".orbax-checkpoint-tmp"  # what orbax adds to the name of a folder that it is writing


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A model on disk: a Hugging Face checkpoint, or a run's checkpoint, which differs only in how the weights lie."""

    path: Path
    config: ModelConfig

    @classmethod
    def open(cls, name: str | os.PathLike[str], source: str | None = None) -> "ModelFolder":
        """The model in a folder, or the one that ships with the package under the name "quickstart".

        Args:
          source: where to get the model, for those who do not have it.

        Raises:
          UserError: the folder is missing or is not a model that the decoder knows.
        """
        if str(name) == "quickstart":
            path = to_path(str(importlib.resources.files("tpt_jax.quickstart") / "model"))
        else:
            path = to_path(name)
        if source is not None and not path.is_dir():
            raise UserError(f"{path}: no such folder; download {source} there, or set model.path to where you have it")
        return cls(path, read_model_config(path))

    def load(self, layout: Layout) -> nnx.State:
        """The parameters in fp32, sharded as the layout says.

        Raises:
          UserError: weights are missing or do not fit the config.
          BrokenCheckpointError: a run's checkpoint is not what was written.
        """
        stored = (self.path / PARAMETERS).resolve()
        if not stored.is_dir():
            return load_parameters(self.path, self.config, layout)
        verify_checksums(self.path)
        abstract = place_abstract(abstract_parameters(self.config)[1], layout)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                restored = checkpointer.restore(stored, nnx.to_pure_dict(abstract))
        except (ValueError, FileNotFoundError, KeyError) as error:
            raise UserError(
                f"{self.path}: cannot be restored ({str(error).splitlines()[0]}); use another checkpoint"
            ) from error
        nnx.replace_by_pure_dict(abstract, restored)
        return abstract


class CheckpointWriter:
    """Writes checkpoints in the background, each whole or not at all, with config, tokenizer and seal."""

    def __init__(self) -> None:
        self._write_beside: Callable[[], None] = lambda: None  # of the checkpoint that is being written
        # Orbax calls it on the first host when all weights are written, before the folder takes its name.
        options = ocp.AsyncOptions(post_finalization_callback=lambda: self._write_beside())
        self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)

    def save(
        self,
        path: Path,
        parameters: nnx.State,
        source: ModelFolder,
        facts: Mapping[str, Any],
        beside: Sequence[Path] = (),
    ) -> None:
        """Returns once the parameters are copied off the devices; the one before is then written.

        Args:
          source: whose config and tokenizer go beside the parameters.
          facts: about the training, for `read_facts`.
          beside: files and folders to copy into it.
        """
        self.wait()
        remove_unfinished(path)

        def write_beside() -> None:
            folder = being_written(path)
            copy_side_files(source.path, folder, dtype="float32")
            (folder / FACTS).write_text(json.dumps(dict(facts), indent=2) + "\n")
            for each in beside:
                copy(each, folder / each.name)
            write_checksums(folder)

        self._write_beside = write_beside
        items = {PARAMETERS: ocp.args.StandardSave(nnx.to_pure_dict(parameters))}  # pyright: ignore[reportCallIssue]
        self._checkpointer.save(path.resolve(), args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Returns once the last checkpoint is there."""
        self._checkpointer.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._checkpointer.close()


def is_complete(path: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return path.is_dir() and ocp.utils.is_checkpoint_finalized(path)


def unfinished(path: Path) -> Path | None:
    """The folder in which orbax is writing what is to be that one, or was when it was killed."""
    return next(iter(path.parent.glob(f"{path.name}{TEMPORARY}*")), None)


def being_written(path: Path) -> Path:
    """Where orbax is writing what is to be that folder; in a bucket it has its name from the start."""
    return unfinished(path) or path


def remove_unfinished(path: Path) -> None:
    """Removes what a killed process left of a checkpoint; every host may call it."""
    if hosts.is_first():
        left = unfinished(path) or (path if path.is_dir() and not is_complete(path) else None)
        if left is not None:
            left.rmtree()


def read_facts(path: Path) -> dict[str, Any]:
    """What is known of the training that made a checkpoint."""
    return json.loads((path / FACTS).read_text())


def export(checkpoint: ModelFolder, output: Path, layout: Layout, dtype: str) -> None:
    """Writes a Hugging Face folder that transformers and vLLM load."""
    if is_remote(output):
        raise UserError(f"{output}: safetensors are written to a disk; give a folder there, and copy it to the bucket")
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: is not empty; give a new folder")
    parameters = checkpoint.load(layout)
    save_parameters(output, checkpoint.config, parameters, dtype=dtype)  # pyright: ignore[reportArgumentType]
    copy_side_files(checkpoint.path, output, dtype=dtype)  # pyright: ignore[reportArgumentType]
    hosts.barrier("the folder is written")
