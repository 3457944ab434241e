"""Tensor names in checkpoints: where the decoder is, and what is wrong with one that is not as config.json says."""

from collections.abc import Collection, Mapping
from typing import Any

from tpt_jax.errors import UserError
from tpt_jax.io.paths import AnyPath
from tpt_jax.models.huggingface_files import read_config_json

# The names of the mappings begin with "model."; checkpoints have one of these in its place.
PREFIXES = (
    "model.",  # a decoder with its output layer
    "model.language_model.",  # within a model with a vision tower
    "language_model.model.",  # the same, as transformers has always written it
    "language_model.",
    "",  # a decoder alone, saved by AutoModel
)
HEAD_PREFIXES = ("", "language_model.", "model.")
READABLE_TYPES = ("F64", "F32", "F16", "BF16")  # other types are quantized and come with scales, which we do not read
QUANTIZED_TYPES = {"F8_E4M3": "fp8", "F8_E5M2": "fp8", "U8": "bitsandbytes", "I8": "8-bit integers", "U32": "MLX"}
QUANTIZED_NAMES = {"qweight": "AWQ or GPTQ", "weight_packed": "compressed-tensors"}  # in place of "weight"
WRAPPERS = {  # that training puts around a model, and that are not saved with it
    "base_model.model.": "an adapter is around the model; save model.merge_and_unload() instead",
    "_orig_mod.": "the model was compiled; save model._orig_mod instead",
    "module.": "the model was split over devices; save model.module instead",
}
EMBEDDING = "embed_tokens.weight"


def find_prefix(folder: AnyPath, tensors: Collection[str]) -> str:
    """What the names of the decoder's tensors begin with: the prefix under which the embedding is.

    Raises:
      UserError: the embedding is missing, or under another prefix.
    """
    for prefix in PREFIXES:
        if prefix + EMBEDDING in tensors:
            return prefix
    raise UserError(_missing_message(folder, f"model.{EMBEDDING}", tensors))


def checkpoint_name(name: str, prefix: str, tensors: Collection[str]) -> str:
    """The name in the checkpoint of the tensor that a mapping calls by this name."""
    if name.startswith("model."):
        return prefix + name.removeprefix("model.")
    return next((before + name for before in HEAD_PREFIXES if before + name in tensors), name)


def check_tensor(folder: AnyPath, name: str, shape: tuple[int, ...], tensors: Mapping[str, Any]) -> None:
    """Raises UserError unless the checkpoint has this tensor, not quantized, in this shape."""
    if name not in tensors:
        raise UserError(_missing_message(folder, name, tensors))
    dtype: str = tensors[name].get_dtype()
    actual_shape = tuple(tensors[name].get_shape())
    if dtype not in READABLE_TYPES:
        raise UserError(_quantized_message(folder, name, QUANTIZED_TYPES.get(dtype, dtype), dtype))
    if actual_shape != shape:
        raise UserError(
            f"{folder}: tensor {name} has shape {actual_shape}, but config.json implies {shape}; "
            f"take both from the same model"
        )


def check_all_used(folder: AnyPath, prefix: str, used: Collection[str], tensors: Collection[str]) -> None:
    """Raises UserError if the decoder's layers have weights or biases that the model has no place for.

    Without them it would be another model, silently: more layers than config.json says, an adapter, a bias.
    """
    for name in sorted(tensors):
        if name.startswith(f"{prefix}layers.") and name.endswith((".weight", ".bias")) and name not in used:
            raise UserError(
                f"{folder}: tensor {name} has no place in the model that config.json describes; "
                f"take both from the same model"
            )


def _missing_message(folder: AnyPath, name: str, tensors: Collection[str]) -> str:
    stem, _, kind = name.rpartition(".")
    for suffix, method in QUANTIZED_NAMES.items():
        if f"{stem}.{suffix}" in tensors:
            return _quantized_message(folder, f"{stem}.{suffix}", method)
    missing = f"{folder}: tensor {name} is missing"
    if name == "lm_head.weight":
        return (
            f"{missing}, and config.json does not say that it is the embedding (tie_word_embeddings); "
            "download all of the weights, or take config.json from the same model"
        )
    if f"{stem}.base_layer.{kind}" in tensors:
        return f"{missing}, but {stem}.base_layer.{kind} is there: {WRAPPERS['base_model.model.']}"
    tail = name.removeprefix("model.")
    other = next((other for other in sorted(tensors) if other.endswith(f".{tail}")), None)
    if other is None:
        contents = f" (there are {len(tensors)}, like {min(tensors)})" if tensors else ""
        return f"{missing}{contents}; the weights must match config.json"
    cause = next((cause for wrapper, cause in WRAPPERS.items() if other.startswith(wrapper)), None)
    return f"{missing}, but {other} is there: {cause or 'the weights must match config.json'}"


def _quantized_message(folder: AnyPath, name: str, method: str, dtype: str | None = None) -> str:
    settings = read_config_json(folder).get("quantization_config")
    declared = settings.get("quant_method") if isinstance(settings, dict) else None
    has_type = f" has type {dtype}, not one of {', '.join(READABLE_TYPES)}" if dtype else ""
    return (
        f"{folder}: the weights are quantized ({declared or method}): tensor {name}{has_type or ' is there'}; "
        "give the checkpoint that they were made from"
    )
