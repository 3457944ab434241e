"""bfloat16 on CPU, where users try things first: sampling with any number of key-value heads."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import pytest
from conftest import TINY, jit_forward

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.transformer import initialize_parameters
from tpt_jax.runtime.sharding import Layout
from tpt_jax.think.engine import Engine
from tpt_jax.think.requests import FixedSchedule, Request
from tpt_jax.think.sampler import compile_sampler
from tpt_jax.think.state import SlotShape

NUM_PREFIX, NUM_PROMPTS, PROMPT_LENGTH = 32, 4, 6
SHAPE = SlotShape(
    num_slots=NUM_PROMPTS,
    num_questions=NUM_PROMPTS,
    num_traces=NUM_PROMPTS,
    num_prefix_tokens=NUM_PREFIX,
    max_prompt_tokens=PROMPT_LENGTH,
    max_new_tokens=4,
    chunk_steps=4,
    prefill_tokens=24,
)
TOKENS = np.random.default_rng(0).integers(10, 64, (NUM_PROMPTS, NUM_PREFIX + PROMPT_LENGTH)).astype(np.int32)
TOKENS[:, :NUM_PREFIX] = TOKENS[0, :NUM_PREFIX]


class Ids:
    """Stands in for a Prompt."""

    def text(self, token_ids: Sequence[int]) -> str:
        return str(token_ids)


def model_config(num_kv_heads: int) -> ModelConfig:
    return dataclasses.replace(TINY["llama"], num_layers=1, num_heads=6, num_kv_heads=num_kv_heads)


@pytest.mark.parametrize(
    ("num_kv_heads", "compute_dtype", "cache_type"),
    [
        (1, "bfloat16", "compute"),
        (2, "bfloat16", "compute"),
        (3, "bfloat16", "int8"),
        (3, "float32", "compute"),
    ],
)
def test_sampling_after_a_shared_prefix_equals_the_fp32_forward_pass(
    num_kv_heads: int, compute_dtype: str, cache_type: str, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy traces of one token, whose log-probability is the largest of the forward pass."""
    # One length instead of four compiles in a third of the time.
    monkeypatch.setattr(SlotShape, "live_lengths", property(lambda shape: (shape.cache_length,)))
    config = model_config(num_kv_heads)
    parameters = initialize_parameters(config, layout, seed=3)
    shape = dataclasses.replace(SHAPE, cache_type=cache_type)
    program = compile_sampler(config, layout.mesh, compute_dtype=compute_dtype, shapes={"think": shape}, stop_ids=(0,))
    engine = Engine(program.slots["think"], Ids(), tuple(TOKENS[0, :NUM_PREFIX].tolist()), 1)  # pyright: ignore[reportArgumentType]
    requests = [Request(str(row), tuple(TOKENS[row].tolist()), (0,), (1,)) for row in range(NUM_PROMPTS)]
    batches = engine.sample(
        program.reshards["think"](parameters), FixedSchedule(requests, 1), seed=0, round_index=0, temperature=0.0
    )
    sampled = {int(trace.id): trace.logprob for batch in batches for trace in batch}
    positions = np.broadcast_to(np.arange(TOKENS.shape[1], dtype=np.int32), TOKENS.shape)
    logits = jit_forward(config, layout)(parameters, TOKENS, positions, np.ones_like(TOKENS))[:, -1]
    expected = np.asarray(jax.nn.log_softmax(logits).max(axis=-1))
    tolerance = 1e-5 if compute_dtype == "float32" else 0.05
    np.testing.assert_allclose([sampled[row] for row in range(NUM_PROMPTS)], expected, atol=tolerance)
