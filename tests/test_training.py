"""The Train phase: against a torch and transformers loop, on every mesh, packed against unpacked."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, Twins
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tpt_jax.config import MeshConfig, OptimizerConfig, TrainConfig
from tpt_jax.mesh import make_mesh
from tpt_jax.models.huggingface import initialize_parameters
from tpt_jax.program import TrainerProgram, compile_trainer
from tpt_jax.prompts import Example
from tpt_jax.train.data import Batch, BatchShape, packed_batches, split_by_length
from tpt_jax.train.fit import Fit
from tpt_jax.train.optimizer import learning_rate_at

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


def test_twenty_steps_equal_a_torch_loop(twins: Twins) -> None:
    import copy

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
def one_device_losses(layout: Any) -> list[float]:
    program = compile_trainer(TINY["gemma2"], layout.mesh, compute_dtype="float32", train=CONFIG)
    losses, _ = fit_losses(program, initialize_parameters(TINY["gemma2"], layout, seed=0), CONFIG)
    return losses


def test_micro_batches_add_up_to_the_whole_batch(layout: Any, one_device_losses: list[float]) -> None:
    """Four micro-batches of two rows, of unequal token counts, are one batch of eight."""
    import dataclasses

    config = dataclasses.replace(CONFIG, rows=2, micro_batches=4)
    program = compile_trainer(TINY["gemma2"], layout.mesh, compute_dtype="float32", train=config)
    losses, _ = fit_losses(program, initialize_parameters(TINY["gemma2"], layout, seed=0), config)
    np.testing.assert_allclose(losses, one_device_losses, rtol=1e-5)


def test_muon_orthogonalises_each_layer_on_its_own(layout: Any) -> None:
    """A stacked weight moves as if each layer's matrix were given to optax's muon alone."""
    from optax import contrib

    from tpt_jax.train.optimizer import make_optimizer

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


def test_long_examples_are_left_out_whole() -> None:
    examples = [Example(tuple(range(length)), 1) for length in (5, 21, 22)]
    fitting, too_long = split_by_length(examples, 20)
    assert [len(example.tokens) for example in fitting] == [5, 21]
    assert too_long == examples[2:]


def test_a_loss_that_is_not_finite_stops_the_run(layout: Any) -> None:
    program = compile_trainer(TINY["gemma2"], layout.mesh, compute_dtype="float32", train=CONFIG)
    parameters = jax.tree.map(
        functools.partial(jnp.full_like, fill_value=jnp.nan), initialize_parameters(TINY["gemma2"], layout, 0)
    )
    with pytest.raises(FloatingPointError, match="train step 0"):
        list(Fit(program, lambda: parameters, random_examples(4), CONFIG, seed=0))
