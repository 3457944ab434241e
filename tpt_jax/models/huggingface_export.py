"""Writes Hugging Face checkpoints: parameters as safetensors, config.json and the tokenizer files."""

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from tpt_jax.io.files import write_atomically
from tpt_jax.io.paths import AnyPath, copy
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.huggingface_config import decoder_config
from tpt_jax.models.huggingface_files import read_config_json
from tpt_jax.models.huggingface_tensors import (
    INDEX_FILE,
    SINGLE_FILE,
    ParameterPath,
    TensorMapping,
    flat_variables,
    tensor_mappings,
)
from tpt_jax.runtime import hosts
from tpt_jax.tokenizer import TOKENIZER_FILES

ExportType = Literal["float32", "bfloat16"]

SIDE_FILES = (*TOKENIZER_FILES, "generation_config.json")
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
QUANTIZATION = ("quantization_config", "quantization")  # transformers' key and MLX's


def save_parameters(
    folder: AnyPath,
    config: ModelConfig,
    parameters: nnx.State,
    *,
    dtype: ExportType,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes parameters as model.safetensors, or as several files with an index if one would exceed max_shard_bytes.

    Every host must call this: all take part in gathering each tensor, and the first one writes. Its memory holds one
    file at a time. Weights of an earlier export in the folder are removed.
    """
    values = {path: parameter.get_value() for path, parameter in flat_variables(parameters).items()}
    itemsize = jnp.dtype(dtype).itemsize
    shards = _plan_shards(config, values, itemsize, max_shard_bytes)
    mappings = tensor_mappings(config)
    is_writer = jax.process_index() == 0
    if is_writer:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_weights(folder)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        arrays: dict[str, np.ndarray] = {}
        for name, path, layer in shard:
            gather = _compile_gather(mappings[path], dtype, values[path].sharding)
            # One tensor at a time: running ahead would fill the devices with gathered copies.
            gathered = jax.block_until_ready(gather(values[path], layer))
            weight_map[name] = file
            if is_writer:
                arrays[name] = np.ascontiguousarray(gathered)
        if is_writer:
            write_shard(folder / file, arrays)
    if is_writer and len(shards) > 1:
        total_size = sum(value.size for value in values.values()) * itemsize
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        write_atomically(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
    hosts.barrier("the weights are written")


def copy_side_files(source: AnyPath, target: AnyPath, *, dtype: ExportType) -> None:
    """Copies a checkpoint's tokenizer files and config.json, with dtype set to that of the exported weights.

    For a model with a vision tower this writes the decoder's config.json, since only the decoder is exported. Special
    tokens that only the whole model's config.json names go with it.

    Every host may call this; the first one copies.

    Raises:
      UserError: the source has no config.json.
    """
    whole = read_config_json(source)
    config = {name: whole[name] for name in SPECIAL_IDS if name in whole} | dict(decoder_config(whole))
    if jax.process_index() != 0:
        return
    for key in QUANTIZATION:  # what is exported is not quantized
        config.pop(key, None)
    for key in {"dtype", "torch_dtype"} & config.keys() or {"dtype"}:  # torch_dtype before transformers 5
        config[key] = dtype
    write_atomically(target / "config.json", json.dumps(config, indent=2) + "\n")
    copy_tokenizer(source, target)


def copy_tokenizer(source: AnyPath, target: AnyPath) -> None:
    """Copies a checkpoint's tokenizer files, and its generation_config.json."""
    for name in SIDE_FILES:
        if (source / name).exists() and source.resolve() != target.resolve():
            copy(source / name, target / name)


def _tensors(config: ModelConfig) -> Iterator[tuple[str, ParameterPath, int | None]]:
    """Every exported tensor, layer by layer: its name, the parameter's path, and the layer (None if not stacked)."""
    mappings = tensor_mappings(config)
    for layer in range(config.num_layers):
        for path, mapping in mappings.items():
            if mapping.is_stacked:
                yield mapping.name.format(layer=layer), path, layer
    for path, mapping in mappings.items():
        if not mapping.is_stacked:
            yield mapping.name, path, None


def _plan_shards(
    config: ModelConfig, values: Mapping[ParameterPath, jax.Array], itemsize: int, max_shard_bytes: int
) -> list[list[tuple[str, ParameterPath, int | None]]]:
    """Splits the tensors, in order, into shards of at most max_shard_bytes (or a single larger tensor)."""
    shards: list[list[tuple[str, ParameterPath, int | None]]] = [[]]
    shard_bytes = 0
    for name, path, layer in _tensors(config):
        size = values[path].size * itemsize // (1 if layer is None else config.num_layers)
        if shards[-1] and shard_bytes + size > max_shard_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append((name, path, layer))
        shard_bytes += size
    return shards


@functools.cache  # so that a later export compiles nothing
def _compile_gather(mapping: TensorMapping, dtype: ExportType, sharding: Any) -> Callable[..., jax.Array]:
    """A jitted function from a parameter and an optional layer to the checkpoint tensor, readable by this host."""

    def gather(parameter: jax.Array, layer: int | None) -> jax.Array:
        if layer is not None:
            parameter = jax.lax.dynamic_index_in_dim(parameter, layer, keepdims=False)
        return mapping.to_checkpoint(parameter.astype(dtype))

    # A single host assembles the array from its own devices; with several, each needs a full replica.
    replicated = NamedSharding(sharding.mesh, PartitionSpec()) if jax.process_count() > 1 else None
    return jax.jit(gather, out_shardings=replicated)


def write_shard(path: AnyPath, arrays: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # renamed once complete, as in write_atomically
    save_file(arrays, temporary, metadata={"format": "pt"})  # transformers refuses a file without this
    temporary.replace(path)


def _remove_weights(folder: AnyPath) -> None:
    """Removes an earlier export, so that an interrupted one never leaves a mix of the two."""
    for path in (folder / INDEX_FILE, folder / SINGLE_FILE, *folder.glob("model-*-of-*.safetensors")):
        path.unlink(missing_ok=True)
