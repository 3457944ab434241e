"""Hugging Face checkpoints: read straight into sharded arrays, and written back.

Format: config.json, and safetensors in one file or several under model.safetensors.index.json
(https://huggingface.co/docs/safetensors). One table, below, says how their tensors and our parameters correspond, for
reading and for writing.
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tpt_jax.errors import UserError
from tpt_jax.io.files import write_atomically
from tpt_jax.io.paths import AnyPath, copy, is_remote
from tpt_jax.models.architecture import ModelConfig, from_huggingface, text_part
from tpt_jax.models.transformer import Transformer, abstract_parameters
from tpt_jax.runtime import hosts
from tpt_jax.runtime.sharding import Layout

ExportType = Literal["float32", "bfloat16"]
ParameterPath = tuple[str, ...]  # in the state: ("layers", "query")
Index = tuple[slice, ...]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
READABLE_TYPES = ("F64", "F32", "F16", "BF16")  # others are quantised, with scales that we do not read


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a Hugging Face checkpoint that is, but for the order of its dimensions, a parameter of ours.

    Attributes:
      name: in the checkpoint; {layer} stands where a layer's number goes, and then ours has a leading layer axis.
      theirs: its dimensions, letters as in attention.py; those written together are merged into one.
      ours: the dimensions of the parameter, or of one layer's slice of it.
    """

    name: str
    theirs: str
    ours: str

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.name

    @property
    def to_ours(self) -> tuple[int, ...]:
        """The transposition from their dimensions, unmerged, to ours."""
        flat = self.theirs.replace(" ", "")
        return tuple(flat.index(letter) for letter in self.ours.split())

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(math.prod(sizes[letter] for letter in merged) for merged in self.theirs.split())

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Each letter's size, from the shape of our parameter."""
        return dict(zip(self.ours.split(), shape[1:] if self.stacked else shape, strict=True))

    def read(self, source: Any, sizes: Mapping[str, int], index: Index) -> np.ndarray:
        """The part of a safetensors slice object that is ours[index]; nothing else is read from the file.

        Of merged dimensions only the first can be split: the others are no contiguous range in the file.
        """
        wanted = dict(zip(self.ours.split(), index, strict=True))
        cuts, shape = [], []
        for first, *others in self.theirs.split():
            if any(wanted[letter] != slice(0, sizes[letter]) for letter in others):
                raise ValueError(f"{self.name}: {others} cannot be split over devices when a checkpoint is read")
            start, stop = wanted[first].start, wanted[first].stop
            width = math.prod(sizes[letter] for letter in others)
            cuts.append(slice(start * width, stop * width))
            shape += [stop - start, *(sizes[letter] for letter in others)]
        return source[tuple(cuts)].reshape(shape).transpose(self.to_ours)

    def write(self, x: jax.Array) -> jax.Array:
        """Their tensor, from our parameter or one layer's slice of it."""
        shape = self.shape(dict(zip(self.ours.split(), x.shape, strict=True)))
        return x.transpose(np.argsort(self.to_ours).tolist()).reshape(shape)


def _layer(name: str, theirs: str, ours: str) -> Tensor:
    return Tensor(f"model.layers.{{layer}}.{name}.weight", theirs, ours)


_COMMON: Mapping[ParameterPath, Tensor] = {
    ("embedding",): Tensor("model.embed_tokens.weight", "V D", "V D"),
    ("layers", "query"): _layer("self_attn.q_proj", "NH D", "D N H"),
    ("layers", "key"): _layer("self_attn.k_proj", "KH D", "D K H"),
    ("layers", "value"): _layer("self_attn.v_proj", "KH D", "D K H"),
    ("layers", "output"): _layer("self_attn.o_proj", "D NH", "N H D"),
    ("layers", "gate"): _layer("mlp.gate_proj", "F D", "D F"),
    ("layers", "up"): _layer("mlp.up_proj", "F D", "D F"),
    ("layers", "down"): _layer("mlp.down_proj", "D F", "F D"),
    ("layers", "attention_norm"): _layer("input_layernorm", "D", "D"),
    ("final_norm",): Tensor("model.norm.weight", "D", "D"),
}
_UNTIED: Mapping[ParameterPath, Tensor] = {("unembedding",): Tensor("lm_head.weight", "V D", "V D")}
# Gemma and LLaMA give the name post_attention_layernorm to different norms.
_LLAMA_NORMS: Mapping[ParameterPath, Tensor] = {("layers", "mlp_norm"): _layer("post_attention_layernorm", "D", "D")}
_GEMMA_NORMS: Mapping[ParameterPath, Tensor] = {
    ("layers", "post_attention_norm"): _layer("post_attention_layernorm", "D", "D"),
    ("layers", "mlp_norm"): _layer("pre_feedforward_layernorm", "D", "D"),
    ("layers", "post_mlp_norm"): _layer("post_feedforward_layernorm", "D", "D"),
}
_QUERY_KEY_NORMS: Mapping[ParameterPath, Tensor] = {
    ("layers", "query_norm"): _layer("self_attn.q_norm", "H", "H"),
    ("layers", "key_norm"): _layer("self_attn.k_norm", "H", "H"),
}


def _table(config: ModelConfig) -> dict[ParameterPath, Tensor]:
    return {
        **_COMMON,
        **(_GEMMA_NORMS if config.is_gemma else _LLAMA_NORMS),
        **(_QUERY_KEY_NORMS if config.has_query_key_norms else {}),
        **({} if config.tie_embeddings else _UNTIED),
    }


def read_model_config(folder: AnyPath) -> ModelConfig:
    """Reads config.json of a checkpoint's folder.

    Raises:
      UserError: no such folder or file, or a model that the decoder is not (see `from_huggingface`).
    """
    return from_huggingface(_read_config(folder))


def load_parameters(folder: AnyPath, config: ModelConfig, layout: Layout, dtype: DTypeLike = jnp.float32) -> nnx.State:
    """Reads a checkpoint's safetensors into parameters sharded as the layout says.

    A host reads what its own devices hold, and has one parameter of that in memory at a time.

    Returns:
      A state of the structure of `abstract_parameters(config)[1]`, with arrays of this dtype.

    Raises:
      UserError: no safetensors; a file absent or cut short; a tensor missing, quantised, or of a shape that does not
        fit the config.
    """
    _, abstract = abstract_parameters(config)
    parameters, shardings = _flat(abstract), _flat(layout.shardings(abstract))
    table = _table(config)
    with ExitStack() as files:
        slices = _open_slices(folder, files)
        # All are looked up before the first is read: what is wrong is known within seconds.
        found = {
            path: _find(folder, slices, table[path], parameter.get_value().shape)
            for path, parameter in parameters.items()
        }
        loaded = {
            path: parameter.replace(
                _load(table[path], found[path], parameter.get_value().shape, shardings[path].get_value(), dtype)
            )
            for path, parameter in parameters.items()
        }
    return nnx.from_flat_state(loaded.items())


def save_parameters(
    folder: AnyPath,
    config: ModelConfig,
    parameters: nnx.State,
    *,
    dtype: ExportType,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes parameters as safetensors: model.safetensors, or several files with an index where one would be too large.

    Every host must call it: all take part in gathering each tensor, and the first one writes. That host's memory holds
    one file at a time. Weights that an earlier export left in the folder are removed.
    """
    values = {path: parameter.get_value() for path, parameter in _flat(parameters).items()}
    itemsize = jnp.dtype(dtype).itemsize
    shards = _plan_shards(config, values, itemsize, max_shard_bytes)
    table = _table(config)
    writes = jax.process_index() == 0
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_weights(folder)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        arrays: dict[str, np.ndarray] = {}
        for name, path, layer in shard:
            gather = _gather(table[path], dtype, values[path].sharding)
            # One at a time: running ahead would fill the devices with gathered copies.
            gathered = jax.block_until_ready(gather(values[path], layer))
            weight_map[name] = file
            if writes:
                arrays[name] = np.ascontiguousarray(gathered)
        if writes:
            _write_shard(folder / file, arrays)
    if writes and len(shards) > 1:
        total = sum(value.size for value in values.values()) * itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_atomically(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
    hosts.barrier("the weights are written")


def copy_side_files(source: AnyPath, target: AnyPath, *, dtype: ExportType) -> None:
    """Copies what a checkpoint needs beside its weights: the tokenizer, and config.json, which names their type.

    Of a model with a vision tower it is the decoder's config.json, as its weights alone are exported.

    Every host may call it; the first one copies.

    Raises:
      UserError: the source has no config.json.
    """
    config = dict(text_part(_read_config(source)))
    if jax.process_index() != 0:
        return
    for key in {"dtype", "torch_dtype"} & config.keys() or {"dtype"}:  # torch_dtype until transformers 5
        config[key] = dtype
    write_atomically(target / "config.json", json.dumps(config, indent=2) + "\n")
    for name in SIDE_FILES:
        if (source / name).is_file() and source.resolve() != target.resolve():
            copy(source / name, target / name)


def initialize_parameters(config: ModelConfig, layout: Layout, seed: int) -> nnx.State:
    """Random fp32 parameters, made where they will live; the same numbers on every mesh."""

    def initialize(key: jax.Array) -> nnx.State:
        return nnx.split(Transformer(config, rngs=nnx.Rngs(params=key)))[1]

    shardings = layout.shardings(abstract_parameters(config)[1])
    return jax.jit(initialize, out_shardings=shardings)(jax.random.key(seed))


def _flat(state: nnx.State) -> dict[ParameterPath, nnx.Variable]:
    return cast(dict[ParameterPath, nnx.Variable], dict(nnx.to_flat_state(state)))


def _read_config(folder: AnyPath) -> dict[str, Any]:
    hint = "give the folder of a Hugging Face checkpoint (config.json, *.safetensors, tokenizer files)"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {hint}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: has no config.json; {hint}")
    return _read_json(folder / "config.json")


def _read_json(path: AnyPath) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); download the file again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: of type {type(value).__name__}, not an object; download the file again")
    return value


def _open_slices(folder: AnyPath, files: ExitStack) -> dict[str, Any]:
    """Every tensor of the checkpoint by name, as a safetensors slice object of a file that `files` keeps open."""
    slices: dict[str, Any] = {}
    for path in _safetensors_files(folder):
        try:
            # "numpy" gives bfloat16 as ml_dtypes' type, which jax registers with numpy.
            file = files.enter_context(safe_open(path, framework="numpy"))
        except SafetensorError as error:
            raise UserError(f"{path}: not a whole safetensors file ({error}); download the file again") from error
        # In checkpoints with a vision tower a prefix tells the decoder's tensors from the others.
        slices |= {name.removeprefix("language_model."): file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return slices


def _safetensors_files(folder: AnyPath) -> list[AnyPath]:
    if is_remote(folder):
        raise UserError(f"{folder}: safetensors are read from a disk; copy the folder there, or mount the bucket")
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        names = sorted(set(_read_json(folder / INDEX_FILE).get("weight_map", {}).values()))
        for name in names:
            if not (folder / name).is_file():
                raise UserError(
                    f"{folder / INDEX_FILE}: names {name}, which is not in the folder; download that file too"
                )
        return [folder / name for name in names]
    others = sorted(path.name for pattern in ("*.bin", "*.pth", "*.gguf") for path in folder.glob(pattern))
    found = f"only {others[0]}" if others else "nothing to load"
    raise UserError(
        f"{folder}: has no {SINGLE_FILE} or {INDEX_FILE}, {found}; download the safetensors, or convert with "
        f"transformers: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
    )


def _find(folder: AnyPath, slices: Mapping[str, Any], tensor: Tensor, shape: tuple[int, ...]) -> list[Any]:
    """The slice objects that make up a parameter: one for each layer, or just one; checked against the config."""
    expected = tensor.shape(tensor.sizes(shape))
    found = []
    for layer in range(shape[0] if tensor.stacked else 1):
        name = tensor.name.format(layer=layer)
        if name not in slices:
            raise UserError(f"{folder}: tensor {name} is missing; the weights must be those of its config.json")
        got, kind = tuple(slices[name].get_shape()), slices[name].get_dtype()
        if kind not in READABLE_TYPES:
            raise UserError(
                f"{folder}: tensor {name} has type {kind}, not one of {', '.join(READABLE_TYPES)}; "
                f"give a checkpoint that is not quantised"
            )
        if got != expected:
            raise UserError(
                f"{folder}: tensor {name} has shape {got}, but config.json makes it {expected}; "
                f"take both from the same model"
            )
        found.append(slices[name])
    return found


def _load(
    tensor: Tensor, layers: list[Any], shape: tuple[int, ...], sharding: NamedSharding, dtype: DTypeLike
) -> jax.Array:
    """One parameter, each device's part read from the checkpoint once."""
    sizes = tensor.sizes(shape)
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}  # devices that hold copies share what was read

    def part(index: Index | None) -> np.ndarray:
        assert index is not None
        bounds = tuple(cut.indices(size)[:2] for cut, size in zip(index, shape, strict=True))
        if bounds not in parts:
            wanted = tuple(slice(*bound) for bound in bounds)
            if tensor.stacked:
                # Filled layer by layer, so that the type changes without a second copy of the whole.
                parts[bounds] = np.empty([stop - start for start, stop in bounds], dtype)
                for row, layer in enumerate(layers[wanted[0]]):
                    parts[bounds][row] = tensor.read(layer, sizes, wanted[1:])
            else:
                parts[bounds] = tensor.read(layers[0], sizes, wanted).astype(dtype)
        return parts[bounds]

    # Transfers run on behind the call: without the wait several parameters would be in host memory.
    return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, part))


def _names(config: ModelConfig) -> Iterator[tuple[str, ParameterPath, int | None]]:
    """Every tensor of an export, layer by layer: its name, our parameter, and the layer of it."""
    table = _table(config)
    for layer in range(config.num_layers):
        for path, tensor in table.items():
            if tensor.stacked:
                yield tensor.name.format(layer=layer), path, layer
    for path, tensor in table.items():
        if not tensor.stacked:
            yield tensor.name, path, None


def _plan_shards(
    config: ModelConfig, values: Mapping[ParameterPath, jax.Array], itemsize: int, max_shard_bytes: int
) -> list[list[tuple[str, ParameterPath, int | None]]]:
    """Tensors in order, a new shard wherever the next one would pass the limit."""
    shards: list[list[tuple[str, ParameterPath, int | None]]] = [[]]
    filled = 0
    for name, path, layer in _names(config):
        size = values[path].size * itemsize // (1 if layer is None else config.num_layers)
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, path, layer))
        filled += size
    return shards


@functools.cache  # so that a later export compiles nothing
def _gather(tensor: Tensor, dtype: ExportType, sharding: Any) -> Callable[..., jax.Array]:
    """Their tensor, from our parameter, or a layer of it, with this sharding: one that this host can read."""

    def gather(x: jax.Array, layer: int | None) -> jax.Array:
        x = x if layer is None else jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)
        return tensor.write(x.astype(dtype))

    # A lone host puts together what its devices hold; one of several lacks the others' parts, and needs it whole.
    whole = NamedSharding(sharding.mesh, PartitionSpec()) if jax.process_count() > 1 else None
    return jax.jit(gather, out_shardings=whole)


def _write_shard(path: AnyPath, arrays: dict[str, np.ndarray]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # there whole or not at all, as in write_atomically
    save_file(arrays, temporary, metadata={"format": "pt"})  # transformers refuses a file without this
    temporary.replace(path)


def _remove_weights(folder: AnyPath) -> None:
    """Removes an earlier export, so that one cut short is never a mix of two."""
    for path in (folder / INDEX_FILE, folder / SINGLE_FILE, *folder.glob("model-*-of-*.safetensors")):
        path.unlink(missing_ok=True)
