"""Import and export of Hugging Face checkpoints, against transformers; errors for invalid checkpoints."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tpt_jax.config import MeshConfig
from tpt_jax.errors import UserError
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.huggingface_export import copy_side_files, save_parameters
from tpt_jax.models.huggingface_import import load_parameters, read_model_config
from tpt_jax.models.huggingface_tensors import INDEX_FILE, SINGLE_FILE, TensorMapping
from tpt_jax.models.transformer import abstract_parameters, initialize_parameters
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout

if TYPE_CHECKING:
    from conftest import Twins

TOKENS = np.random.default_rng(0).integers(1, 64, (3, 24))


def assert_same(actual: nnx.State, expected: nnx.State) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for actual_leaf, expected_leaf in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert actual_leaf.dtype == expected_leaf.dtype
        np.testing.assert_array_equal(np.asarray(actual_leaf), np.asarray(expected_leaf))


def reload(twins: Twins, folder: Path) -> Twins:
    """The twins with transformers' model loaded from this folder."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return dataclasses.replace(twins, torch_model=model.eval(), folder=folder)


# Import


def test_loaded_state_has_the_structure_of_the_abstract_parameters(twins: Twins) -> None:
    _, abstract = abstract_parameters(twins.config)
    assert jax.tree.structure(twins.parameters) == jax.tree.structure(abstract)
    variables = dict(nnx.to_flat_state(twins.parameters))
    assert variables["embedding",].get_metadata()["logical_axes"] == ("vocab", "embed")
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(twins.parameters)]
    assert shapes == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(abstract)]


def test_checkpoint_in_several_files(twins: Twins, tmp_path: Path) -> None:
    twins.torch_model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same(load_parameters(tmp_path, twins.config, twins.layout), twins.parameters)


@pytest.mark.parametrize("twins", ["gemma2"], indirect=True)
@pytest.mark.parametrize("mesh", [MeshConfig(2, 2, 2), MeshConfig(1, 8, 1), MeshConfig(8, 1, 1)], ids=str)
def test_each_shard_is_read_once_on_eight_devices(
    twins: Twins, mesh: MeshConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(make_mesh(mesh), TRAIN_RULES)
    read_sizes: dict[str, list[int]] = {}
    original = TensorMapping.read

    def count(mapping: TensorMapping, *args: Any) -> np.ndarray:
        values = original(mapping, *args)
        read_sizes.setdefault(mapping.name, []).append(values.size)
        return values

    monkeypatch.setattr(TensorMapping, "read", count)
    parameters = load_parameters(twins.folder, twins.config, layout)
    assert_same(parameters, twins.parameters)
    for leaf, sharding in zip(
        jax.tree.leaves(parameters), jax.tree.leaves(layout.shardings(twins.parameters)), strict=True
    ):
        assert leaf.sharding == sharding
    # Feed-forward weights are sharded over fsdp and tensor; each shard is read once, even if several devices hold it.
    num_shards = mesh.fsdp * mesh.tensor
    num_layers, size = twins.config.num_layers, twins.config.embed_dim * twins.config.mlp_dim
    assert read_sizes["model.layers.{layer}.mlp.up_proj.weight"] == [size // num_shards] * num_layers * num_shards


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_16_bit_checkpoints_load_exactly(twins: Twins, tmp_path: Path, dtype: type) -> None:
    narrow = {name: x.astype(dtype) for name, x in load_file(twins.folder / SINGLE_FILE).items()}
    save_file(narrow, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    shutil.copy(twins.folder / "config.json", tmp_path)
    parameters = load_parameters(tmp_path, read_model_config(tmp_path), twins.layout)
    assert_same(parameters, jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), twins.parameters))


@pytest.mark.parametrize("twins", ["llama"], indirect=True)
def test_loading_a_float32_checkpoint_as_bfloat16(twins: Twins) -> None:
    parameters = load_parameters(twins.folder, twins.config, twins.layout, jnp.bfloat16)
    assert_same(parameters, jax.tree.map(lambda x: x.astype(jnp.bfloat16), twins.parameters))


@pytest.mark.parametrize("twins", ["llama_tied"], indirect=True)
def test_lm_head_of_a_tied_model_is_ignored(twins: Twins, tmp_path: Path) -> None:
    tensors = load_file(twins.folder / SINGLE_FILE)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, tmp_path / SINGLE_FILE)
    assert_same(load_parameters(tmp_path, twins.config, twins.layout), twins.parameters)


@pytest.mark.parametrize("twins", ["gemma3"], indirect=True)
def test_decoder_of_a_model_with_a_vision_tower(twins: Twins, tmp_path: Path) -> None:
    """Only the decoder is loaded; it exports as a text-only model."""
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision = transformers.SiglipVisionConfig(**sizes, num_attention_heads=1, image_size=8, patch_size=4)
    wrapper = transformers.Gemma3Config(
        text_config=twins.torch_model.config.to_dict(), vision_config=vision, mm_tokens_per_image=4
    )
    full_model = transformers.Gemma3ForConditionalGeneration(wrapper)
    full_model.model.language_model.load_state_dict(twins.torch_model.model.state_dict())
    full_model.save_pretrained(tmp_path / "full")
    config = read_model_config(tmp_path / "full")
    assert config == twins.config
    parameters = load_parameters(tmp_path / "full", config, twins.layout)
    assert_same(parameters, twins.parameters)

    save_parameters(tmp_path / "export", config, parameters, dtype="float32")
    copy_side_files(tmp_path / "full", tmp_path / "export", dtype="float32")
    exported = reload(twins, tmp_path / "export")
    assert isinstance(exported.torch_model, transformers.Gemma3ForCausalLM)
    np.testing.assert_array_equal(exported.expected_logits(TOKENS), twins.expected_logits(TOKENS))


# Export


@pytest.mark.parametrize("max_shard_bytes", [20_000, 5_000_000_000])
def test_transformers_loads_an_export(twins: Twins, tmp_path: Path, max_shard_bytes: int) -> None:
    target = tmp_path / "export"
    save_parameters(target, twins.config, twins.parameters, dtype="float32", max_shard_bytes=max_shard_bytes)
    copy_side_files(twins.folder, target, dtype="float32")
    files = list(target.glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_bytes == 20_000) == (target / INDEX_FILE).is_file()
    assert all(path.stat().st_size < max_shard_bytes + 10_000 for path in files)
    tensors = {name: x for path in files for name, x in load_file(path).items()}
    original = load_file(twins.folder / SINGLE_FILE)
    assert tensors.keys() == original.keys()
    assert all((tensors[name] == original[name]).all() for name in tensors)

    np.testing.assert_array_equal(reload(twins, target).expected_logits(TOKENS), twins.expected_logits(TOKENS))
    assert_same(load_parameters(target, read_model_config(target), twins.layout), twins.parameters)


@pytest.mark.parametrize("twins", ["gemma2"], indirect=True)
def test_export_of_sharded_parameters_as_bfloat16(twins: Twins, tmp_path: Path) -> None:
    layout = Layout(make_mesh(MeshConfig(2, 2, 2)), TRAIN_RULES)
    sharded = jax.device_put(twins.parameters, layout.shardings(twins.parameters))
    save_parameters(tmp_path, twins.config, sharded, dtype="bfloat16")
    copy_side_files(twins.folder, tmp_path, dtype="bfloat16")
    written = load_file(tmp_path / SINGLE_FILE)
    for name, x in load_file(twins.folder / SINGLE_FILE).items():
        np.testing.assert_array_equal(written[name], x.astype(ml_dtypes.bfloat16))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("twins", ["llama"], indirect=True)
def test_export_replaces_an_earlier_one(twins: Twins, tmp_path: Path) -> None:
    for max_shard_bytes in (20_000, 40_000, 5_000_000_000, 40_000):
        save_parameters(tmp_path, twins.config, twins.parameters, dtype="float32", max_shard_bytes=max_shard_bytes)
        assert_same(load_parameters(tmp_path, twins.config, twins.layout), twins.parameters)
        names = {path.name for path in tmp_path.iterdir()} - {INDEX_FILE}
        assert names == {SINGLE_FILE} or names == set(
            json.loads((tmp_path / INDEX_FILE).read_text())["weight_map"].values()
        )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"torch_dtype": "float16", "dtype": "float16"}, {"torch_dtype": "bfloat16", "dtype": "bfloat16"}),
        ({}, {"dtype": "bfloat16"}),
    ],
)
def test_side_files_are_copied_with_the_new_dtype(
    tmp_path: Path, before: dict[str, str], after: dict[str, str]
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "llama", **before}))
    for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors", "README.md"):
        (source / name).write_text(name)
    for _ in range(2):
        copy_side_files(source, target, dtype="bfloat16")
    copy_side_files(target, target, dtype="bfloat16")
    assert {path.name for path in target.iterdir()} == {"config.json", "tokenizer.json", "chat_template.jinja"}
    assert json.loads((target / "config.json").read_text()) == {"model_type": "llama", **after}


@pytest.mark.parametrize("tiny_config", ["llama"], indirect=True)
def test_initial_parameters_do_not_depend_on_the_mesh(tiny_config: ModelConfig, layout: Layout) -> None:
    single = initialize_parameters(tiny_config, layout, seed=1)
    sharded_layout = Layout(make_mesh(MeshConfig(2, 2, 2)), TRAIN_RULES)
    sharded = initialize_parameters(tiny_config, sharded_layout, seed=1)
    shardings = sharded_layout.shardings(sharded)
    for expected, actual, sharding in zip(*map(jax.tree.leaves, (single, sharded, shardings)), strict=True):
        assert expected.dtype == jnp.float32
        assert actual.sharding == sharding
        np.testing.assert_allclose(np.asarray(expected), np.asarray(actual), rtol=1e-6)
    other_seed = initialize_parameters(tiny_config, layout, seed=2)
    assert not np.array_equal(jax.tree.leaves(single)[0], jax.tree.leaves(other_seed)[0])


# Invalid checkpoints


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def only_bin(folder: Path) -> None:
    (folder / SINGLE_FILE).rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    path = folder / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])


def missing_shard(folder: Path) -> None:
    (folder / SINGLE_FILE).rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


def rewrite(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / SINGLE_FILE)
        change(tensors)
        save_file(tensors, folder / SINGLE_FILE)

    return apply


def missing_tensor(tensors: dict[str, np.ndarray]) -> None:
    del tensors["model.layers.2.mlp.up_proj.weight"]


def missing_head(tensors: dict[str, np.ndarray]) -> None:
    del tensors["lm_head.weight"]


def wrong_shape(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.layers.1.self_attn.k_proj.weight"] = np.zeros((8, 32), np.float32)


def quantized(tensors: dict[str, np.ndarray]) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name].astype(np.int8)


@pytest.mark.parametrize("twins", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("corrupt", "words"),
    [
        (no_folder, ["no such folder", "config.json"]),
        (no_config, ["has no config.json"]),
        (broken_config, ["config.json: not JSON"]),
        (only_bin, ["pytorch_model.bin", "save_pretrained"]),
        (truncated, [SINGLE_FILE, "not a complete safetensors file"]),
        (missing_shard, [INDEX_FILE, "model-00002-of-00002.safetensors"]),
        (rewrite(missing_tensor), ["model.layers.2.mlp.up_proj.weight is missing"]),
        (rewrite(missing_head), ["lm_head.weight is missing"]),
        (rewrite(wrong_shape), ["model.layers.1.self_attn.k_proj.weight", "(8, 32)", "(16, 32)"]),
        (rewrite(quantized), ["model.layers.0.mlp.down_proj.weight", "I8", "BF16"]),
    ],
)
def test_errors_name_the_problem(
    twins: Twins, tmp_path: Path, corrupt: Callable[[Path], None], words: list[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(twins.folder, folder)
    corrupt(folder)
    with pytest.raises(UserError, match=re.escape(str(folder))) as error:
        load_parameters(folder, read_model_config(folder), twins.layout)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
