"""`tpt prune`: judges a file of traces and marks those to keep."""

import argparse
from pathlib import Path

from tpt_jax.commands.arguments import natural, positive, positive_number


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """The traces to judge, and the checker."""
    parser.add_argument("--task", required=True, help="the task of these questions, whose checker judges: gsm8k, ...")
    parser.add_argument(
        "--questions",
        required=True,
        help='JSON lines or a JSON list, as published for the task: {"id", "question", "answer"}; or gzipped, or '
        "Parquet. Traces may refer to a question without an id by its index from 0, or as a run does: gsm8k/train/0 is "
        "the first one of train.jsonl",
    )
    parser.add_argument(
        "--traces",
        required=True,
        help='JSON lines: {"id", "sample", "completion" or "trace"}, and "finish_reason": "length" if it was cut '
        "short; or gzipped, or Parquet",
    )
    parser.add_argument("--checker", help="another checker: a name, or your own module:function")
    parser.add_argument("--num_workers", type=positive, help="checker processes; one per core if not given")
    parser.add_argument(
        "--seconds_per_trace", type=positive_number, help="a slower check is killed; the task's limit if not given"
    )
    parser.add_argument(
        "--run_code_without_sandbox",
        action="store_true",
        help="run the model's programs with your own user rights; only on a machine you can afford to lose",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_input_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="the traces with their verdicts, JSON lines")
    parser.add_argument("--held_out", help="questions of an evaluation; their traces are not kept")
    parser.add_argument(
        "--steps",
        default="correct,unique_texts",
        help='what selects traces, in order: names, or a list in YAML, "[correct, {shortest: {count: 1}}]"; README.md '
        "has a table of all steps",
    )
    parser.add_argument("--max_per_question", type=positive, help="most traces kept: the first samples")
    parser.add_argument(
        "--max_traces", type=positive, help="most traces kept: those of the first questions, in an order from the seed"
    )
    parser.add_argument("--seed", type=natural, default=0)


def main(args: argparse.Namespace) -> int:
    """Prints a summary to standard output; the status is 1 if the verdicts say nothing about the traces."""
    from rich.console import Console

    import tpt_jax as tpt
    from tpt_jax.prune.summary import print_summary
    from tpt_jax.terminal import say

    result = tpt.judge_file(
        args.task,
        args.questions,
        args.traces,
        args.output,
        held_out=args.held_out,
        checker=args.checker,
        steps=args.steps,
        max_per_question=args.max_per_question,
        max_traces=args.max_traces,
        seed=args.seed,
        num_workers=args.num_workers,
        seconds_per_trace=args.seconds_per_trace,
        run_code_without_sandbox=args.run_code_without_sandbox,
    )
    print_summary(Console(), result.judged, result.choice)
    if result.fault is not None:
        say(f"tpt: {result.fault}")
    return 0 if result.fault is None else 1
