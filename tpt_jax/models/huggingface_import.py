"""Loads Hugging Face checkpoints: config.json, and safetensors straight into sharded arrays."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from tpt_jax.io.paths import AnyPath
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.huggingface_config import from_huggingface
from tpt_jax.models.huggingface_files import open_tensors, read_config_json
from tpt_jax.models.huggingface_names import check_all_used, check_tensor, checkpoint_name, find_prefix
from tpt_jax.models.huggingface_tensors import Index, ParameterPath, TensorMapping, flat_variables, tensor_mappings
from tpt_jax.models.transformer import abstract_parameters
from tpt_jax.runtime.sharding import Layout


def read_model_config(folder: AnyPath) -> ModelConfig:
    """Reads the model config from config.json in a checkpoint folder.

    Raises:
      UserError: folder or file missing, or a model that is not supported (see `from_huggingface`).
    """
    return from_huggingface(read_config_json(folder))


def check_parameters(folder: AnyPath, config: ModelConfig) -> None:
    """Checks names, types and shapes of a checkpoint's tensors, without reading them: in milliseconds.

    Raises:
      UserError: as `load_parameters`.
    """
    with ExitStack() as files:
        _find_parameters(folder, config, open_tensors(folder, files))


def load_parameters(
    folder: AnyPath,
    config: ModelConfig,
    layout: Layout,
    dtype: DTypeLike = jnp.float32,
    convert: Callable[[ParameterPath, nnx.Variable], nnx.Variable] = lambda path, parameter: parameter,
) -> nnx.State:
    """Loads a checkpoint's safetensors as parameters, sharded by the layout.

    Each host reads only its own devices' shards, and holds one parameter's shards in host memory at a time.

    Args:
      convert: makes of each parameter, as soon as it is loaded, what is kept of it.

    Returns:
      A state with the structure of `abstract_parameters(config)[1]` and arrays of this dtype.

    Raises:
      UserError: no safetensors; a file missing or truncated; a tensor missing, quantized, of a shape that does not
        match the config, or without a place in the model.
    """
    _, abstract = abstract_parameters(config)
    parameters, shardings = flat_variables(abstract), flat_variables(layout.shardings(abstract))
    mappings = tensor_mappings(config)
    with ExitStack() as files:
        # Finds all tensors before it reads any, so that errors show within seconds.
        sources = _find_parameters(folder, config, open_tensors(folder, files))
        loaded = {}
        for path, parameter in parameters.items():
            shape, sharding = parameter.get_value().shape, shardings[path].get_value()
            loaded[path] = convert(
                path, parameter.replace(_load(mappings[path], sources[path], shape, sharding, dtype))
            )
    return nnx.from_flat_state(loaded.items())


def _find_parameters(
    folder: AnyPath, config: ModelConfig, tensors: Mapping[str, Any]
) -> dict[ParameterPath, list[Any]]:
    """The slice objects of every parameter, one per layer if it is stacked, with their types and shapes checked."""
    parameters = flat_variables(abstract_parameters(config)[1])
    mappings = tensor_mappings(config)
    prefix = find_prefix(folder, tensors)
    found: dict[ParameterPath, list[Any]] = {}
    names: set[str] = set()
    for path, parameter in parameters.items():
        mapping, shape = mappings[path], parameter.get_value().shape
        layers = range(shape[0]) if mapping.is_stacked else [0]
        own = [checkpoint_name(mapping.name.format(layer=layer), prefix, tensors) for layer in layers]
        for name in own:
            check_tensor(folder, name, mapping.checkpoint_shape(mapping.sizes(shape)), tensors)
        found[path] = [tensors[name] for name in own]
        names.update(own)
    check_all_used(folder, prefix, names, tensors)
    return found


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
