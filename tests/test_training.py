"""Fine-tuning: against a torch loop, on every mesh, across micro-batches, non-finite steps and interruptions."""

import copy
import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY, Twins
from flax import nnx

from tpt_jax.checkpoints.training import TrainingCheckpoints
from tpt_jax.config import MeshConfig, OptimizerConfig, TrainConfig
from tpt_jax.errors import Stopped
from tpt_jax.models.transformer import abstract_parameters, initialize_parameters
from tpt_jax.prompts import Example
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import Layout
from tpt_jax.train.compile import TrainerProgram, compile_trainer
from tpt_jax.train.data import Batch, BatchShape, packed_batches
from tpt_jax.train.fine_tuning import FineTuning
from tpt_jax.train.optimizer import make_optimizer
from tpt_jax.train.step import StepOptions, TrainState, train_step

CONFIG = TrainConfig(
    num_epochs=20,
    max_steps=20,
    rows=8,
    sequence_length=32,
    optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.1, max_grad_norm=1.0, beta2=0.95),
)
MICRO_BATCHES = dataclasses.replace(CONFIG, rows=2, micro_batches=4)  # the same rows per step


def random_examples(count: int, seed: int = 0, vocab_size: int = 64) -> list[Example]:
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        num_prompt, num_completion = rng.integers(2, 8), rng.integers(2, 9)
        tokens = rng.integers(1, vocab_size, num_prompt + num_completion)
        examples.append(Example(tuple(tokens.tolist()), int(num_prompt)))
    return examples


def random_batch(shape: BatchShape, seed: int = 0) -> Batch:
    packed = packed_batches(random_examples(40, seed), shape, seed=0, num_epochs=1)[0]
    assert packed is not None
    return packed.arrays


def fit_losses(program: TrainerProgram, parameters: nnx.State, config: TrainConfig) -> tuple[list[float], nnx.State]:
    training = FineTuning(program, lambda: jax.tree.map(jnp.copy, parameters), random_examples(40), config, seed=0)
    return [record.loss for record in training], training.parameters


def assert_identical(tree: Any, expected: Any) -> None:
    """Bit for bit."""
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for leaf, expected_leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected_leaf))


@pytest.fixture(scope="module")
def program(layout: Layout) -> TrainerProgram:
    return compile_trainer(TINY["gemma2"], layout.mesh, compute_dtype="float32", train=CONFIG)


@pytest.fixture(scope="module")
def micro_batch_program(layout: Layout) -> TrainerProgram:
    return compile_trainer(TINY["gemma2"], layout.mesh, compute_dtype="float32", train=MICRO_BATCHES)


@pytest.fixture(scope="module")
def one_device_losses(program: TrainerProgram) -> list[float]:
    losses, _ = fit_losses(program, initialize_parameters(TINY["gemma2"], program.layout, seed=0), CONFIG)
    return losses


def torch_curves(model: Any, batches: list[Batch], config: OptimizerConfig) -> list[tuple[float, float, float]]:
    """The same steps in plain torch: each packed segment as a separate sequence, torch's AdamW and clipping.

    Returns:
      The loss, the gradient's norm and the learning rate of each step.
    """
    import torch
    import transformers

    decayed = [weight for name, weight in model.named_parameters() if "norm" not in name]
    norms = [weight for name, weight in model.named_parameters() if "norm" in name]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    assert config.learning_rate is not None
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))
    warmup = math.ceil(config.warmup_fraction * len(batches))
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, len(batches))
    curves = []
    for batch in batches:
        optimizer.zero_grad()
        total, count = torch.zeros(()), 0.0
        for row in range(batch.tokens.shape[1]):
            segment_ids = np.asarray(batch.segment_ids[0, row])
            for segment in range(1, segment_ids.max(initial=0) + 1):
                mask = segment_ids == segment
                logits = model(torch.tensor(np.asarray(batch.tokens[0, row])[None, mask])).logits[0]
                targets = torch.tensor(np.asarray(batch.targets[0, row])[mask]).long()
                weights = torch.tensor(np.asarray(batch.loss_weights[0, row])[mask])
                total = total + (torch.nn.functional.cross_entropy(logits, targets, reduction="none") * weights).sum()
                count += float(weights.sum())
        (total / count).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm))
        curves.append((float(total.detach()) / count, norm, schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return curves


@pytest.mark.parametrize("twins", ["gemma2", "llama"], indirect=True)
def test_curves_of_twenty_steps_equal_those_of_a_torch_loop(twins: Twins) -> None:
    program = compile_trainer(twins.config, twins.layout.mesh, compute_dtype="float32", train=CONFIG)
    training = FineTuning(program, lambda: jax.tree.map(jnp.copy, twins.parameters), random_examples(40), CONFIG, 0)
    curves = [(record.loss, record.grad_norm, record.learning_rate) for record in training]
    batches = packed_batches(random_examples(40), program.batch_shape, seed=0, num_epochs=20)[:20]
    model = copy.deepcopy(twins.torch_model).train()
    expected = torch_curves(model, [packed.arrays for packed in batches], CONFIG.optimizer)
    assert len(curves) == 20
    assert curves[-1][0] < 0.9 * curves[0][0]
    np.testing.assert_allclose(curves, expected, rtol=1e-3)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_losses_are_the_same_on_every_mesh(sizes: tuple[int, int, int], one_device_losses: list[float]) -> None:
    mesh = make_mesh(MeshConfig(*sizes))
    program = compile_trainer(TINY["gemma2"], mesh, compute_dtype="float32", train=CONFIG)
    parameters = initialize_parameters(TINY["gemma2"], program.layout, seed=0)
    losses, trained = fit_losses(program, parameters, CONFIG)
    np.testing.assert_allclose(losses, one_device_losses, rtol=1e-4)
    weight = jax.tree.leaves(trained)[0]
    assert weight.sharding.mesh.shape == mesh.shape


def test_adafactor_trains_on_a_mesh(one_device_losses: list[float]) -> None:
    optimizer = dataclasses.replace(CONFIG.optimizer, name="adafactor")
    config = dataclasses.replace(CONFIG, max_steps=5, optimizer=optimizer)
    program = compile_trainer(TINY["gemma2"], make_mesh(MeshConfig(2, 2, 2)), compute_dtype="float32", train=config)
    losses, _ = fit_losses(program, initialize_parameters(TINY["gemma2"], program.layout, seed=0), config)
    assert losses[0] == pytest.approx(one_device_losses[0], rel=1e-4)
    assert losses[-1] < losses[0]


def test_losses_with_micro_batches_equal_those_of_whole_batches(
    micro_batch_program: TrainerProgram, one_device_losses: list[float]
) -> None:
    """Over twenty steps: four micro-batches of two rows against one batch of eight."""
    parameters = initialize_parameters(TINY["gemma2"], micro_batch_program.layout, seed=0)
    losses, _ = fit_losses(micro_batch_program, parameters, MICRO_BATCHES)
    np.testing.assert_allclose(losses, one_device_losses, rtol=1e-5)


def test_gradients_are_weighted_by_tokens_across_micro_batches(
    program: TrainerProgram, micro_batch_program: TrainerProgram
) -> None:
    """One step on four micro-batches, three of which have a single token with loss, against one batch of the rows.

    After one step of Adam from zero, the first moments are the clipped gradient times 1 - beta1.
    """
    batch = random_batch(micro_batch_program.batch_shape)
    loss_weights = np.array(batch.loss_weights)
    for micro_batch in loss_weights[1:]:
        kept = tuple(index[0] for index in micro_batch.nonzero())
        micro_batch[:] = 0.0
        micro_batch[kept] = 1.0
    assert loss_weights.sum(axis=(1, 2)).tolist()[1:] == [1.0, 1.0, 1.0]
    assert loss_weights[0].sum() > 10
    batch = dataclasses.replace(batch, loss_weights=jnp.asarray(loss_weights))
    whole = jax.tree.map(lambda array: np.asarray(array).reshape(1, 8, 32), batch)

    def first_moments(program: TrainerProgram, batch: Batch) -> tuple[list[jax.Array], float]:
        state = program.init_state(initialize_parameters(TINY["gemma2"], program.layout, seed=0))
        state, metrics = program.step(state, batch, 1e-3)
        return jax.tree.leaves(optax.tree.get(state.optimizer, "mu")), float(metrics.grad_norm)

    moments, grad_norm = first_moments(micro_batch_program, batch)
    expected_moments, expected_norm = first_moments(program, whole)
    assert grad_norm == pytest.approx(expected_norm, rel=1e-5)
    for moment, expected in zip(moments, expected_moments, strict=True):
        np.testing.assert_allclose(moment, expected, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))


def test_a_batch_of_padding_changes_nothing_but_the_weight_decay(program: TrainerProgram) -> None:
    parameters = initialize_parameters(TINY["gemma2"], program.layout, seed=0)
    before = jax.tree.map(np.asarray, parameters)
    padding = jax.tree.map(np.zeros_like, random_batch(program.batch_shape))
    state, metrics = program.step(program.init_state(parameters), padding, 1e-2)
    assert float(metrics.loss) == float(metrics.grad_norm) == 0.0
    assert bool(state.is_finite)
    gate, gate_before = (np.asarray(weights["layers"]["gate"][...]) for weights in (state.parameters, before))
    np.testing.assert_allclose(gate, gate_before * (1 - 1e-2 * 0.1), rtol=1e-5)


def test_bf16_compute_keeps_fp32_weights(layout: Layout) -> None:
    train = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(first_moment="bfloat16", second_moment="bfloat16"))
    program = compile_trainer(TINY["llama"], layout.mesh, compute_dtype="bfloat16", train=train)
    state = program.init_state(initialize_parameters(TINY["llama"], layout, seed=0))
    state, _ = program.step(state, random_batch(program.batch_shape), 1e-3)
    assert {str(weight.dtype) for weight in jax.tree.leaves(state.parameters)} == {"float32"}
    for name in ("mu", "nu"):
        moments = jax.tree.leaves(optax.tree.get(state.optimizer, name))
        assert {str(moment.dtype) for moment in moments} == {"bfloat16"}


def test_after_a_non_finite_loss_no_later_step_changes_anything(program: TrainerProgram) -> None:
    """Later steps have been dispatched before the loss is read; their own losses are finite."""
    good = [random_batch(program.batch_shape, seed) for seed in range(3)]
    bad = dataclasses.replace(good[0], loss_weights=np.full_like(good[0].loss_weights, np.nan))

    def copy_to_host(state: TrainState) -> Any:
        return jax.tree.map(np.array, (state.parameters, state.optimizer))

    state = program.init_state(initialize_parameters(TINY["gemma2"], program.layout, seed=0))
    initial = copy_to_host(state)
    state, _ = program.step(state, good[0], 1e-2)
    before = copy_to_host(state)
    assert bool(state.is_finite)
    assert not np.array_equal(jax.tree.leaves(before)[0], jax.tree.leaves(initial)[0])  # a good step does change it
    state, metrics = program.step(state, bad, 1e-2)
    assert math.isnan(float(metrics.loss))
    assert_identical(copy_to_host(state), before)
    for batch in good:
        state, metrics = program.step(state, batch, 1e-2)
        assert math.isfinite(float(metrics.loss))
        assert math.isfinite(float(metrics.grad_norm))
        assert not bool(state.is_finite)
        assert_identical(copy_to_host(state), before)


def test_a_non_finite_gradient_of_a_finite_loss_changes_nothing(layout: Layout) -> None:
    """The loss is sqrt(0), which is 0; its derivative is not a number."""
    parameters = initialize_parameters(TINY["llama"], layout, seed=0)
    options = StepOptions(
        graph=abstract_parameters(TINY["llama"])[0],
        optimizer=make_optimizer(CONFIG.optimizer),
        layout=layout,
        compute_dtype=jnp.dtype("float32"),
        kernel="xla",
        remat="none",
        token_loss=lambda nll: jnp.sqrt(nll - nll),
    )
    state = TrainState(parameters, nnx.State({}), options.optimizer.init(parameters), jnp.asarray(True))
    batch = jax.tree.map(jnp.asarray, random_batch(BatchShape(1, 2, 32)))
    new_state, metrics = jax.jit(functools.partial(train_step, options=options))(state, batch, jnp.float32(1e-2))
    assert float(metrics.loss) == 0.0
    assert math.isnan(float(metrics.grad_norm))
    assert not bool(new_state.is_finite)
    assert_identical((new_state.parameters, new_state.optimizer), (state.parameters, state.optimizer))


def test_a_non_finite_step_ends_the_training_and_names_its_traces(layout: Layout) -> None:
    """One token's embedding is NaN. The weights stay those of the step before, although a later step was dispatched."""
    program = compile_trainer(TINY["llama"], layout.mesh, compute_dtype="float32", train=CONFIG)
    config = dataclasses.replace(CONFIG, num_epochs=1, max_steps=None)
    good = [dataclasses.replace(x, id=f"good/{index}") for index, x in enumerate(random_examples(120, vocab_size=63))]
    examples = [dataclasses.replace(good[0], tokens=(*good[0].tokens[:-2], 63, 5), id="bad/7"), *good[1:]]
    ids = [batch.example_ids for batch in packed_batches(examples, program.batch_shape, seed=1, num_epochs=1)]
    bad_step = next(step for step, step_ids in enumerate(ids) if "bad/7" in step_ids)
    assert 0 < bad_step < len(ids) - 1

    def parameters() -> nnx.State:
        state: Any = initialize_parameters(TINY["llama"], layout, 0)
        state["embedding"][...] = state["embedding"][...].at[63].set(jnp.nan)
        return state

    training = FineTuning(program, parameters, examples, config, seed=1)
    with pytest.raises(FloatingPointError, match=rf"train step {bad_step}: .*bad/7") as error:
        list(training)
    assert all(name in str(error.value) for name in ids[bad_step])
    calls = itertools.count(1)
    shorter = FineTuning(program, parameters, examples, config, seed=1, should_stop=lambda: next(calls) == bad_step)
    with pytest.raises(Stopped):
        list(shorter)
    assert_identical(training.parameters, shorter.parameters)


def test_killed_within_an_epoch_it_resumes_with_the_next_batch(program: TrainerProgram, tmp_path: Path) -> None:
    """Records, counts and weights are those of a training that was never killed."""
    config = dataclasses.replace(CONFIG, num_epochs=2, max_steps=9, save_every=4)
    examples = random_examples(120)

    def start(checkpoints: TrainingCheckpoints | None) -> FineTuning:
        parameters = functools.partial(initialize_parameters, TINY["gemma2"], program.layout, 0)
        return FineTuning(program, parameters, examples, config, seed=0, checkpoints=checkpoints)

    uninterrupted = start(None)
    expected = list(uninterrupted)
    assert len(expected) == 9
    checkpoints = TrainingCheckpoints(tmp_path, 4)
    records = [record for record, _ in zip(start(checkpoints), range(7), strict=False)]
    checkpoints.close()
    checkpoints = TrainingCheckpoints(tmp_path, 4)
    resumed = start(checkpoints)
    assert resumed.first_step == 4
    resumed_records = list(resumed)
    checkpoints.close()
    assert records == expected[:7]
    assert resumed_records == expected[4:]
    assert resumed.counts == uninterrupted.counts
    assert_identical(resumed.parameters, uninterrupted.parameters)


def test_a_request_to_stop_after_the_last_step_comes_too_late(program: TrainerProgram) -> None:
    """The training is done; stopping would lose the steps since the last save."""
    config = dataclasses.replace(CONFIG, max_steps=2)
    calls = itertools.count(1)
    parameters = functools.partial(initialize_parameters, TINY["gemma2"], program.layout, 0)
    training = FineTuning(program, parameters, random_examples(120), config, 0, should_stop=lambda: next(calls) > 1)
    assert [record.step for record in training] == [0, 1]


def test_a_corrupt_save_is_skipped_for_the_one_before(program: TrainerProgram, tmp_path: Path) -> None:
    """Stopped after its fifth step, the training saves there; that save is then truncated."""
    config = dataclasses.replace(CONFIG, num_epochs=2, max_steps=9, save_every=4)
    parameters = functools.partial(initialize_parameters, TINY["gemma2"], program.layout, 0)
    calls = itertools.count(1)
    checkpoints = TrainingCheckpoints(tmp_path, 4)
    stopped = FineTuning(
        program, parameters, random_examples(120), config, 0, checkpoints, should_stop=lambda: next(calls) == 5
    )
    with pytest.raises(Stopped):
        list(stopped)
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "5"]
    files = [path for path in (tmp_path / "5").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    checkpoints = TrainingCheckpoints(tmp_path, 4)
    resumed = FineTuning(program, parameters, random_examples(120), config, 0, checkpoints)
    assert resumed.first_step == 4
    assert len(list(resumed)) == 5
    checkpoints.close()
