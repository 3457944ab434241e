"""Measures how fast a model trains on this machine, against the speed of a plain matrix product."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from flax import nnx

from tpt_jax.bench.workloads import load_or_initialize, long_tailed, matmul_flops
from tpt_jax.config import MeshConfig, TrainConfig
from tpt_jax.errors import UserError
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.prompts import Example
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
from tpt_jax.train.compile import TrainerProgram, compile_trainer
from tpt_jax.train.data import packed_batches
from tpt_jax.train.fine_tuning import FineTuning
from tpt_jax.train.flops import model_flops

WARM_UP_STEPS = 2  # run before timing starts


@dataclasses.dataclass(frozen=True)
class Workload:
    """What to train on.

    Attributes:
      model: a model folder, or the name of a published architecture (random weights).
      num_steps: timed steps.
      mean_tokens: approximate mean length of an example; lengths are long-tailed.
      tensor: devices over which each weight is split.
      train: rows, micro-batches, optimizer and so on; `max_steps` is ignored.
    """

    model: str
    num_steps: int
    mean_tokens: int
    tensor: int
    compute_dtype: str
    train: TrainConfig


@dataclasses.dataclass(frozen=True)
class _Timing:
    """Timed steps: their seconds, the lengths of their examples, and the share of tokens that is not padding."""

    seconds: float
    lengths: list[int]
    packing: float


def measure(workload: Workload) -> dict[str, str]:
    """Trains on synthetic examples; returns figures as text, by name.

    Raises:
      UserError: an unknown model, or rows that do not divide over the data shards.
    """
    layout = Layout(make_mesh(MeshConfig(tensor=workload.tensor)), TRAIN_RULES)
    if workload.train.rows % layout.batch_ways:
        raise UserError(
            f"--rows ({workload.train.rows}) must be a multiple of the {layout.batch_ways} data shards; "
            f"try {-(-workload.train.rows // layout.batch_ways) * layout.batch_ways}"
        )
    train = dataclasses.replace(workload.train, max_steps=WARM_UP_STEPS + workload.num_steps)
    model, parameters = load_or_initialize(workload.model, layout)
    started = time.perf_counter()
    program = compile_trainer(model, layout.mesh, compute_dtype=workload.compute_dtype, train=train)
    compile_seconds = time.perf_counter() - started
    num_tokens = program.batch_shape.num_tokens * (WARM_UP_STEPS + workload.num_steps)
    examples = synthetic_examples(model.vocab_size, num_tokens, workload.mean_tokens, train.sequence_length)
    timing = _train(program, parameters, examples, train)
    return _figures(program, model, timing, compile_seconds, matmul_flops(workload.compute_dtype))


def synthetic_examples(vocab_size: int, num_tokens: int, mean_tokens: int, longest: int) -> list[Example]:
    """Random examples of at least `num_tokens` tokens in total; two fifths of each are the prompt."""
    rng = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < num_tokens:  # clipping to `longest` lowers the mean
        lengths += np.clip(long_tailed(rng, max(1, num_tokens // mean_tokens), mean_tokens, longest), 3, None).tolist()
    num_examples = int(np.searchsorted(np.cumsum(lengths), num_tokens)) + 1
    sequences = [tuple(rng.integers(0, vocab_size, length + 1).tolist()) for length in lengths[:num_examples]]
    return [Example(tokens, max(1, 2 * len(tokens) // 5), str(index)) for index, tokens in enumerate(sequences)]


def _train(program: TrainerProgram, parameters: nnx.State, examples: list[Example], config: TrainConfig) -> _Timing:
    fine_tuning = FineTuning(program, lambda: parameters, examples, config, seed=0)
    started, packed_tokens = 0.0, 0
    for record in fine_tuning:
        if record.step < WARM_UP_STEPS:
            started = time.perf_counter()
        else:
            packed_tokens += record.packed_tokens
    seconds = time.perf_counter() - started
    batches = packed_batches(examples, program.batch_shape, seed=0, num_epochs=1)[WARM_UP_STEPS : fine_tuning.num_steps]
    length_by_id = {example.id: len(example.tokens) - 1 for example in examples}
    lengths = [length_by_id[example_id] for batch in batches for example_id in batch.example_ids]
    return _Timing(seconds, lengths, packed_tokens / (len(batches) * program.batch_shape.num_tokens))


def _figures(
    program: TrainerProgram, model: ModelConfig, timing: _Timing, compile_seconds: float, peak_flops: float
) -> dict[str, str]:
    num_devices = len(jax.devices())
    tokens = sum(timing.lengths)
    flops = model_flops(model, timing.lengths)
    device_flops = flops / timing.seconds / num_devices
    figures = {
        "tokens": f"{tokens:,} in {timing.seconds:.1f} s, without padding; batches are {timing.packing:.1%} full",
        "tokens/s": f"{tokens / timing.seconds:,.0f}",
        "tokens/s/device": f"{tokens / timing.seconds / num_devices:,.0f}",
        "model flops": f"{flops / tokens / 1e9:.3f} GFLOP per token, {device_flops / 1e12:.3f} TFLOP/s per device",
        "MFU": f"{device_flops / peak_flops:.1%} of a plain matrix product here ({peak_flops / 1e12:.3f} TFLOP/s)",
        "compilation": f"{compile_seconds:.0f} s",
    }
    memory: Any = program.compiled_step.memory_analysis()
    if memory is not None:
        arguments, temporaries = memory.argument_size_in_bytes / 2**30, memory.temp_size_in_bytes / 2**30
        figures["memory"] = f"{arguments:.2f} GiB of arguments and {temporaries:.2f} of temporaries per device"
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        figures["peak memory"] = f"{stats['peak_bytes_in_use'] / 2**30:.2f} GiB on the first device"
    return figures
