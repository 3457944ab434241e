"""The sampler: against transformers' generate and the softmax; a trace's independence of batch, order and mesh."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, Twins
from flax import nnx

from tpt_jax.config import MeshConfig
from tpt_jax.errors import UserError
from tpt_jax.mesh import make_mesh
from tpt_jax.models.config import ModelConfig
from tpt_jax.models.huggingface import initialize_parameters
from tpt_jax.program import SamplerProgram, compile_sampler
from tpt_jax.sharding import TRAIN_RULES, Layout
from tpt_jax.think.generate import BatchShape, Completions, Request
from tpt_jax.think.sampling import question_number, sample_tokens, trace_keys

SHAPE = BatchShape(num_prompts=8, num_samples=2, max_prompt_tokens=12, max_new_tokens=16)
STOP = (5, 9)
PROMPTS = [tuple(np.random.default_rng(row).integers(10, 64, 3 + row).tolist()) for row in range(8)]


def compiled(config: ModelConfig, mesh: Any, shape: BatchShape = SHAPE) -> SamplerProgram:
    return compile_sampler(config, mesh, compute_dtype="float32", shapes={"think": shape}, stop_ids=STOP)


def sample(
    program: SamplerProgram,
    parameters: nnx.State,
    prompts: Sequence[tuple[int, ...]],
    temperature: float,
    seed: int = 0,
) -> Completions:
    """Completions of prompts, each of which is a question of its own."""
    (shape,) = program.generate
    padded = np.zeros((shape.num_prompts, shape.max_prompt_tokens), np.int32)
    lengths, numbers = np.zeros(shape.num_prompts, np.int32), np.zeros(shape.num_prompts, np.uint32)
    for row, prompt in enumerate(prompts):
        padded[row, -len(prompt) :] = prompt
        lengths[row], numbers[row] = len(prompt), question_number(str(prompt))
    arrays: dict[str, Any] = {
        "prompts": padded,
        "prompt_lengths": lengths,
        "questions": numbers,
        "seed": np.uint32(seed),
        "round_index": np.uint32(1),
        "temperature": np.float32(temperature),
    }
    request = Request(**arrays)
    done = program.generate[shape](program.relayout(parameters), program.place(request))
    return jax.tree.map(np.asarray, done)


def traces(done: Completions) -> list[tuple[int, ...]]:
    return [tuple(row[:length].tolist()) for row, length in zip(done.tokens, done.lengths, strict=True)]


@pytest.fixture(scope="module")
def tiny(layout: Layout) -> tuple[SamplerProgram, nnx.State]:
    return compiled(TINY["gemma2"], layout.mesh), initialize_parameters(TINY["gemma2"], layout, seed=3)


def test_greedy_equals_generate_of_transformers(twins: Twins) -> None:
    import torch

    program = compiled(twins.config, twins.layout.mesh)
    done = sample(program, twins.parameters, PROMPTS, temperature=0.0)
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            expected = twins.torch_model.generate(
                torch.tensor([prompt]),
                max_new_tokens=SHAPE.max_new_tokens,
                do_sample=False,
                eos_token_id=list(STOP),
                pad_token_id=0,
                use_cache=False,
            )
        new = tuple(expected[0, len(prompt) :].tolist())
        assert traces(done)[2 * row] == traces(done)[2 * row + 1] == new
        assert bool(done.stopped[2 * row]) == (new[-1] in STOP)


def test_logprobs_are_those_of_the_full_forward(twins: Twins) -> None:
    done = sample(compiled(twins.config, twins.layout.mesh), twins.parameters, PROMPTS, temperature=1.0)
    for row, trace in enumerate(traces(done)):
        whole = np.asarray([[*PROMPTS[row // 2], *trace]])
        logits = twins.expected_logits(whole)[0, :-1].astype(np.float64)
        scores = (
            logits
            - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
            - logits.max(-1, keepdims=True)
        )
        expected = sum(scores[len(PROMPTS[row // 2]) - 1 + step, token] for step, token in enumerate(trace))
        assert done.logprobs[row] == pytest.approx(expected, rel=1e-3, abs=2e-5)  # fp32 logits of up to 30


def test_a_trace_does_not_depend_on_its_batch(tiny: tuple[SamplerProgram, nnx.State], layout: Layout) -> None:
    program, parameters = tiny
    together = traces(sample(program, parameters, PROMPTS, temperature=1.0))
    reversed_order = traces(sample(program, parameters, PROMPTS[::-1], temperature=1.0))
    assert [reversed_order[2 * (7 - row // 2) + row % 2] for row in range(16)] == together
    small = compiled(TINY["gemma2"], layout.mesh, dataclasses.replace(SHAPE, num_prompts=2, num_samples=4))
    alone = traces(sample(small, parameters, PROMPTS[:1], temperature=1.0))  # the other row fills the batch
    assert alone[:2] == together[:2]
    assert len(set(alone[:4])) == 4  # samples of one question differ
    other_seed = traces(sample(program, parameters, PROMPTS, temperature=1.0, seed=1))
    assert other_seed != together


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_every_mesh_samples_alike(sizes: tuple[int, int, int], tiny: tuple[SamplerProgram, nnx.State]) -> None:
    program, parameters = tiny
    mesh = make_mesh(MeshConfig(*sizes))
    spread = initialize_parameters(TINY["gemma2"], Layout(mesh, TRAIN_RULES), seed=3)
    other = compiled(TINY["gemma2"], mesh)
    for temperature in (0.0, 1.0):
        expected = sample(program, parameters, PROMPTS, temperature)
        got = sample(other, spread, PROMPTS, temperature)
        assert traces(got) == traces(expected)
        np.testing.assert_allclose(got.logprobs, expected.logprobs, rtol=1e-3)


def test_sampled_frequencies_are_those_of_the_softmax() -> None:
    """Chi-square over 20,000 draws at temperature 0.7; the limit is the 99.9% point for 9 degrees of freedom."""
    logits, count, temperature = np.linspace(-1.0, 2.0, 10).astype(np.float32), 20_000, 0.7
    keys = trace_keys(jnp.uint32(0), jnp.uint32(0), jnp.arange(count, dtype=jnp.uint32), jnp.zeros(count, jnp.uint32))
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, 10))
    tokens, _ = sample_tokens(rows, keys, jnp.zeros(count, jnp.int32), jnp.float32(temperature))
    expected = np.exp(logits / temperature)
    expected *= count / expected.sum()
    observed = np.bincount(np.asarray(tokens), minlength=10)
    assert ((observed - expected) ** 2 / expected).sum() < 27.88


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"think.batch_size \(12\) must be a multiple of .* = 2 x 8 = 16; try 16"):
        compiled(TINY["llama"], make_mesh(MeshConfig(8, 1, 1)), dataclasses.replace(SHAPE, num_prompts=6))
