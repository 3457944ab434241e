"""The files of a Hugging Face checkpoint folder: config.json and safetensors, in any arrangement that is published.

A folder that holds something else, such as an adapter or a download cache, is an error that says what to give instead.
"""

import os
import re
from contextlib import ExitStack
from typing import Any

from safetensors import SafetensorError, safe_open

from tpt_jax.errors import UserError
from tpt_jax.io.downloads import check_downloaded, read_json_object
from tpt_jax.io.paths import AnyPath, is_remote
from tpt_jax.models.huggingface_tensors import INDEX_FILE, SINGLE_FILE

ADAPTER_CONFIG = "adapter_config.json"  # of the peft library
SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
# Where a checkpoint is in the folders that people give instead: a download cache's, a trainer's, a run's, a parent.
INNER_CONFIGS = (
    "snapshots/*/config.json",
    "checkpoint-*/config.json",
    "checkpoints/*/config.json",
    "*/snapshots/*/config.json",
    "*/config.json",
)


def read_config_json(folder: AnyPath) -> dict[str, Any]:
    """The contents of config.json in a checkpoint folder.

    Raises:
      UserError: folder or file missing, or not JSON; or the folder holds something else than a checkpoint.
    """
    hint = "give the folder of a Hugging Face checkpoint (config.json, *.safetensors, tokenizer files)"
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; {hint}")
    if (folder / ADAPTER_CONFIG).is_file():
        raise UserError(_adapter_message(folder))
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: has no config.json; {_inner_folder(folder) or _gguf_hint(folder) or hint}")
    return read_json_object(folder / "config.json")


def open_tensors(folder: AnyPath, files: ExitStack) -> dict[str, Any]:
    """Every tensor of the checkpoint by name, as a safetensors slice object of a file that `files` keeps open.

    Raises:
      UserError: there are no safetensors; a file is missing or truncated.
    """
    slices: dict[str, Any] = {}
    for path in _safetensors_files(folder):
        check_downloaded(path)
        try:
            # "numpy" returns bfloat16 as the ml_dtypes type that jax registers with numpy.
            file = files.enter_context(safe_open(path, framework="numpy"))
        except SafetensorError as error:
            raise UserError(f"{path}: not a complete safetensors file ({error}); download the file again") from error
        slices |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return slices


def _safetensors_files(folder: AnyPath) -> list[AnyPath]:
    if is_remote(folder):
        raise UserError(f"{folder}: safetensors must be on a local disk; copy the folder there, or mount the bucket")
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return _files_of_index(folder / INDEX_FILE)
    shards = _numbered_files(folder)
    if shards:
        return shards
    patterns = ("*.safetensors", "*.bin", "*.pth", "*.gguf")
    others = sorted(path.name for pattern in patterns for path in folder.glob(pattern))
    contents = f"only {others[0]}" if others else "nothing to load"
    convert = "convert with transformers: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
    raise UserError(
        f"{folder}: has no {SINGLE_FILE} or {INDEX_FILE}, {contents}; download the safetensors, or "
        f"{_gguf_hint(folder) or convert}"
    )


def _files_of_index(index: AnyPath) -> list[AnyPath]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index}: has no weight_map from tensor names to files; download the file again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if os.path.isabs(name) or ".." in name.split("/"):
            raise UserError(f"{index}: lists {name!r}, which is not in the folder; download the file again")
    files = [index.parent / name for name in names]
    for file in files:
        if not file.is_file():
            raise UserError(f"{index}: lists {file.name}, which is missing; download that file too")
    return files


def _numbered_files(folder: AnyPath) -> list[AnyPath]:
    """Files that are numbered, such as model-00001-of-00002.safetensors, where an index is missing."""
    found = {path.name: match for path in folder.glob("model-*.safetensors") if (match := SHARD.fullmatch(path.name))}
    totals = {match[2] for match in found.values()}
    if len(totals) > 1:
        raise UserError(f"{folder}: has numbered safetensors of {len(totals)} checkpoints; keep those of one")
    for total in totals:
        width = len(total)
        for number in range(1, int(total) + 1):
            name = f"model-{number:0{width}}-of-{total}.safetensors"
            if name not in found:
                raise UserError(f"{folder}: {name} is missing; download that file too")
    return [folder / name for name in sorted(found)]


def _adapter_message(folder: AnyPath) -> str:
    base = read_json_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    message = (
        f"{folder}: is an adapter ({ADAPTER_CONFIG}) of {base}; merge it into that model first, with peft: "
        f"AutoPeftModelForCausalLM.from_pretrained({folder.name!r}).merge_and_unload().save_pretrained(NEW)"
    )
    has_weights = (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file()
    return f"{message}, or remove {ADAPTER_CONFIG} if the weights here are merged already" if has_weights else message


def _inner_folder(folder: AnyPath) -> str:
    """A hint that names a checkpoint inside the folder: the last of a training, or the current download."""
    for pattern in INNER_CONFIGS:
        inner = [config.parent for config in folder.glob(pattern)]
        if inner:
            return f"give a folder inside it that has one: {max(inner, key=_rank)}"
    return ""


def _rank(folder: AnyPath) -> tuple[bool, int, str]:
    """Orders downloads by whether the cache's branch main is at them, and checkpoints by number."""
    main = folder.parent.parent / "refs" / "main"
    number = re.fullmatch(r"(?:checkpoint-)?(\d+)", folder.name)
    is_main = main.is_file() and main.read_text().strip() == folder.name
    return is_main, int(number[1]) if number else -1, folder.name


def _gguf_hint(folder: AnyPath) -> str:
    """How to convert a GGUF file, if the folder has one."""
    name = next((path.name for path in sorted(folder.glob("*.gguf"))), None)
    if name is None:
        return ""
    return (
        f"download the model that {name} was made from, or convert it: m = AutoModelForCausalLM.from_pretrained("
        f"{folder.name!r}, gguf_file={name!r}); m.hf_quantizer = None; del m.config.quantization_config; "
        "m.save_pretrained(NEW); and the same file with AutoTokenizer"
    )
