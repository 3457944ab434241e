"""The Train phase: against a torch and transformers loop, on every mesh, packed against unpacked."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

from tpt_jax.bench.workloads import long_tailed
from tpt_jax.checkpoints.training import TrainingCheckpoints
from tpt_jax.config import MeshConfig, OptimizerConfig, TrainConfig
from tpt_jax.errors import Stopped
from tpt_jax.models.architecture import PUBLISHED
from tpt_jax.models.huggingface import initialize_parameters
from tpt_jax.models.transformer import abstract_parameters
from tpt_jax.prompts import Example
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.train.compile import TrainerProgram, compile_trainer
from tpt_jax.train.data import Batch, BatchShape, packed_batches, plan_rows, split_by_length
from tpt_jax.train.fit import Fit
from tpt_jax.train.optimizer import learning_rate_at, make_optimizer

CONFIG = TrainConfig(
    num_epochs=20,
    max_steps=20,
    rows=8,
    sequence_length=32,
    optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.1, max_grad_norm=1.0, beta2=0.95),
)


def random_examples(count: int, seed: int = 0, vocab_size: int = 64) -> list[Example]:
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        num_prompt, num_completion = rng.integers(2, 8), rng.integers(2, 9)
        tokens = rng.integers(1, vocab_size, num_prompt + num_completion)
        examples.append(Example(tuple(tokens.tolist()), int(num_prompt)))
    return examples


def fit_losses(program: TrainerProgram, parameters: nnx.State, config: TrainConfig) -> tuple[list[float], nnx.State]:
    fit = Fit(program, lambda: jax.tree.map(jnp.copy, parameters), random_examples(40), config, seed=0)
    return [record.loss for record in fit], fit.parameters


def torch_losses(model: Any, batches: list[Batch], config: OptimizerConfig) -> list[float]:
    """The same steps as a textbook has them: each packed segment a sequence of its own, torch's AdamW and clipping."""
    import torch
    import transformers

    decayed = [weight for name, weight in model.named_parameters() if "norm" not in name]
    norms = [weight for name, weight in model.named_parameters() if "norm" in name]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))
    warmup = math.ceil(config.warmup_fraction * len(batches))
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, len(batches))
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        total, count = torch.zeros(()), 0.0
        for row in range(batch.tokens.shape[1]):
            segments = np.asarray(batch.segment_ids[0, row])
            for segment in range(1, segments.max(initial=0) + 1):
                piece = segments == segment
                logits = model(torch.tensor(np.asarray(batch.tokens[0, row])[None, piece])).logits[0]
                targets = torch.tensor(np.asarray(batch.targets[0, row])[piece]).long()
                weights = torch.tensor(np.asarray(batch.loss_weights[0, row])[piece])
                total = total + (torch.nn.functional.cross_entropy(logits, targets, reduction="none") * weights).sum()
                count += float(weights.sum())
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(float(total.detach()) / count)
    return losses


@pytest.mark.parametrize("twins", ["gemma2", "llama"], indirect=True)
def test_twenty_steps_equal_a_torch_loop(twins: Twins) -> None:
    program = compile_trainer(twins.config, twins.layout.mesh, compute_dtype="float32", train=CONFIG)
    ours, _ = fit_losses(program, twins.parameters, CONFIG)
    batches = [
        packed.arrays for packed in packed_batches(random_examples(40), program.batch_shape, seed=0, num_epochs=20)[:20]
    ]
    model = copy.deepcopy(twins.torch_model).train()
    theirs = torch_losses(model, batches, CONFIG.optimizer)
    assert len(ours) == 20
    assert ours[-1] < 0.9 * ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_every_mesh_trains_alike(sizes: tuple[int, int, int], one_device_losses: list[float]) -> None:
    mesh = make_mesh(MeshConfig(*sizes))
    program = compile_trainer(TINY["gemma2"], mesh, compute_dtype="float32", train=CONFIG)
    parameters = initialize_parameters(TINY["gemma2"], program.layout, seed=0)
    losses, trained = fit_losses(program, parameters, CONFIG)
    np.testing.assert_allclose(losses, one_device_losses, rtol=1e-4)
    weight = jax.tree.leaves(trained)[0]
    assert weight.sharding.mesh.shape == mesh.shape


@pytest.fixture(scope="module")
def program(layout: Any) -> TrainerProgram:
    return compile_trainer(TINY["gemma2"], layout.mesh, compute_dtype="float32", train=CONFIG)


@pytest.fixture(scope="module")
def one_device_losses(program: TrainerProgram) -> list[float]:
    losses, _ = fit_losses(program, initialize_parameters(TINY["gemma2"], program.layout, seed=0), CONFIG)
    return losses


def test_micro_batches_add_up_to_the_whole_batch(layout: Any, one_device_losses: list[float]) -> None:
    """Four micro-batches of two rows, of unequal token counts, are one batch of eight."""
    config = dataclasses.replace(CONFIG, rows=2, micro_batches=4)
    program = compile_trainer(TINY["gemma2"], layout.mesh, compute_dtype="float32", train=config)
    losses, _ = fit_losses(program, initialize_parameters(TINY["gemma2"], layout, seed=0), config)
    np.testing.assert_allclose(losses, one_device_losses, rtol=1e-5)


def test_muon_orthogonalises_each_layer_on_its_own(layout: Any) -> None:
    """A stacked weight moves as if each layer's matrix were given to optax's muon alone."""
    from optax import contrib

    parameters: Any = initialize_parameters(TINY["llama"], layout, seed=0)
    gradients: Any = initialize_parameters(TINY["llama"], layout, seed=1)
    optimizer = make_optimizer(OptimizerConfig(name="muon", max_grad_norm=1e9))
    updates: Any = jax.jit(optimizer.update)(gradients, optimizer.init(parameters), parameters)[0]
    alone = contrib.muon(1.0, beta=0.95)

    def second_layer(state: Any) -> dict[str, jax.Array]:
        return {"query": state["layers"]["query"][...][1].reshape(32, 64)}

    expected: Any = alone.update(
        second_layer(gradients), alone.init(second_layer(parameters)), second_layer(parameters)
    )[0]
    np.testing.assert_allclose(second_layer(updates)["query"], expected["query"], rtol=1e-4, atol=1e-5)


def test_learning_rate_is_that_of_transformers() -> None:
    import torch
    import transformers

    config = OptimizerConfig(learning_rate=2e-3, warmup_fraction=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 5, 50)
    for step in range(50):
        assert learning_rate_at(step, 50, config) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=30),
    rows=st.integers(1, 4),
    micro_batches=st.integers(1, 2),
    seed=st.integers(0, 5),
)
def test_an_epoch_holds_each_example_once(
    lengths: list[tuple[int, int]], rows: int, micro_batches: int, seed: int
) -> None:
    examples = []
    for number, (num_prompt, num_completion) in enumerate(lengths, start=1):
        tokens = tuple(100 * number + offset for offset in range(num_prompt + num_completion))
        examples.append(Example(tokens, num_prompt))
    shape = BatchShape(micro_batches, rows, 20)
    found: list[tuple[int, ...]] = []
    for packed in packed_batches(examples, shape, seed=seed, num_epochs=1):
        batch = packed.arrays
        assert batch.tokens.shape == (micro_batches, rows, 20)
        for row in np.ndindex(micro_batches, rows):
            segments = np.asarray(batch.segment_ids[row])
            for segment in range(1, segments.max() + 1):
                piece = segments == segment
                tokens, targets = np.asarray(batch.tokens[row])[piece], np.asarray(batch.targets[row])[piece]
                weights = np.asarray(batch.loss_weights[row])[piece]
                whole = (*tokens.tolist(), int(targets[-1]))
                assert targets.tolist() == list(whole[1:])
                assert np.asarray(batch.positions[row])[piece].tolist() == list(range(len(tokens)))
                example = examples[whole[0] // 100 - 1]
                assert weights.tolist() == [0.0] * (example.num_prompt - 1) + [1.0] * (len(whole) - example.num_prompt)
                found.append(whole)
            assert not np.asarray(batch.loss_weights[row])[segments == 0].any()
    assert sorted(found) == sorted(example.tokens for example in examples)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=60))
def test_a_plan_holds_each_example_once_and_wastes_no_row(lengths: list[int]) -> None:
    rows = plan_rows(lengths, 50)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    filled = sorted(sum(lengths[index] for index in row) for row in rows)
    assert all(fill <= 50 for fill in filled)
    assert len(filled) < 2 or filled[0] + filled[1] > 50  # or the two emptiest rows would have been one


def test_traces_like_those_of_gsm8k_fill_their_rows() -> None:
    """As many as a round of the paper keeps. The last batch, filled up with rows of padding, is another matter."""
    lengths = np.clip(long_tailed(np.random.default_rng(0), 2000, 290, 1000), 60, None)
    examples = [Example((0,) * (length + 1), 1, str(index)) for index, length in enumerate(lengths)]
    shape = BatchShape(1, 32, 1024)
    batches = packed_batches(examples, shape, seed=0, num_epochs=1)
    assert sum(batch.num_tokens for batch in batches) == lengths.sum()
    assert lengths.sum() / (len(plan_rows(lengths.tolist(), 1024)) * 1024) > 0.98


def test_long_examples_are_left_out_whole() -> None:
    examples = [Example(tuple(range(length)), 1) for length in (5, 21, 22)]
    fitting, too_long = split_by_length(examples, 20)
    assert [len(example.tokens) for example in fitting] == [5, 21]
    assert too_long == examples[2:]


def test_a_step_that_is_not_finite_moves_nothing_and_names_its_traces(layout: Any) -> None:
    """A token's embedding is not a number; the steps that were dispatched after its trace's move nothing either."""
    program = compile_trainer(TINY["llama"], layout.mesh, compute_dtype="float32", train=CONFIG)
    config = dataclasses.replace(CONFIG, num_epochs=1, max_steps=None)
    good = [dataclasses.replace(x, id=f"good/{index}") for index, x in enumerate(random_examples(120, vocab_size=63))]
    examples = [dataclasses.replace(good[0], tokens=(*good[0].tokens[:-2], 63, 5), id="bad/7"), *good[1:]]
    ids = [batch.example_ids for batch in list(packed_batches(examples, program.batch_shape, seed=1, num_epochs=1))]
    step = next(step for step, names in enumerate(ids) if "bad/7" in names)
    assert 0 < step < len(ids) - 1

    def parameters() -> nnx.State:
        state: Any = initialize_parameters(TINY["llama"], layout, 0)
        state["embedding"][...] = state["embedding"][...].at[63].set(jnp.nan)
        return state

    fit = Fit(program, parameters, examples, config, seed=1)
    with pytest.raises(FloatingPointError, match=rf"train step {step}: .*bad/7") as stopped:
        list(fit)
    assert all(name in str(stopped.value) for name in ids[step])
    before = Fit(program, parameters, examples, dataclasses.replace(config, max_steps=step), seed=1)
    for ours, theirs in zip(jax.tree.leaves(fit.parameters), jax.tree.leaves(parameters()), strict=True):
        assert ours.shape == theirs.shape
        assert np.isfinite(ours).sum() == np.isfinite(theirs).sum()  # nothing that was a number is none now
    assert before.num_steps == step


def test_killed_inside_an_epoch_it_goes_on_with_the_next_unseen_batch(program: TrainerProgram, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_epochs=2, max_steps=9, save_every=4)
    examples = random_examples(120)

    def fit(checkpoints: TrainingCheckpoints | None) -> Fit:
        start = functools.partial(initialize_parameters, TINY["gemma2"], program.layout, 0)
        return Fit(program, start, examples, config, seed=0, checkpoints=checkpoints)

    whole = fit(None)
    expected = list(whole)
    assert len(expected) == 9
    killed = TrainingCheckpoints(tmp_path, 4)
    seen = [record for record, _ in zip(fit(killed), range(7), strict=False)]
    killed.close()
    again = TrainingCheckpoints(tmp_path, 4)
    resumed = fit(again)
    assert resumed.first_step == 4
    rest = list(resumed)
    again.close()
    assert seen == expected[:7]
    assert rest == expected[4:]
    assert resumed.counts == whole.counts
    for ours, theirs in zip(jax.tree.leaves(resumed.parameters), jax.tree.leaves(whole.parameters), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_save_that_is_broken_is_passed_over(program: TrainerProgram, tmp_path: Path) -> None:
    """Asked to stop after its fifth step, it saves there; that save is harmed, and the one before is gone on from."""
    config = dataclasses.replace(CONFIG, num_epochs=2, max_steps=9, save_every=4)
    start = functools.partial(initialize_parameters, TINY["gemma2"], program.layout, 0)
    asked = itertools.count(1)
    stopped = TrainingCheckpoints(tmp_path, 4)
    fit = Fit(program, start, random_examples(120), config, 0, stopped, should_stop=lambda: next(asked) == 5)
    seen = []
    with pytest.raises(Stopped):
        seen.extend(record.step for record in fit)
    stopped.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "5"]
    largest = max(
        (path for path in (tmp_path / "5").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[:-1])
    again = TrainingCheckpoints(tmp_path, 4)
    resumed = Fit(program, start, random_examples(120), config, 0, again)
    assert resumed.first_step == 4
    assert len(list(resumed)) == 5
    again.close()


def test_adafactor_trains_on_a_mesh(one_device_losses: list[float]) -> None:
    optimizer = dataclasses.replace(CONFIG.optimizer, name="adafactor")
    config = dataclasses.replace(CONFIG, max_steps=5, optimizer=optimizer)
    program = compile_trainer(TINY["gemma2"], make_mesh(MeshConfig(2, 2, 2)), compute_dtype="float32", train=config)
    losses, _ = fit_losses(program, initialize_parameters(TINY["gemma2"], program.layout, seed=0), config)
    assert losses[0] == pytest.approx(one_device_losses[0], rel=1e-4)
    assert losses[-1] < losses[0]


def test_adafactor_keeps_rows_and_columns_only() -> None:
    _, abstract = abstract_parameters(PUBLISHED["gemma2-2b"])
    state = jax.eval_shape(make_optimizer(OptimizerConfig(name="adafactor")).init, abstract)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(state)]
    assert sum(sizes) < 0.01 * PUBLISHED["gemma2-2b"].num_parameters


@pytest.mark.parametrize("moments", [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_adamw_is_optax_adamw_with_moments_of_these_types(moments: tuple[Any, Any]) -> None:
    config = OptimizerConfig(weight_decay=0.1, max_grad_norm=1e9, first_moment=moments[0], second_moment=moments[1])
    ours, theirs = make_optimizer(config), optax.adamw(1.0, config.beta1, config.beta2, weight_decay=0.1)
    random = np.random.default_rng(0)

    def weights() -> nnx.State:
        value = jnp.asarray(random.standard_normal((20, 30)), jnp.float32)
        return nnx.State({"gate": nnx.Param(value, logical_axes=("embed", "mlp"))})

    parameters: Any = weights()
    state, expected_state = ours.init(parameters), theirs.init(parameters)
    updates: Any = parameters
    expected: Any = parameters
    for _ in range(3):
        gradients: Any = weights()
        updates, state = ours.update(gradients, state, parameters)
        expected, expected_state = theirs.update(gradients, expected_state, parameters)
    got, wanted = np.asarray(updates["gate"][...]), np.asarray(expected["gate"][...])
    tolerance = 1e-5 if moments == ("float32", "float32") else 0.03
    np.testing.assert_allclose(got, wanted, atol=tolerance * float(np.abs(wanted).max()))
    found: Any = [optax.tree.get(state, name) for name in ("mu", "nu")]
    kept = [moment["gate"][...].dtype for moment in found]
    assert [str(dtype) for dtype in kept] == list(moments)
