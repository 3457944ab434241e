"""`tpt bench sample`: how fast a model samples here, against what its bytes allow."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from tpt_jax.bench.workloads import load_model, long_tailed
from tpt_jax.commands.arguments import positive
from tpt_jax.errors import UserError
from tpt_jax.terminal import percent

if TYPE_CHECKING:
    from flax import nnx

    from tpt_jax.think.engine import Request, Statistics
    from tpt_jax.think.state import SlotShape


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a model's folder, or a published size with random weights")
    parser.add_argument("--num_questions", type=positive, default=64)
    parser.add_argument("--num_samples", type=positive, default=8)
    parser.add_argument(
        "--prompt_tokens", type=positive, default=64, help="the longest prompt; the shortest has a third"
    )
    parser.add_argument(
        "--max_new_tokens", type=positive, default=256, help="the longest trace; lengths are long-tailed"
    )
    parser.add_argument("--mean_new_tokens", type=positive, default=60, help="about")
    parser.add_argument("--num_slots", type=positive, default=64)
    parser.add_argument("--tensor", type=positive, default=1, help="devices over which each weight is split")
    parser.add_argument("--compute_dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--cache_type", choices=("compute", "int8"), default="compute")


def main(args: argparse.Namespace) -> int:
    """Samples a made-up phase twice, the second time on the clock, and prints the figures."""
    import jax

    from tpt_jax.config import MeshConfig
    from tpt_jax.plan.hlo import Module
    from tpt_jax.runtime.mesh import make_mesh
    from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
    from tpt_jax.think.cost_probes import compile_step
    from tpt_jax.think.sampler import compile_sampler

    layout = Layout(make_mesh(MeshConfig(tensor=args.tensor)), TRAIN_RULES)
    config, parameters = load_model(args.model, layout)
    shards = layout.batch_ways
    if args.num_slots % shards or args.num_questions % shards:
        raise UserError(f"--num_slots and --num_questions must be multiples of the {shards} data shards")
    wanted = made_up_requests(config.vocab_size, args)
    shape = bench_shape(args, shards)
    program = compile_sampler(
        config, layout.mesh, compute_dtype=args.compute_dtype, shapes={"bench": shape}, stop_ids=(config.vocab_size,)
    )
    decoding = program.reshard(parameters)
    one_token = [dataclasses.replace(request, limits=(1,) * args.num_samples) for request in wanted]
    _run(program, decoding, one_token, shards)  # the first run touches fresh memory
    prefill = _run(program, decoding, one_token, shards)
    whole = _run(program, decoding, wanted, shards)
    step = compile_step(config, program.layout, program.slots["bench"])
    counted = Module(str(step.compiled.as_text())).bytes()
    _print_figures(whole, prefill, shape, len(jax.devices()), counted, step.least_bytes)
    return 0


def bench_shape(args: argparse.Namespace, shards: int) -> "SlotShape":
    from tpt_jax.think.state import SlotShape

    questions = args.num_questions // shards
    return SlotShape(
        num_slots=args.num_slots // shards,
        num_questions=questions,
        num_traces=questions * args.num_samples,
        num_prefix_tokens=0,
        max_prompt_tokens=args.prompt_tokens,
        max_new_tokens=args.max_new_tokens,
        cache_type=args.cache_type,
    )


def made_up_requests(vocab_size: int, args: argparse.Namespace) -> "list[Request]":
    """Random prompts; a limit for each trace, lognormal, so that some are many times longer than most."""
    import numpy as np

    from tpt_jax.think.engine import Request

    rng = np.random.default_rng(0)
    lengths = rng.integers(max(1, args.prompt_tokens // 3), args.prompt_tokens + 1, args.num_questions)
    limits = long_tailed(rng, args.num_questions * args.num_samples, args.mean_new_tokens, args.max_new_tokens)
    samples = tuple(range(args.num_samples))
    of_questions = limits.reshape(args.num_questions, args.num_samples).tolist()
    return [
        Request(str(index), tuple(rng.integers(0, vocab_size, length).tolist()), samples, tuple(of_question))
        for index, (length, of_question) in enumerate(zip(lengths, of_questions, strict=True))
    ]


def _run(program: Any, parameters: "nnx.State", wanted: "list[Request]", shards: int) -> "Statistics":
    from tpt_jax.think.engine import Engine

    engine = Engine(program.slots["bench"], _NoText(), (), shards)  # pyright: ignore[reportArgumentType]
    for _ in engine.sample(parameters, wanted, seed=0, round_index=0, temperature=1.0):
        pass
    return engine.statistics


class _NoText:
    """In a tokenizer's place: made-up tokens are no text."""

    def text(self, token_ids: object) -> str:
        return ""


def _print_figures(
    whole: "Statistics", prefill: "Statistics", shape: "SlotShape", num_devices: int, counted: int, ideal: int
) -> None:
    seconds_a_step = (whole.seconds - prefill.seconds) / max(1, whole.num_steps - prefill.num_steps)
    prefill_seconds = max(0.0, prefill.seconds - prefill.num_steps * seconds_a_step)
    rate = whole.num_tokens / whole.seconds
    host, start = whole.idle_share, prefill_seconds / whole.seconds
    rows = {
        "tokens": f"{whole.num_tokens:,} in {whole.seconds:.1f} s",
        "tokens/s": f"{rate:,.0f}",
        "tokens/s/device": f"{rate / num_devices:,.0f}",
        "slots busy": f"{percent(whole.occupancy(shape.num_slots))} of {shape.num_slots} a shard, while traces waited",
        "a step": f"{1000 * seconds_a_step:.2f} ms",
        "bytes a step": f"{counted / 1e9:.3f} GB a device with a full cache, {counted / ideal:.2f} x the least "
        f"({ideal / 1e9:.3f} GB: weights and cache once)",
        "time": f"prefill {start:.1%}, decode {1 - start - host:.1%}, device waiting for the host {host:.1%}",
    }
    for name, text in rows.items():
        print(f"{name:16} {text}")
