"""Models on disk: a Hugging Face folder, or a run's checkpoint, which differs only in how the weights are stored."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from flax.traverse_util import flatten_dict

from tpt_jax.checkpoints.adapter_file import AdapterFile, fingerprint
from tpt_jax.checkpoints.checksums import verify_checksums
from tpt_jax.checkpoints.model_names import QUICKSTART, find_version, full_name, hub_parts, is_local, local_folder
from tpt_jax.config import LoRAConfig
from tpt_jax.config_parsing import check_value
from tpt_jax.errors import UserError
from tpt_jax.io.downloads import check_links
from tpt_jax.io.paths import Path, is_remote, to_path
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.huggingface_export import SIDE_FILES, copy_side_files, copy_tokenizer, save_parameters
from tpt_jax.models.huggingface_import import check_parameters, load_parameters, read_model_config
from tpt_jax.models.masters import abstract_masters, add_adapters, freeze, merge_adapters, split_trained
from tpt_jax.models.peft_export import save_adapters
from tpt_jax.models.transformer import abstract_parameters
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
    adapters: AdapterFile | None = None  # of a checkpoint that holds nothing else
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
        return cls(path, config, AdapterFile.read(path), full_name(name, version))

    def base(self) -> "ModelFolder":
        """The model that the adapters of this checkpoint belong to.

        Raises:
          UserError: it is gone, or its weights are others.
          MachineError: it has to be downloaded, and cannot be.
        """
        assert self.adapters is not None
        name = self.adapters.base
        if is_local(name) and name != QUICKSTART and not to_path(name).is_dir():
            raise UserError(f"{self.path}: holds adapters of the model {name}, which is not there; put it back")
        base = ModelFolder.open(name)
        if fingerprint(base.path) != self.adapters.fingerprint:
            raise UserError(
                f"{self.path}: holds adapters of the model {name}, whose weights have changed; put the former ones back"
            )
        return base

    def adapter_file(self, lora: LoRAConfig) -> AdapterFile:
        """What to write beside adapters that were trained from this model: they belong to it or, if they went on with
        its own adapters, to its base."""
        if self.adapters is not None and self.adapters.lora == lora:
            return self.adapters
        is_folder = self.name != QUICKSTART and (not self.name or is_local(self.name))
        name = os.fspath(self.path.resolve()) if is_folder else self.name
        return AdapterFile(name, fingerprint(self.path), lora)

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
        lora = self.adapters.lora if self.adapters else None
        if self.adapters:
            self.base().check_weights()
        expected = _shapes(nnx.to_pure_dict(split_trained(abstract_parameters(self.config, lora)[1])[0]))
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

    def load(self, layout: Layout, *, lora: LoRAConfig | None = None, seed: int = 0, verify: bool = True) -> nnx.State:
        """The parameters, sharded by the layout: all weights in fp32, or frozen weights with adapters.

        Args:
          lora: add adapters with these settings. A checkpoint's own are used if they have the same; any other ones, and
            without `lora` any, are merged into its weights.
          seed: for new adapters.
          verify: compare a checkpoint's files with their checksums first; False if that is done already.

        Raises:
          UserError: weights are missing or do not fit the config.
          BrokenCheckpointError: a checkpoint's files differ from those that were written.
        """
        if self.adapters is None:
            weights = self._load_weights(layout, lora, verify)
        else:
            _, frozen = split_trained(self.base().load(layout, lora=self.adapters.lora))
            adapted = nnx.merge_state(self.load_adapters(layout, verify=verify), frozen)
            if lora == self.adapters.lora:
                return adapted
            weights = merge_adapters(adapted)
        return weights if lora is None else add_adapters(weights, self.config, layout, lora, seed)

    def _load_weights(self, layout: Layout, lora: LoRAConfig | None, verify: bool) -> nnx.State:
        """All weights, in fp32, or in bfloat16 or int8 to be frozen."""
        dtype = jnp.float32 if lora is None else jnp.bfloat16
        if (self.path / PARAMETERS).is_dir():
            abstract = abstract_masters(self.config, layout)[1]
            return self._restore(jax.tree.map(lambda leaf: leaf.update(dtype=dtype), abstract), verify)
        if lora is None:
            return load_parameters(self.path, self.config, layout)
        # Frozen one by one: all in bfloat16 may be more than the devices hold.
        return load_parameters(self.path, self.config, layout, dtype, functools.partial(freeze, lora=lora))

    def load_adapters(self, layout: Layout, *, verify: bool = True) -> nnx.State:
        """The adapters of a checkpoint that holds nothing else.

        Raises:
          BrokenCheckpointError: as `load`.
        """
        assert self.adapters is not None
        abstract = abstract_masters(self.config, layout, self.adapters.lora)[1]
        return self._restore(split_trained(abstract)[0], verify)

    def _restore(self, abstract: nnx.State, verify: bool) -> nnx.State:
        """Reads the checkpoint's arrays in the types and shardings of an abstract state."""
        if verify:
            verify_checksums(self.path)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                restored = checkpointer.restore((self.path / PARAMETERS).resolve(), nnx.to_pure_dict(abstract))
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
      parameters: on any mesh; adapters are merged.
      dtype: the type of the written weights.

    Raises:
      UserError: the output folder is not empty, or not on a disk.
    """
    path = to_path(output)
    check_export_folder(path)
    check_value("dtype", dtype, WeightType)
    save_parameters(path, source.config, merge_adapters(parameters), dtype=dtype)
    copy_side_files(source.path, path, dtype=dtype)
    hosts.barrier("export")


def export_adapters(source: ModelFolder, layout: Layout, output: str | os.PathLike[str]) -> None:
    """Writes a checkpoint's adapters as a folder that PEFT loads; the model that they belong to is not needed.

    Raises:
      UserError: the checkpoint has no adapters; or the output folder is not empty, or not on a disk.
    """
    if source.adapters is None:
        raise UserError(f"{source.path}: holds all weights, not adapters; export it without --adapter")
    path = to_path(output)
    check_export_folder(path)
    adapters = source.load_adapters(layout)
    base = source.adapters.base
    name = os.fspath(local_folder(QUICKSTART, None)) if base == QUICKSTART else base
    save_adapters(path, source.config, adapters, source.adapters.lora, *hub_parts(name))
    if hosts.is_first():
        copy_tokenizer(source.path, path)
    hosts.barrier("export")


def check_export_folder(path: Path) -> None:
    """Raises UserError unless a Hugging Face folder can be written there."""
    if is_remote(path):
        raise UserError(f"{path}: safetensors are written to a disk; give a folder there, and copy it to the bucket")
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path}: is not empty; give a new folder")
