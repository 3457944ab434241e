"""LoRA: trained like PEFT's adapters, merged like them, saved without the frozen weights, and loaded by PEFT."""

import copy
import dataclasses
import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, Twins
from flax import nnx
from processes import CommandHere
from test_training import assert_identical, random_examples, torch_curves

import tpt_jax as tpt
from tpt_jax.checkpoints.adapter_file import fingerprint
from tpt_jax.checkpoints.model_folder import ModelFolder, export_adapters
from tpt_jax.checkpoints.training import TrainingCheckpoints
from tpt_jax.checkpoints.writer import CheckpointWriter
from tpt_jax.config import ADAPTER_TARGETS, LoRAConfig, MeshConfig, OptimizerConfig, TrainConfig
from tpt_jax.config_parsing import load_config, parse_overrides
from tpt_jax.errors import Stopped, UserError
from tpt_jax.io.paths import to_path
from tpt_jax.models.decoding_weights import Int8Weight
from tpt_jax.models.huggingface_tensors import flat_variables
from tpt_jax.models.masters import (
    abstract_masters,
    add_adapters,
    freeze,
    master_bytes,
    merge_adapters,
    merged_layer,
    num_trained,
    split_trained,
)
from tpt_jax.models.published import PUBLISHED
from tpt_jax.models.transformer import abstract_parameters, initialize_parameters
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
from tpt_jax.train.compile import TrainerProgram, compile_trainer
from tpt_jax.train.data import packed_batches
from tpt_jax.train.fine_tuning import FineTuning
from tpt_jax.train.flops import model_flops
from tpt_jax.train.optimizer import make_optimizer

LORA = LoRAConfig(rank=3, alpha=12)
CONFIG = TrainConfig(
    num_epochs=20,
    max_steps=12,
    rows=8,
    sequence_length=32,
    save_every=4,
    lora=LORA,
    optimizer=OptimizerConfig(learning_rate=2e-2, weight_decay=0.1),
)


@pytest.fixture(scope="module")
def program(layout: Layout) -> TrainerProgram:
    return compile_trainer(TINY["gemma2"], layout.mesh, compute_dtype="float32", train=CONFIG)


def adapted(twins: Twins, lora: LoRAConfig = LORA, scale: float = 0.3) -> nnx.State:
    """The twins' weights with adapters that change something: as new, their halves B are zero."""
    parameters = add_adapters(twins.parameters, twins.config, twins.layout, lora, seed=1)
    keys = iter(jax.random.split(jax.random.key(2), 100))

    def randomize(variable: nnx.Variable) -> nnx.Variable:
        value = variable.get_value()
        return variable.replace(jax.device_put(jax.random.normal(next(keys), value.shape) * scale, value.sharding))

    adapters, frozen = split_trained(parameters)
    adapters = jax.tree.map(randomize, adapters, is_leaf=lambda node: isinstance(node, nnx.Variable))
    return nnx.merge_state(adapters, frozen)


def logits(config: Any, layout: Layout, parameters: nnx.State, lora: LoRAConfig | None, tokens: Any) -> Any:
    graph, _ = abstract_parameters(config, lora)
    tokens, positions = jnp.asarray(tokens), jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    @jax.jit
    def forward(parameters: nnx.State) -> jax.Array:
        model = nnx.merge(graph, parameters)
        hidden = model(tokens, positions, jnp.ones_like(tokens), layout=layout, compute_dtype=jnp.dtype("float32"))
        return model.logits(hidden)

    return np.asarray(forward(parameters))


def peft_model(twins: Twins, lora: LoRAConfig) -> Any:
    """Transformers' model in the frozen precision, with untrained adapters of PEFT."""
    import peft
    import torch

    base = copy.deepcopy(twins.torch_model)
    for weight in base.parameters():  # not the buffers: they hold RoPE's frequencies
        weight.data = weight.data.to(torch.bfloat16).float()
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return peft.get_peft_model(base, peft.LoraConfig(r=lora.rank, lora_alpha=int(lora.alpha), target_modules=targets))


def copy_adapters(parameters: nnx.State, twins: Twins, folder: Path, model: Any) -> None:
    """Gives PEFT's model our adapters, through the files that we export."""
    import torch
    from safetensors.torch import load_file

    from tpt_jax.models.peft_export import save_adapters

    save_adapters(to_path(folder), twins.config, split_trained(parameters)[0], LORA, "base")
    exported = load_file(folder / "adapter_model.safetensors")
    own = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
    assert {name.replace(".default", "") for name in own} == set(exported)
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(exported[name.replace(".default", "")])


@pytest.mark.parametrize("twins", ["gemma2", "qwen2"], indirect=True)
def test_curves_of_twelve_steps_equal_those_of_peft(twins: Twins, tmp_path: Path) -> None:
    """From the same adapters, with torch's AdamW; the frozen weights stay the same bit for bit."""
    program = compile_trainer(twins.config, twins.layout.mesh, compute_dtype="float32", train=CONFIG)
    parameters = adapted(twins, scale=0.05)
    before = jax.tree.map(np.array, split_trained(parameters)[1])
    model = peft_model(twins, LORA)
    copy_adapters(parameters, twins, tmp_path / "start", model)
    training = FineTuning(program, lambda: parameters, random_examples(40), CONFIG, seed=0)
    curves = [(record.loss, record.grad_norm, record.learning_rate) for record in training]
    batches = packed_batches(random_examples(40), program.batch_shape, seed=0, num_epochs=20)[:12]
    expected = torch_curves(model.train(), [packed.arrays for packed in batches], CONFIG.optimizer)
    assert curves[-1][0] < 0.95 * curves[0][0]
    np.testing.assert_allclose(curves, expected, rtol=2e-3)
    adapters, frozen = split_trained(training.parameters)
    assert_identical(frozen, before)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("twins", ["gemma3", "llama"], indirect=True)
def test_logits_equal_those_of_peft_and_of_merged_weights(twins: Twins, tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 64, (2, 24))
    parameters = adapted(twins)
    model = peft_model(twins, LORA)
    copy_adapters(parameters, twins, tmp_path / "adapters", model)
    ours = logits(twins.config, twins.layout, parameters, LORA, tokens)
    merged = logits(twins.config, twins.layout, merge_adapters(parameters), None, tokens)
    import torch

    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
        with model.disable_adapter():
            base = model(torch.tensor(tokens)).logits.numpy()
    assert np.abs(theirs - base).max() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    np.testing.assert_allclose(merged, ours, atol=2e-3)


def test_new_adapters_change_nothing_and_are_the_same_on_every_mesh(layout: Layout) -> None:
    config, eight = TINY["llama"], Layout(make_mesh(MeshConfig(2, 2, 2)), TRAIN_RULES)
    alone, spread = (
        add_adapters(initialize_parameters(config, each, seed=0), config, each, LORA, seed=5)
        for each in (layout, eight)
    )
    assert_identical(jax.tree.map(np.asarray, alone), jax.tree.map(np.asarray, spread))
    for placed, abstract in zip(
        jax.tree.leaves(spread), jax.tree.leaves(abstract_masters(config, eight, LORA)[1]), strict=True
    ):
        assert (placed.shape, placed.dtype, placed.sharding) == (abstract.shape, abstract.dtype, abstract.sharding)
    tokens = np.arange(32)[None] % 64
    frozen = merge_adapters(alone)
    np.testing.assert_array_equal(
        logits(config, layout, alone, LORA, tokens), logits(config, layout, frozen, None, tokens)
    )


@pytest.mark.parametrize("twins", ["gemma2"], indirect=True)
def test_int8_weights_are_rounded_one_by_one_while_they_load(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in bfloat16 at once may be more than the devices hold."""
    lora = dataclasses.replace(LORA, frozen="int8")
    earlier, unrounded = jax.live_arrays(), []

    def freeze_and_count(path: Any, weight: nnx.Variable, lora: LoRAConfig) -> nnx.Variable:
        new = [array for array in jax.live_arrays() if not any(array is other for other in earlier)]
        unrounded.append(sum(array.dtype == jnp.bfloat16 and array.ndim > 2 for array in new))
        return freeze(path, weight, lora)

    monkeypatch.setattr("tpt_jax.checkpoints.model_folder.freeze", freeze_and_count)
    parameters = ModelFolder.open(twins.folder).load(twins.layout, lora=lora, seed=1)
    assert max(unrounded) == 1
    expected = add_adapters(twins.parameters, twins.config, twins.layout, lora, seed=1)
    for leaf, other in zip(jax.tree.leaves(parameters), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == other.dtype
        steps = 1 if leaf.dtype == jnp.int8 else 0  # bfloat16 first, so that some are rounded the other way
        np.testing.assert_allclose(leaf.astype(np.float32), other.astype(np.float32), atol=steps, rtol=0.01)


def test_int8_weights_compute_what_they_are_rounded_to(twins: Twins) -> None:
    """A product with int8 weights equals one with the weights that they stand for, adapters included."""
    lora = dataclasses.replace(LORA, frozen="int8", targets=("query", "down"))
    parameters = adapted(twins, lora)
    matrices = [name for name, each in flat_variables(parameters).items() if isinstance(each.get_value(), Int8Weight)]
    assert sorted(name[-1] for name in matrices) == sorted(ADAPTER_TARGETS)
    merged, tokens = merge_adapters(parameters), np.arange(48).reshape(2, 24)
    np.testing.assert_allclose(
        logits(twins.config, twins.layout, parameters, lora, tokens),
        logits(twins.config, twins.layout, merged, None, tokens),
        atol=2e-3,
    )
    gate = np.asarray(merged["layers"]["gate"][...])
    expected = np.asarray(twins.parameters["layers"]["gate"][...])
    step = np.abs(expected).max(axis=1, keepdims=True) / 127
    assert (np.abs(gate - expected) <= step * 0.5 + 2**-8 * np.abs(expected)).all()
    flat = dict(nnx.to_flat_state(parameters))
    layer = merged_layer(flat, ("layers", "gate"), jnp.int32(2))
    np.testing.assert_allclose(np.asarray(layer), gate[2], rtol=1e-6)


def test_a_stopped_training_resumes_to_the_same_adapters(program: TrainerProgram, tmp_path: Path) -> None:
    """Saves hold no frozen weights: they are smaller than these."""

    def parameters() -> nnx.State:
        weights = initialize_parameters(TINY["gemma2"], program.layout, seed=0)
        return add_adapters(weights, TINY["gemma2"], program.layout, LORA, seed=0)

    examples = random_examples(40)
    whole = FineTuning(program, parameters, examples, CONFIG, seed=0)
    list(whole)
    calls = itertools.count(1)
    checkpoints = TrainingCheckpoints(tmp_path, CONFIG.save_every)
    stopped = FineTuning(program, parameters, examples, CONFIG, 0, checkpoints, lambda: next(calls) == 6)
    with pytest.raises(Stopped):
        list(stopped)
    checkpoints.close()
    checkpoints = TrainingCheckpoints(tmp_path, CONFIG.save_every)
    resumed = FineTuning(program, parameters, examples, CONFIG, 0, checkpoints)
    assert resumed.first_step == 6
    list(resumed)
    checkpoints.close()
    assert_identical(resumed.parameters, whole.parameters)
    values = json.loads(next((tmp_path / "8").rglob("_METADATA")).read_text())["tree_metadata"]
    assert not any("frozen" in name or "embedding" in name for name in values)


# Checkpoints.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Changed adapters of a copy of the shipped model, as a run writes them from eight devices."""
    folder = tmp_path_factory.mktemp("lora")
    shipped = ModelFolder.open("quickstart")
    base = folder / "base"
    base.mkdir()
    for path in shipped.path.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    layout = Layout(make_mesh(MeshConfig(2, 2, 2)), TRAIN_RULES)
    model = ModelFolder.open(base)
    adapters, frozen = split_trained(model.load(layout, lora=LORA, seed=3))
    adapters = jax.tree.map(lambda leaf: leaf + 0.01, adapters)
    writer = CheckpointWriter()
    writer.save(to_path(folder / "001"), nnx.merge_state(adapters, frozen), model, {"tokens": 7}, lora=LORA)
    writer.close()
    return folder / "001"


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_checkpoint_holds_adapters_only_and_loads_on_any_mesh(checkpoint: Path, layout: Layout) -> None:
    folder = ModelFolder.open(checkpoint)
    folder.check_weights()
    trained = num_trained(folder.config, LORA)
    most = 4 * trained * 2 + 50_000  # Orbax writes small arrays once or twice
    assert folder_bytes(checkpoint / "parameters") < most < folder_bytes(checkpoint.parent / "base")
    parameters = folder.load(layout, lora=LORA)
    base = ModelFolder.open(checkpoint.parent / "base").load(layout, lora=LORA, seed=3)
    adapters, initial = (jax.tree.leaves(split_trained(each)[0]) for each in (parameters, base))
    for ours, theirs in zip(adapters, initial, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs) + np.float32(0.01))
    assert_identical(split_trained(parameters)[1], split_trained(base)[1])
    merged = folder.load(layout)
    assert_identical(merged, merge_adapters(parameters))
    assert jax.tree.structure(merged) == jax.tree.structure(ModelFolder.open("quickstart").load(layout))


def test_adapters_of_other_settings_begin_from_the_merged_weights(checkpoint: Path, layout: Layout) -> None:
    other = dataclasses.replace(LORA, rank=2)
    folder = ModelFolder.open(checkpoint)
    _, frozen = split_trained(folder.load(layout, lora=other))
    merged = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), folder.load(layout))
    assert_identical(jax.tree.leaves(frozen), jax.tree.leaves(merged))
    assert folder.adapter_file(LORA).base == os.fspath(checkpoint.parent / "base")
    assert folder.adapter_file(other).base == os.fspath(checkpoint)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda base: (base / "model.safetensors").rename(base / "gone"), "no safetensors"),
        (lambda base: base.rename(base.with_name("moved")), "which is not there; put it back"),
        (lambda base: change_a_weight(base / "model.safetensors"), "whose weights have changed"),
    ],
)
def test_a_base_that_is_gone_or_another_one_is_refused(
    checkpoint: Path, layout: Layout, tmp_path: Path, damage: Any, words: str
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in (checkpoint.parent / "base").iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    writer = CheckpointWriter()
    model = ModelFolder.open(base)
    writer.save(to_path(tmp_path / "001"), model.load(layout, lora=LORA), model, {}, lora=LORA)
    writer.close()
    damage(base)
    with pytest.raises(UserError) as caught:
        ModelFolder.open(tmp_path / "001").check_weights()
    assert words in str(caught.value) or "whose weights have changed" in str(caught.value)
    assert "\n" not in str(caught.value)


def change_a_weight(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100_000:] = bytes(100_000)
    path.write_bytes(data)


def test_a_fingerprint_does_not_depend_on_the_place(tmp_path: Path) -> None:
    shipped = ModelFolder.open("quickstart").path
    (tmp_path / "model.safetensors").write_bytes((shipped / "model.safetensors").read_bytes())
    assert fingerprint(to_path(tmp_path)) == fingerprint(shipped)


def test_an_exported_adapter_has_in_peft_the_logits_of_the_exported_merged_model(
    checkpoint: Path, tmp_path: Path, tpt_here: CommandHere
) -> None:
    import peft
    import torch
    import transformers

    tpt_here("export", "--checkpoint", checkpoint, "--output", tmp_path / "merged")
    tpt_here("export", "--checkpoint", checkpoint, "--output", tmp_path / "adapter", "--adapter")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    adapter = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(adapter(tokens).logits, merged(tokens).logits, atol=1e-3, rtol=1e-3)
        with adapter.disable_adapter():
            assert (adapter(tokens).logits - merged(tokens).logits).abs().max() > 0.1


def test_a_checkpoint_of_all_weights_has_no_adapter_to_export(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds all weights, not adapters"):
        export_adapters(ModelFolder.open("quickstart"), layout, tmp_path / "out")


# Settings and figures.


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ([], 1e-6),
        (["--train.lora.rank", "4"], 2e-4),
        (["--train.lora", "{}"], 2e-4),
        (["--train.lora.rank", "4", "--train.optimizer.learning_rate", "1e-3"], 1e-3),
    ],
)
def test_the_default_learning_rate_is_that_of_the_method(options: list[str], rate: float, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: c\nmodel: {path: quickstart}\ntask: {name: gsm8k}\n")
    assert load_config(tmp_path / "c.yaml", parse_overrides(options)).train.learning_rate == rate


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--train.lora.targets", "[query, q_proj]"],
            "train.lora.targets.1 ('q_proj'): input should be 'query', 'key'",
        ),
        (["--train.lora.targets", "[]"], "train.lora.targets"),
        (["--train.lora.rank", "0"], "train.lora.rank (0)"),
        (["--train.lora.rnk", "3"], "train.lora.rnk: unknown key; did you mean rank?"),
    ],
)
def test_a_mistake_in_the_settings_is_one_line(options: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: c\nmodel: {path: quickstart}\ntask: {name: gsm8k}\n")
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "c.yaml", parse_overrides(options))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sizes_and_flops_of_gemma2_2b(layout: Layout) -> None:
    """By hand: rank x (inputs + outputs) of each matrix; bfloat16 weights and fp32 adapters."""
    config, lora = PUBLISHED["gemma2-2b"], LoRAConfig(rank=16)
    matrices = [(2304, 2048), (2304, 1024), (2304, 1024), (2048, 2304), (2304, 9216), (2304, 9216), (9216, 2304)]
    trained = 26 * sum(16 * sum(sizes) for sizes in matrices)
    assert num_trained(config, lora) == trained
    assert master_bytes(config, layout, lora) == 2 * config.num_parameters + 4 * trained
    one_token = model_flops(config, [1], lora) - (model_flops(config, [1]) - 6 * config.num_parameters)
    assert one_token == 4 * config.num_parameters + 6 * trained


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_every_optimizer_trains_adapters(name: Any, layout: Layout) -> None:
    """Muon orthogonalises a matrix's update: with one step its singular values are all about the same."""
    adapters, _ = split_trained(
        add_adapters(initialize_parameters(TINY["llama"], layout, 0), TINY["llama"], layout, LORA, seed=0)
    )
    optimizer = make_optimizer(OptimizerConfig(name=name, max_grad_norm=1e9))
    keys = iter(jax.random.split(jax.random.key(0), 100))
    gradients = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), adapters)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(adapters), adapters)
    assert all(np.abs(np.asarray(leaf)).min(initial=1.0) > 0 for leaf in jax.tree.leaves(updates))
    if name == "muon":
        update = np.asarray(updates["layers"]["adapters"]["output"]["a"][...])[1].reshape(-1, LORA.rank)
        values = np.linalg.svd(update, compute_uv=False)
        assert values.max() < 2.0 * values.min()


def test_a_fine_tuned_model_goes_on_with_its_adapters(tmp_path: Path) -> None:
    """In the library: training changes the adapters; what is exported answers greedily as the model does here."""
    import torch
    import transformers

    model = tpt.load_model("quickstart")
    task = tpt.load_task("gsm_symbolic", templates=[48], num_train=24, num_test=4)
    kept = tpt.select(tpt.judge(tpt.sample(model, task.train, num_samples=2, num_slots=16), task), max_per_question=2)
    options: dict[str, Any] = {"rows": 8, "sequence_length": 192, "max_steps": 3, "num_epochs": 4}
    better = tpt.finetune(model, kept, **options, lora={"rank": 4}, optimizer={"learning_rate": 1e-2})
    again = tpt.finetune(better, kept, **options, lora={"rank": 4}, optimizer={"learning_rate": 1e-2})
    assert model.live_parameters() is model.parameters
    assert better.lora == again.lora == LoRAConfig(rank=4)
    first, second = (split_trained(each.live_parameters()) for each in (better, again))
    assert_identical(first[1], second[1])
    b = [np.asarray(each[0]["layers"]["adapters"]["query"]["b"][...]) for each in (first, second)]
    assert np.abs(b[0]).max() > 0
    assert np.abs(b[1] - b[0]).max() > 0
    assert "adapters" not in merge_adapters(again.parameters)["layers"]
    assert math.isfinite(tpt.evaluate(again, task.test, num_samples=1, num_slots=8).pass_at_1)
    again.export(tmp_path / "out")
    merged: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    prompt = again.prompt(task.test)
    greedy = tpt.sample(again, task.test[:2], num_samples=1, num_slots=8, temperature=0.0)
    for question, trace in zip(task.test[:2], greedy, strict=True):
        ids = torch.tensor([prompt.prompt_ids(question.question)])
        out = merged.generate(ids, max_new_tokens=100, do_sample=False)[0, ids.shape[1] :].tolist()
        assert trace.finish_reason == "stop"
        assert [*trace.token_ids, out[-1]] == out  # which ends with the end of turn
