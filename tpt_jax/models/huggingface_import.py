"""Loads Hugging Face checkpoints: config.json, and safetensors straight into sharded arrays."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from tpt_jax.errors import UserError
from tpt_jax.io.downloads import read_json_object
from tpt_jax.io.paths import AnyPath, is_remote
from tpt_jax.models.architecture import ModelConfig, from_huggingface
from tpt_jax.models.huggingface_tensors import (
    INDEX_FILE,
    SINGLE_FILE,
    Index,
    TensorMapping,
    flat_variables,
    tensor_mappings,
)
from tpt_jax.models.transformer import abstract_parameters
from tpt_jax.runtime.sharding import Layout

READABLE_TYPES = ("F64", "F32", "F16", "BF16")  # other types are quantized and come with scales, which we do not read


def read_model_config(folder: AnyPath) -> ModelConfig:
    """Reads the model config from config.json in a checkpoint folder.

    Raises:
      UserError: folder or file missing, or a model that is not supported (see `from_huggingface`).
    """
    return from_huggingface(read_config_json(folder))


def read_config_json(folder: AnyPath) -> dict[str, Any]:
    """The contents of config.json in a checkpoint folder.

    Raises:
      UserError: folder or file missing, or not JSON.
    """
    hint = "give the folder of a Hugging Face checkpoint (config.json, *.safetensors, tokenizer files)"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {hint}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: has no config.json; {hint}")
    return read_json_object(folder / "config.json")


def load_parameters(folder: AnyPath, config: ModelConfig, layout: Layout, dtype: DTypeLike = jnp.float32) -> nnx.State:
    """Loads a checkpoint's safetensors as parameters, sharded by the layout.

    Each host reads only its own devices' shards, and holds one parameter's shards in host memory at a time.

    Returns:
      A state with the structure of `abstract_parameters(config)[1]` and arrays of this dtype.

    Raises:
      UserError: no safetensors; a file missing or truncated; a tensor missing, quantized, or of a shape that does not
        match the config.
    """
    _, abstract = abstract_parameters(config)
    parameters, shardings = flat_variables(abstract), flat_variables(layout.shardings(abstract))
    mappings = tensor_mappings(config)
    with ExitStack() as files:
        slices = _open_slices(folder, files)
        # Check all tensors before reading any, so that errors show within seconds.
        sources = {
            path: _find_tensors(folder, slices, mappings[path], parameter.get_value().shape)
            for path, parameter in parameters.items()
        }
        loaded = {
            path: parameter.replace(
                _load(mappings[path], sources[path], parameter.get_value().shape, shardings[path].get_value(), dtype)
            )
            for path, parameter in parameters.items()
        }
    return nnx.from_flat_state(loaded.items())


def _open_slices(folder: AnyPath, files: ExitStack) -> dict[str, Any]:
    """Every tensor of the checkpoint by name, as a safetensors slice object of a file that `files` keeps open."""
    slices: dict[str, Any] = {}
    for path in _safetensors_files(folder):
        try:
            # "numpy" returns bfloat16 as the ml_dtypes type that jax registers with numpy.
            file = files.enter_context(safe_open(path, framework="numpy"))
        except SafetensorError as error:
            raise UserError(f"{path}: not a complete safetensors file ({error}); download the file again") from error
        # In checkpoints with a vision tower, this prefix marks the decoder's tensors.
        slices |= {name.removeprefix("language_model."): file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return slices


def _safetensors_files(folder: AnyPath) -> list[AnyPath]:
    if is_remote(folder):
        raise UserError(f"{folder}: safetensors must be on a local disk; copy the folder there, or mount the bucket")
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        names = sorted(set(read_json_object(folder / INDEX_FILE).get("weight_map", {}).values()))
        for name in names:
            if not (folder / name).is_file():
                raise UserError(f"{folder / INDEX_FILE}: lists {name}, which is missing; download that file too")
        return [folder / name for name in names]
    other_formats = sorted(path.name for pattern in ("*.bin", "*.pth", "*.gguf") for path in folder.glob(pattern))
    contents = f"only {other_formats[0]}" if other_formats else "nothing to load"
    raise UserError(
        f"{folder}: has no {SINGLE_FILE} or {INDEX_FILE}, {contents}; download the safetensors, or convert with "
        f"transformers: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
    )


def _find_tensors(
    folder: AnyPath, slices: Mapping[str, Any], mapping: TensorMapping, shape: tuple[int, ...]
) -> list[Any]:
    """The slice objects of a parameter, one per layer if it is stacked, with their types and shapes checked."""
    expected_shape = mapping.checkpoint_shape(mapping.sizes(shape))
    sources = []
    for layer in range(shape[0] if mapping.is_stacked else 1):
        name = mapping.name.format(layer=layer)
        if name not in slices:
            raise UserError(f"{folder}: tensor {name} is missing; the weights must match config.json")
        actual_shape, dtype = tuple(slices[name].get_shape()), slices[name].get_dtype()
        if dtype not in READABLE_TYPES:
            raise UserError(
                f"{folder}: tensor {name} has type {dtype}, not one of {', '.join(READABLE_TYPES)}; "
                f"give a checkpoint that is not quantized"
            )
        if actual_shape != expected_shape:
            raise UserError(
                f"{folder}: tensor {name} has shape {actual_shape}, but config.json implies {expected_shape}; "
                f"take both from the same model"
            )
        sources.append(slices[name])
    return sources


def _load(
    mapping: TensorMapping, layers: list[Any], shape: tuple[int, ...], sharding: NamedSharding, dtype: DTypeLike
) -> jax.Array:
    """One parameter; each distinct shard is read from the checkpoint once."""
    sizes = mapping.sizes(shape)
    shards: dict[tuple[tuple[int, int], ...], np.ndarray] = {}  # by bounds: replicas share one read

    def shard(index: Index | None) -> np.ndarray:
        assert index is not None
        bounds = tuple(cut.indices(size)[:2] for cut, size in zip(index, shape, strict=True))
        if bounds not in shards:
            region = tuple(slice(*bound) for bound in bounds)
            if mapping.is_stacked:
                # Filled layer by layer, so that the conversion never holds a second copy of the shard.
                shards[bounds] = np.empty([stop - start for start, stop in bounds], dtype)
                for row, layer in enumerate(layers[region[0]]):
                    shards[bounds][row] = mapping.read(layer, sizes, region[1:])
            else:
                shards[bounds] = mapping.read(layers[0], sizes, region).astype(dtype)
        return shards[bounds]

    # Transfers are asynchronous: without waiting, several parameters would be in host memory at once.
    return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, shard))
