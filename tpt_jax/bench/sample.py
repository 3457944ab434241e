"""Measures how fast a model samples on this machine, against the bytes that a decode step must read."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from tpt_jax.bench.workloads import load_or_initialize, long_tailed
from tpt_jax.config import MeshConfig
from tpt_jax.errors import UserError
from tpt_jax.models.decoding_weights import DecodingWeights
from tpt_jax.plan.hlo import Module
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
from tpt_jax.terminal import percent
from tpt_jax.think.cache import CacheType
from tpt_jax.think.cost_probes import NUM_DECODE_STEPS, compile_decode_steps, least_step_bytes
from tpt_jax.think.engine import Engine, Statistics
from tpt_jax.think.requests import FixedSchedule, Request
from tpt_jax.think.sampler import SamplerProgram, compile_sampler
from tpt_jax.think.state import SlotShape

SECTION = "bench"


@dataclasses.dataclass(frozen=True)
class Workload:
    """What to sample.

    Attributes:
      model: a model folder, or the name of a published architecture (random weights).
      prompt_tokens: longest prompt; the shortest is a third as long.
      max_new_tokens, mean_new_tokens: longest and approximate mean trace; lengths are long-tailed.
      num_slots: over all data shards.
      tensor: devices over which each weight is split.
    """

    model: str
    num_questions: int
    num_samples: int
    prompt_tokens: int
    max_new_tokens: int
    mean_new_tokens: int
    num_slots: int
    tensor: int
    compute_dtype: str
    cache_type: CacheType
    weights: DecodingWeights


def measure(workload: Workload) -> dict[str, str]:
    """Samples the workload with compiled and warmed-up programs; returns figures as text, by name.

    Raises:
      UserError: an unknown model, or a workload that does not divide over the data shards.
    """
    layout = Layout(make_mesh(MeshConfig(tensor=workload.tensor)), TRAIN_RULES)
    config, parameters = load_or_initialize(workload.model, layout)
    num_shards = layout.batch_ways
    if workload.num_slots % num_shards or workload.num_questions % num_shards:
        raise UserError(
            f"--num_slots ({workload.num_slots}) and --num_questions ({workload.num_questions}) must be multiples of "
            f"the {num_shards} data shards"
        )
    program = compile_sampler(
        config,
        layout.mesh,
        compute_dtype=workload.compute_dtype,
        shapes={SECTION: _slot_shape(workload, num_shards)},
        stop_ids=(config.vocab_size,),  # never sampled: every trace reaches its limit
    )
    slots = program.slots[SECTION]
    decoding_parameters = program.reshards[SECTION](parameters)
    requests = synthetic_requests(workload, config.vocab_size)
    one_token = [dataclasses.replace(request, limits=(1,) * workload.num_samples) for request in requests]
    _sample(program, decoding_parameters, one_token)  # warm-up: touches fresh memory
    prefill = _sample(program, decoding_parameters, one_token)
    full = _sample(program, decoding_parameters, requests)
    steps = compile_decode_steps(config, program.layout, slots)
    step_bytes = Module(str(steps.as_text())).bytes() // NUM_DECODE_STEPS
    return _figures(full, prefill, slots.shape, step_bytes, least_step_bytes(slots))


def _slot_shape(workload: Workload, num_shards: int) -> SlotShape:
    num_questions = workload.num_questions // num_shards
    return SlotShape(
        num_slots=workload.num_slots // num_shards,
        num_questions=num_questions,
        num_traces=num_questions * workload.num_samples,
        traces_per_prefill=workload.num_samples,
        num_prefix_tokens=0,
        max_prompt_tokens=workload.prompt_tokens,
        max_new_tokens=workload.max_new_tokens,
        cache_type=workload.cache_type,
        weights=workload.weights,
    )


def synthetic_requests(workload: Workload, vocab_size: int) -> list[Request]:
    """Random prompts; each trace has its own limit, drawn from a long-tailed distribution."""
    rng = np.random.default_rng(0)
    num_questions, num_samples = workload.num_questions, workload.num_samples
    lengths = rng.integers(max(1, workload.prompt_tokens // 3), workload.prompt_tokens + 1, num_questions)
    limits = long_tailed(rng, num_questions * num_samples, workload.mean_new_tokens, workload.max_new_tokens)
    samples = tuple(range(num_samples))
    return [
        Request(str(index), tuple(rng.integers(0, vocab_size, length).tolist()), samples, tuple(question_limits))
        for index, (length, question_limits) in enumerate(
            zip(lengths, limits.reshape(num_questions, num_samples).tolist(), strict=True)
        )
    ]


class _NoTokenizer:
    """Stands in for a Prompt: synthetic tokens have no text."""

    def text(self, token_ids: object) -> str:
        return ""


def _sample(program: SamplerProgram, parameters: nnx.State, requests: Sequence[Request]) -> Statistics:
    engine = Engine(program.slots[SECTION], _NoTokenizer(), (), program.layout.batch_ways)  # pyright: ignore[reportArgumentType]
    schedule = FixedSchedule(requests, program.layout.batch_ways)
    for _ in engine.sample(parameters, schedule, seed=0, round_index=0, temperature=1.0):
        pass
    return engine.statistics


def _figures(
    full: Statistics, prefill: Statistics, shape: SlotShape, step_bytes: int, least_bytes: int
) -> dict[str, str]:
    """Figures of the whole workload; `prefill` is the same workload with one new token per trace."""
    step_seconds = (full.seconds - prefill.seconds) / max(1, full.num_steps - prefill.num_steps)
    prefill_seconds = max(0.0, prefill.seconds - prefill.num_steps * step_seconds)
    rate = full.num_tokens / full.seconds
    idle_share, prefill_share = full.idle_share, prefill_seconds / full.seconds
    return {
        "tokens": f"{full.num_tokens:,} in {full.seconds:.1f} s",
        "tokens/s": f"{rate:,.0f}",
        "tokens/s/device": f"{rate / len(jax.devices()):,.0f}",
        "slots busy": f"{percent(full.occupancy(shape.num_slots))} of {shape.num_slots} per shard, while traces waited",
        "step time": f"{1000 * step_seconds:.2f} ms",
        "bytes per step": f"{step_bytes / 1e9:.3f} GB per device with a full KV cache, "
        f"{step_bytes / least_bytes:.2f} x the minimum ({least_bytes / 1e9:.3f} GB: weights and KV cache once)",
        "time": f"prefill {prefill_share:.1%}, decode {1 - prefill_share - idle_share:.1%}, "
        f"device waiting for the host {idle_share:.1%}",
    }
