"""Arrangements of a checkpoint's files: each that transformers writes loads, each other is one line that says why."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tpt_jax.checkpoints.model_folder import PARAMETERS, ModelFolder
from tpt_jax.checkpoints.writer import CheckpointWriter
from tpt_jax.errors import UserError
from tpt_jax.io.paths import to_path
from tpt_jax.models.huggingface_export import copy_side_files
from tpt_jax.models.huggingface_import import check_parameters, load_parameters, read_model_config
from tpt_jax.models.huggingface_tensors import INDEX_FILE, SINGLE_FILE
from tpt_jax.runtime.sharding import Layout

if TYPE_CHECKING:
    from conftest import Twins

Tensors = dict[str, np.ndarray]

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4988025760\n"
QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(twins: Twins, tmp_path: Path) -> Path:
    """A copy of the twins' checkpoint that a test may change."""
    return Path(shutil.copytree(twins.folder, tmp_path / "model"))


def rename(folder: Path, new_name: Callable[[str], str]) -> None:
    tensors = load_file(folder / SINGLE_FILE)
    save_file({new_name(name): tensor for name, tensor in tensors.items()}, folder / SINGLE_FILE)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content))


def change_config(folder: Path, **changes: Any) -> None:
    write_json(folder / "config.json", json.loads((folder / "config.json").read_text()) | changes)


def assert_loads(folder: Path, twins: Twins) -> None:
    check_parameters(folder, twins.config)
    loaded = load_parameters(folder, read_model_config(folder), twins.layout)
    jax.tree.map(np.testing.assert_array_equal, loaded, twins.parameters)


# Names that load

# What stands for "model." in the names of the decoder's tensors, and what precedes "lm_head.".
NAMES = [
    ("model.", ""),
    ("model.language_model.", ""),
    ("language_model.model.", "language_model."),
    ("language_model.", ""),
    ("", ""),
]


@pytest.mark.parametrize("twins", ["llama", "gemma3"], indirect=True)
@pytest.mark.parametrize(("prefix", "head"), NAMES)
def test_the_decoder_is_found_under_every_prefix(twins: Twins, folder: Path, prefix: str, head: str) -> None:
    def new_name(name: str) -> str:
        return prefix + name.removeprefix("model.") if name.startswith("model.") else head + name

    rename(folder, new_name)
    tensors = load_file(folder / SINGLE_FILE)
    tower = {"vision_tower.encoder.layers.0.fc.bias": np.zeros(3, np.float32)}  # has no place in the decoder
    save_file(tensors | tower, folder / SINGLE_FILE)
    assert_loads(folder, twins)


@pytest.mark.parametrize("twins", ["llama"], indirect=True)
def test_the_backbone_that_transformers_saves_without_its_head(twins: Twins, folder: Path) -> None:
    """AutoModel's names have no prefix; the output layer of an untied model is not saved with it."""
    twins.torch_model.model.save_pretrained(folder)
    assert "layers.0.self_attn.q_proj.weight" in load_file(folder / SINGLE_FILE)
    with pytest.raises(UserError, match=r"lm_head\.weight is missing.*tie_word_embeddings"):
        check_parameters(folder, twins.config)
    tied = dataclasses.replace(twins.config, tie_embeddings=True)
    check_parameters(folder, tied)


def split_in_two(folder: Path) -> None:
    """Numbered files without an index."""
    tensors = load_file(folder / SINGLE_FILE)
    names = sorted(tensors)
    for number, part in enumerate((names[:5], names[5:]), start=1):
        save_file({name: tensors[name] for name in part}, folder / f"model-0000{number}-of-00002.safetensors")
    (folder / SINGLE_FILE).unlink()


@pytest.mark.parametrize("twins", ["llama"], indirect=True)
def test_numbered_files_need_no_index(twins: Twins, folder: Path) -> None:
    split_in_two(folder)
    assert_loads(folder, twins)


@pytest.mark.parametrize("twins", ["llama"], indirect=True)
def test_a_config_that_still_says_quantized_does_not_matter(twins: Twins, folder: Path, tmp_path: Path) -> None:
    """Weights that were dequantized; what is exported says nothing of it, or transformers would refuse the export."""
    change_config(folder, quantization_config={"quant_method": "gguf"})
    assert_loads(folder, twins)
    copy_side_files(folder, tmp_path / "export", dtype="float32")
    assert "quantization_config" not in json.loads((tmp_path / "export" / "config.json").read_text())


# Mistakes


def pointer(folder: Path) -> None:
    (folder / SINGLE_FILE).write_text(LFS_POINTER)


def empty(folder: Path) -> None:
    (folder / SINGLE_FILE).write_text("")


def one_of_two(folder: Path) -> None:
    split_in_two(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()


def two_checkpoints(folder: Path) -> None:
    split_in_two(folder)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00001-of-00003.safetensors")


def broken_index(folder: Path) -> None:
    (folder / SINGLE_FILE).unlink()
    write_json(folder / INDEX_FILE, {"weight_map": ["a"]})


def adapter(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "meta-llama/Llama-3.2-1B"})
    save_file(
        {f"base_model.model.{QUERY}.lora_A.weight": np.zeros((8, 32), np.float32)}, folder / "adapter.safetensors"
    )


def adapter_beside_weights(folder: Path) -> None:
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "meta-llama/Llama-3.2-1B"})


def peft_names(folder: Path) -> None:
    rename(folder, lambda name: f"base_model.model.{name}")


def compiled_names(folder: Path) -> None:
    rename(folder, lambda name: f"_orig_mod.{name}")


def peft_layer(folder: Path) -> None:
    rename(folder, lambda name: f"{QUERY}.base_layer.weight" if name == f"{QUERY}.weight" else name)


def other_names(folder: Path) -> None:
    rename(folder, lambda name: f"transformer.{name.removeprefix('model.')}")


def mistral_names(folder: Path) -> None:
    (folder / SINGLE_FILE).rename(folder / "consolidated.safetensors")


def more_layers(folder: Path) -> None:
    change_config(folder, num_hidden_layers=3)


def a_bias(folder: Path) -> None:
    save_file({**load_file(folder / SINGLE_FILE), f"{QUERY}.bias": np.zeros(64, np.float32)}, folder / SINGLE_FILE)


def replace_query(tensors: Tensors, **by_kind: np.ndarray) -> Tensors:
    """The tensors with q_proj.qweight and the like in place of q_proj.weight."""
    kept = {name: tensor for name, tensor in tensors.items() if name != f"{QUERY}.weight"}
    return kept | {f"{QUERY}.{kind}": tensor for kind, tensor in by_kind.items()}


def awq(folder: Path) -> None:
    weights = {"qweight": np.zeros((32, 8), np.int32), "qzeros": np.zeros((1, 8), np.int32)}
    save_file(replace_query(load_file(folder / SINGLE_FILE), **weights), folder / SINGLE_FILE)
    change_config(folder, quantization_config={"quant_method": "awq", "bits": 4})


def gptq_without_config(folder: Path) -> None:
    awq(folder)
    change_config(folder, quantization_config=None)


def bitsandbytes(folder: Path) -> None:
    save_file(
        replace_query(load_file(folder / SINGLE_FILE), weight=np.zeros((1024, 1), np.uint8)), folder / SINGLE_FILE
    )


def fp8(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / SINGLE_FILE)
    tensors[f"{QUERY}.weight"] = tensors[f"{QUERY}.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, folder / SINGLE_FILE)


def download_cache(folder: Path) -> None:
    """A cache's folder of a model, with two revisions."""
    for name in ("f" * 40, "a" * 40):
        shutil.copytree(folder, folder / "snapshots" / name, ignore=shutil.ignore_patterns("snapshots"))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "config.json").unlink()


def trainer(folder: Path) -> None:
    for number in (500, 1000, 90):
        (folder / f"checkpoint-{number}").mkdir()
        shutil.copy(folder / "config.json", folder / f"checkpoint-{number}")
    (folder / "config.json").unlink()


def run_folder(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    for name in ("001", "002"):
        (folder / "checkpoints" / name).mkdir()
        shutil.copy(folder / "config.json", folder / "checkpoints" / name)
    (folder / "config.json").unlink()


def only_gguf(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "m-Q4_K_M.gguf").write_text("GGUF")


def gguf_with_config(folder: Path) -> None:
    (folder / SINGLE_FILE).rename(folder / "m-Q4_K_M.gguf")


@pytest.mark.parametrize("twins", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pointer, [SINGLE_FILE, "git lfs pull"]),
        (empty, [SINGLE_FILE, "is empty"]),
        (one_of_two, ["model-00001-of-00002.safetensors is missing"]),
        (two_checkpoints, ["of 2 checkpoints"]),
        (broken_index, [INDEX_FILE, "weight_map"]),
        (adapter, ["adapter", "meta-llama/Llama-3.2-1B", "merge_and_unload"]),
        (adapter_beside_weights, ["merge_and_unload", "or remove adapter_config.json"]),
        (peft_names, ["base_model.model.model.embed_tokens.weight is there", "merge_and_unload"]),
        (compiled_names, ["_orig_mod.model.embed_tokens.weight is there", "model._orig_mod"]),
        (peft_layer, [f"{QUERY}.weight is missing", f"{QUERY}.base_layer.weight", "merge_and_unload"]),
        (other_names, ["model.embed_tokens.weight is missing", "transformer.embed_tokens.weight is there"]),
        (mistral_names, ["only consolidated.safetensors"]),
        (more_layers, ["model.layers.3.input_layernorm.weight has no place"]),
        (a_bias, [f"{QUERY}.bias has no place"]),
        (awq, ["quantized (awq)", f"{QUERY}.qweight"]),
        (gptq_without_config, ["quantized (AWQ or GPTQ)", f"{QUERY}.qweight"]),
        (bitsandbytes, ["quantized (bitsandbytes)", f"{QUERY}.weight", "U8"]),
        (fp8, ["quantized (fp8)", f"{QUERY}.weight", "F8_E4M3"]),
        (download_cache, ["has no config.json", f"snapshots/{'a' * 40}"]),
        (trainer, ["has no config.json", "checkpoint-1000"]),
        (run_folder, ["has no config.json", "checkpoints/002"]),
        (only_gguf, ["m-Q4_K_M.gguf", "save_pretrained"]),
        (gguf_with_config, ["m-Q4_K_M.gguf", "save_pretrained"]),
    ],
)
def test_a_mistake_is_one_line(folder: Path, change: Callable[[Path], None], words: list[str]) -> None:
    change(folder)
    with pytest.raises(UserError, match=re.escape(str(folder))) as error:
        ModelFolder.open(folder).check_weights()
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


# A run's checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, layout: Layout) -> Path:
    path = tmp_path_factory.mktemp("run") / "001"
    quickstart = ModelFolder.open("quickstart")
    writer = CheckpointWriter()
    writer.save(to_path(path), quickstart.load(layout), quickstart, {})
    writer.close()
    return path


def test_weights_are_checked_without_reading_them(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(jax, "make_array_from_callback", refuse)
    monkeypatch.setattr(nnx, "replace_by_pure_dict", refuse)
    for name in ("quickstart", checkpoint):
        ModelFolder.open(name).check_weights()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 5}, r"layers\.\w+ has shape \(4, .* implies shape \(5, "),
        ({"tie_embeddings": False}, "unembedding is missing"),
    ],
)
def test_a_checkpoint_of_another_model(checkpoint: Path, changes: dict[str, Any], message: str) -> None:
    model = ModelFolder.open(checkpoint)
    with pytest.raises(UserError, match=message):
        dataclasses.replace(model, config=dataclasses.replace(model.config, **changes)).check_weights()


def test_a_checkpoint_that_was_not_copied_whole(checkpoint: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(checkpoint, tmp_path / "001"))
    metadata = copied / PARAMETERS / "_METADATA"
    metadata.write_bytes(metadata.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be restored"):
        ModelFolder.open(copied).check_weights()
    metadata.unlink()
    with pytest.raises(UserError, match="cannot be restored"):
        ModelFolder.open(copied).check_weights()


# Export


def test_every_file_of_a_tokenizer_is_exported(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "additional_chat_templates").mkdir(parents=True)
    names = {"tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"}
    names |= {"chat_template.jinja", "additional_chat_templates/tool_use.jinja", "generation_config.json"}
    for name in names | {"model.safetensors", "README.md"}:
        (source / name).write_text(name)
    write_json(source / "config.json", {"model_type": "llama"})
    copy_side_files(source, target, dtype="float32")
    written = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert written == names | {"config.json"}


def test_end_tokens_that_only_the_config_of_the_whole_model_names(tmp_path: Path) -> None:
    decoder = {"model_type": "gemma3_text", "bos_token_id": 3}
    write_json(tmp_path / "config.json", {"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": decoder})
    copy_side_files(tmp_path, tmp_path / "export", dtype="float32")
    exported = json.loads((tmp_path / "export" / "config.json").read_text())
    assert (exported["eos_token_id"], exported["bos_token_id"]) == ([1, 106], 3)
