"""`tpt bench`: the speed of sampling, training and checking on this machine."""

import argparse
from collections.abc import Mapping

from tpt_jax.commands.arguments import positive
from tpt_jax.commands.prune import add_input_arguments


def add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model_arguments(parser)
    parser.add_argument("--num_questions", type=positive, default=64)
    parser.add_argument("--num_samples", type=positive, default=8)
    parser.add_argument(
        "--prompt_tokens", type=positive, default=64, help="longest prompt; the shortest is a third as long"
    )
    parser.add_argument(
        "--max_new_tokens", type=positive, default=256, help="length of the longest trace; lengths are long-tailed"
    )
    parser.add_argument("--mean_new_tokens", type=positive, default=60, help="approximate mean length of a trace")
    parser.add_argument("--num_slots", type=positive, default=64)
    parser.add_argument("--cache_type", choices=("compute", "int8"), default="compute", help="type of the KV cache")
    parser.add_argument("--weights", choices=("compute", "int8"), default="compute", help="type of the weights")


def sample(args: argparse.Namespace) -> int:
    from tpt_jax.bench.sample import Workload, measure
    from tpt_jax.runtime import environment

    environment.prepare()
    workload = Workload(
        model=args.model,
        num_questions=args.num_questions,
        num_samples=args.num_samples,
        prompt_tokens=args.prompt_tokens,
        max_new_tokens=args.max_new_tokens,
        mean_new_tokens=args.mean_new_tokens,
        num_slots=args.num_slots,
        tensor=args.tensor,
        compute_dtype=args.compute_dtype,
        cache_type=args.cache_type,
        weights=args.weights,
    )
    _print_figures(measure(workload))
    return 0


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model_arguments(parser)
    parser.add_argument("--num_steps", type=positive, default=10)
    parser.add_argument("--rows", type=positive, default=16, help="packed sequences per micro-batch")
    parser.add_argument("--sequence_length", type=positive, default=1024)
    parser.add_argument("--micro_batches", type=positive, default=1)
    parser.add_argument("--mean_tokens", type=positive, default=250, help="per trace; lengths are long-tailed")
    parser.add_argument("--attention", choices=("auto", "xla", "splash", "tokamax"), default="auto")
    parser.add_argument("--remat", choices=("none", "dots", "outputs", "full"), default="none")
    parser.add_argument("--optimizer", choices=("adamw", "adafactor", "muon"), default="adamw")
    parser.add_argument("--first_moment", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--second_moment", choices=("float32", "bfloat16"), default="float32")


def train(args: argparse.Namespace) -> int:
    from tpt_jax.bench.train import Workload, measure
    from tpt_jax.config import OptimizerConfig, TrainConfig
    from tpt_jax.runtime import environment

    environment.prepare()
    config = TrainConfig(
        rows=args.rows,
        sequence_length=args.sequence_length,
        micro_batches=args.micro_batches,
        attention=args.attention,
        remat=args.remat,
        optimizer=OptimizerConfig(
            name=args.optimizer, first_moment=args.first_moment, second_moment=args.second_moment
        ),
    )
    workload = Workload(
        model=args.model,
        num_steps=args.num_steps,
        mean_tokens=args.mean_tokens,
        tensor=args.tensor,
        compute_dtype=args.compute_dtype,
        train=config,
    )
    _print_figures(measure(workload))
    return 0


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    add_input_arguments(parser, requires_task=True)
    parser.add_argument(
        "--num_verdicts",
        type=positive,
        help="traces are judged repeatedly to reach it (default: 10,000; 200 for tasks whose answers are programs)",
    )


def check(args: argparse.Namespace) -> int:
    from tpt_jax.bench.check import measure
    from tpt_jax.library.trace_files import read_traces_to_judge

    read = read_traces_to_judge(
        args.task,
        args.questions,
        args.traces,
        args.checker,
        args.seconds_per_trace,
        run_code_without_sandbox=args.run_code_without_sandbox,
    )
    speeds = measure(
        list(read.pairs()),
        read.checker,
        seconds_per_trace=read.seconds_per_trace,
        num_workers=args.num_workers,
        num_verdicts=args.num_verdicts,
    )
    for speed in speeds:
        workers = "1 worker" if speed.num_workers == 1 else f"{speed.num_workers} workers"
        print(
            f"{read.checker}, {workers}: {speed.verdicts_per_second:,.0f} verdicts/s; "
            f"ready after {speed.startup_seconds:.1f} s"
        )
    return 0


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a model folder, or a published architecture (random weights)")
    parser.add_argument("--tensor", type=positive, default=1, help="devices over which each weight is split")
    parser.add_argument("--compute_dtype", choices=("bfloat16", "float32"), default="bfloat16")


def _print_figures(figures: Mapping[str, str]) -> None:
    for name, text in figures.items():
        print(f"{name:16} {text}")
