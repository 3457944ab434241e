"""Models on disk: a Hugging Face folder, or a run's checkpoint, which differs only in how the weights are stored."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

import orbax.checkpoint as ocp
from flax import nnx
from flax.traverse_util import flatten_dict

from tpt_jax.checkpoints.checksums import verify_checksums
from tpt_jax.checkpoints.model_names import find_version, full_name, local_folder
from tpt_jax.config import check_value
from tpt_jax.errors import UserError
from tpt_jax.io.downloads import check_links
from tpt_jax.io.paths import Path, is_remote, to_path
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.huggingface_export import SIDE_FILES, copy_side_files, save_parameters
from tpt_jax.models.huggingface_import import check_parameters, load_parameters, read_model_config
from tpt_jax.models.transformer import abstract_parameters, place_abstract
from tpt_jax.runtime import hosts
from tpt_jax.runtime.sharding import Layout

PARAMETERS = "parameters"  # the orbax folder inside a checkpoint

WeightType = Literal["bfloat16", "float32"]


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A folder that holds a model: weights, config.json and the tokenizer's files.

    Attributes:
      name: what it was opened as; of a model on the Hub or on Kaggle, with its commit or version.
    """

    path: Path
    config: ModelConfig
    name: str = ""

    @classmethod
    def open(cls, name: str | os.PathLike[str], version: str | None = None) -> "ModelFolder":
        """Opens a folder, a model on the Hugging Face Hub or on Kaggle, or "quickstart", which ships with the package.

        Several hosts call it together. A model that is not on this machine is downloaded.

        Args:
          name: a folder; "owner/name" or "hf://owner/name@revision"; or "kaggle://owner/model/framework/variation".
          version: the commit on the Hub, or version on Kaggle, that the model had earlier; None for the present one.

        Raises:
          UserError: the model is missing, the decoder does not support it, or a file that goes into checkpoints is a
            link to somewhere else.
          MachineError: the Hub or Kaggle cannot be reached.
        """
        version = find_version(name) if version is None else version
        path = local_folder(name, version)
        config = read_model_config(path)
        check_links(path, ("config.json", *SIDE_FILES))
        return cls(path, config, full_name(name, version))

    def check_weights(self) -> None:
        """Checks names, types and shapes of the weights against the config, without reading them: within a second.

        Call it before anything is compiled or written, so that a mistake costs neither time nor a folder.

        Raises:
          UserError: weights are missing, quantized, or do not fit the config.
        """
        stored = (self.path / PARAMETERS).resolve()
        if not stored.is_dir():
            check_parameters(self.path, self.config)
            return
        expected = _shapes(nnx.to_pure_dict(abstract_parameters(self.config)[1]))
        try:
            actual = _shapes(ocp.PyTreeCheckpointHandler().metadata(stored).tree)
        except (ValueError, FileNotFoundError, KeyError) as error:
            raise self._unreadable(error) from error
        for name, shape in expected.items():
            if actual.get(name) != shape:
                found = f"has shape {actual[name]}" if name in actual else "is missing"
                raise UserError(
                    f"{self.path}: parameter {name} {found}, but config.json implies shape {shape}; "
                    "take both from the same checkpoint"
                )

    def load(self, layout: Layout, *, verify: bool = True) -> nnx.State:
        """The parameters in fp32, sharded by the layout.

        Args:
          verify: compare a checkpoint's files with their checksums first; False if that is done already.

        Raises:
          UserError: weights are missing or do not fit the config.
          BrokenCheckpointError: a checkpoint's files differ from those that were written.
        """
        stored = (self.path / PARAMETERS).resolve()
        if not stored.is_dir():
            return load_parameters(self.path, self.config, layout)
        if verify:
            verify_checksums(self.path)
        abstract = place_abstract(abstract_parameters(self.config)[1], layout)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                restored = checkpointer.restore(stored, nnx.to_pure_dict(abstract))
        except (ValueError, FileNotFoundError, KeyError) as error:
            raise self._unreadable(error) from error
        nnx.replace_by_pure_dict(abstract, restored)
        return abstract

    def _unreadable(self, error: Exception) -> UserError:
        return UserError(f"{self.path}: cannot be restored ({str(error).splitlines()[0]}); use another checkpoint")


def _shapes(parameters: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter, by names such as layers.query."""
    flat: dict[str, Any] = flatten_dict(parameters, sep=".")
    return {name: tuple(value.shape) for name, value in flat.items()}


def export(
    source: ModelFolder, parameters: nnx.State, output: str | os.PathLike[str], dtype: WeightType = "bfloat16"
) -> None:
    """Writes a Hugging Face folder that transformers and vLLM load.

    Args:
      source: folder of the model, for its config and tokenizer.
      parameters: fp32, on any mesh.
      dtype: the type of the written weights.

    Raises:
      UserError: the output folder is not empty, or not on a disk.
    """
    path = to_path(output)
    check_export_folder(path)
    check_value("dtype", dtype, WeightType)
    save_parameters(path, source.config, parameters, dtype=dtype)
    copy_side_files(source.path, path, dtype=dtype)
    hosts.barrier("export")


def check_export_folder(path: Path) -> None:
    """Raises UserError unless a Hugging Face folder can be written there."""
    if is_remote(path):
        raise UserError(f"{path}: safetensors are written to a disk; give a folder there, and copy it to the bucket")
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path}: is not empty; give a new folder")
