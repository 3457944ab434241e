"""`tpt bench train`: how fast a model trains here, against what its devices can do."""

import argparse
import time
from typing import TYPE_CHECKING, Any

from tpt_jax.bench.workloads import load_model, long_tailed, product_flops
from tpt_jax.commands.arguments import positive
from tpt_jax.errors import UserError

if TYPE_CHECKING:
    from tpt_jax.config import TrainConfig
    from tpt_jax.prompts import Example
    from tpt_jax.train.compile import TrainerProgram

WARM_UP = 2  # steps before the clock starts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a model's folder, or a published size with random weights")
    parser.add_argument("--num_steps", type=positive, default=10)
    parser.add_argument("--rows", type=positive, default=16, help="packed sequences a micro-batch")
    parser.add_argument("--sequence_length", type=positive, default=1024)
    parser.add_argument("--micro_batches", type=positive, default=1)
    parser.add_argument("--mean_tokens", type=positive, default=250, help="of a trace; lengths are long-tailed")
    parser.add_argument("--tensor", type=positive, default=1, help="devices over which each weight is split")
    parser.add_argument("--compute_dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--attention", choices=("auto", "xla", "splash", "tokamax"), default="auto")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
    parser.add_argument("--optimizer", choices=("adamw", "adafactor", "muon"), default="adamw")
    parser.add_argument("--first_moment", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--second_moment", choices=("float32", "bfloat16"), default="float32")


def main(args: argparse.Namespace) -> int:
    """Trains on made-up traces, the first steps off the clock, and prints the figures."""
    import jax

    from tpt_jax.config import MeshConfig, OptimizerConfig, TrainConfig
    from tpt_jax.runtime.mesh import make_mesh
    from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
    from tpt_jax.train.compile import compile_trainer

    layout = Layout(make_mesh(MeshConfig(tensor=args.tensor)), TRAIN_RULES)
    if args.rows % layout.batch_ways:
        raise UserError(f"--rows ({args.rows}) must be a multiple of the {layout.batch_ways} data shards")
    config = TrainConfig(
        rows=args.rows,
        sequence_length=args.sequence_length,
        micro_batches=args.micro_batches,
        max_steps=WARM_UP + args.num_steps,
        attention=args.attention,
        remat=args.remat,
        optimizer=OptimizerConfig(
            name=args.optimizer, first_moment=args.first_moment, second_moment=args.second_moment
        ),
    )
    model, parameters = load_model(args.model, layout)
    started = time.perf_counter()
    program = compile_trainer(model, layout.mesh, compute_dtype=args.compute_dtype, train=config)
    compiled = time.perf_counter() - started
    examples = made_up_examples(model.vocab_size, args, program.batch_shape.num_tokens * (WARM_UP + args.num_steps))
    seconds, lengths, packing = _run(program, parameters, examples, config)
    speed = product_flops(args.compute_dtype)
    _print_figures(program, model, seconds, lengths, packing, compiled, speed, len(jax.devices()))
    return 0


def made_up_examples(vocab_size: int, args: argparse.Namespace, num_tokens: int) -> "list[Example]":
    """Random traces, two fifths of each prompt, of so many tokens in all."""
    import numpy as np

    from tpt_jax.prompts import Example

    rng = np.random.default_rng(0)
    count = max(1, num_tokens // args.mean_tokens)
    lengths = np.clip(long_tailed(rng, count, args.mean_tokens, args.sequence_length), 3, None)
    tokens = [tuple(rng.integers(0, vocab_size, length + 1).tolist()) for length in lengths]
    return [Example(each, max(1, 2 * len(each) // 5), str(index)) for index, each in enumerate(tokens)]


def _run(
    program: "TrainerProgram", parameters: Any, examples: "list[Example]", config: "TrainConfig"
) -> tuple[float, list[int], float]:
    """Seconds of the steps on the clock, the lengths of the sequences that they trained on, and how full they were."""
    from tpt_jax.train.data import packed_batches
    from tpt_jax.train.fit import Fit

    fit = Fit(program, lambda: parameters, examples, config, seed=0)
    started, packed = 0.0, 0
    for record in fit:
        if record.step < WARM_UP:
            started = time.perf_counter()
            continue
        packed += record.packed_tokens
    seconds = time.perf_counter() - started
    by_id = {example.id: len(example.tokens) - 1 for example in examples}
    batches = packed_batches(examples, program.batch_shape, seed=0, num_epochs=1)[WARM_UP : fit.num_steps]
    lengths = [by_id[name] for batch in batches for name in batch.example_ids]
    return seconds, lengths, packed / (len(batches) * program.batch_shape.num_tokens)


def _print_figures(
    program: "TrainerProgram",
    model: Any,
    seconds: float,
    lengths: list[int],
    packing: float,
    compiled: float,
    speed: float,
    num_devices: int,
) -> None:
    import jax

    from tpt_jax.train.flops import model_flops

    tokens = sum(lengths)
    flops = model_flops(model, lengths)
    used = flops / seconds / num_devices
    memory = program.compiled_step.memory_analysis()
    stats = jax.local_devices()[0].memory_stats() or {}
    rows = {
        "tokens": f"{tokens:,} in {seconds:.1f} s, padding not counted; {packing:.1%} of the batches is not padding",
        "tokens/s": f"{tokens / seconds:,.0f}",
        "tokens/s/device": f"{tokens / seconds / num_devices:,.0f}",
        "model flops": f"{flops / tokens / 1e9:.3f} GFLOP a token, {used / 1e12:.3f} TFLOP/s a device",
        "MFU": f"{used / speed:.1%} of a plain matrix product here ({speed / 1e12:.3f} TFLOP/s)",
        "compilation": f"{compiled:.0f} s",
    }
    if memory is not None:
        gib = [size / 2**30 for size in (memory.argument_size_in_bytes, memory.temp_size_in_bytes)]
        rows["memory"] = f"{gib[0]:.2f} GiB of arguments and {gib[1]:.2f} of temporaries a device, as compiled"
    if "peak_bytes_in_use" in stats:
        rows["peak memory"] = f"{stats['peak_bytes_in_use'] / 2**30:.2f} GiB on a device"
    for name, text in rows.items():
        print(f"{name:16} {text}")
