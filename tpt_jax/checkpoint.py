"""A run's checkpoints: parameters in orbax format, beside them the config and tokenizer of a model folder."""

import dataclasses
import importlib.resources
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from flax import nnx

from tpt_jax.errors import UserError
from tpt_jax.models.config import ModelConfig
from tpt_jax.models.huggingface import copy_side_files, load_config, load_parameters, save_parameters
from tpt_jax.models.transformer import abstract_parameters, place_abstract
from tpt_jax.sharding import Layout

PARAMETERS = "parameters"  # the orbax folder inside a checkpoint
FACTS = "training.json"


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A model on disk: a Hugging Face checkpoint, or a run's checkpoint, which differs only in how the weights lie."""

    path: Path
    config: ModelConfig

    @classmethod
    def open(cls, name: str | Path, source: str | None = None) -> "ModelFolder":
        """The model in a folder, or the one that ships with the package under the name "quickstart".

        Args:
          source: where to get the model, for those who do not have it.

        Raises:
          UserError: the folder is missing or is not a model that the decoder knows.
        """
        if str(name) == "quickstart":
            path = Path(str(importlib.resources.files("tpt_jax.quickstart") / "model"))
        else:
            path = Path(name).expanduser()
        if source is not None and not path.is_dir():
            raise UserError(f"{path}: no such folder; download {source} there, or set model.path to where you have it")
        return cls(path, load_config(path))

    def load(self, layout: Layout) -> nnx.State:
        """The parameters in fp32, sharded as the layout says.

        Raises:
          UserError: weights are missing or do not fit the config.
        """
        stored = (self.path / PARAMETERS).resolve()
        if not stored.is_dir():
            return load_parameters(self.path, self.config, layout)
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


def save_checkpoint(
    path: Path,
    parameters: nnx.State,
    source: ModelFolder,
    facts: Mapping[str, Any],
    beside: Sequence[Path] = (),
) -> None:
    """Writes a run's checkpoint, whole or not at all.

    Args:
      source: whose config and tokenizer go beside the parameters.
      facts: about the training, for `read_facts`.
      beside: files and folders to copy into it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
    temporary.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((temporary / PARAMETERS).resolve(), nnx.to_pure_dict(parameters))
    copy_side_files(source.path, temporary, dtype="float32")
    (temporary / FACTS).write_text(json.dumps(dict(facts), indent=2) + "\n", encoding="utf-8")
    for each in beside:
        (shutil.copytree if each.is_dir() else shutil.copy)(each, temporary / each.name)
    os.rename(temporary, path)


def read_facts(path: Path) -> dict[str, Any]:
    """What is known of the training that made a checkpoint."""
    return json.loads((path / FACTS).read_text(encoding="utf-8"))


def export(checkpoint: ModelFolder, output: Path, layout: Layout, dtype: str) -> None:
    """Writes a Hugging Face folder that transformers and vLLM load."""
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: is not empty; give a new folder")
    parameters = checkpoint.load(layout)
    save_parameters(output, checkpoint.config, parameters, dtype=dtype)  # pyright: ignore[reportArgumentType]
    copy_side_files(checkpoint.path, output, dtype=dtype)  # pyright: ignore[reportArgumentType]
