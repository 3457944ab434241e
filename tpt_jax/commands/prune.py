"""`tpt prune`: judges a file of traces and marks those to keep."""

import argparse
from pathlib import Path
from typing import Any

from tpt_jax.commands.arguments import accept_overrides, natural, positive, positive_number, read_config
from tpt_jax.errors import UserError


def add_input_arguments(parser: argparse.ArgumentParser, *, requires_task: bool) -> None:
    """The traces to judge, and the checker."""
    parser.add_argument(
        "--task", required=requires_task, help="the task of these questions, whose checker judges: gsm8k, ..."
    )
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
        "short; or gzipped, or Parquet; or a run's RUN/rounds/001/traces, with RUN/rounds/001/questions.jsonl",
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
    parser.add_argument(
        "--config",
        type=Path,
        help="a run's YAML file; its task, checker, seed and section prune apply where no option here says otherwise",
    )
    accept_overrides(parser)
    add_input_arguments(parser, requires_task=False)
    parser.add_argument("--output", type=Path, required=True, help="the traces with their verdicts, JSON lines")
    parser.add_argument(
        "--held_out", help="questions of an evaluation, in any of these formats; their traces are not kept"
    )
    parser.add_argument(
        "--steps",
        help='what selects traces, in order: names, or a list in YAML, "[correct, {shortest: {count: 1}}]"; '
        "correct,unique_texts if not given. docs/pruning.md has a table of all steps",
    )
    parser.add_argument("--max_per_question", type=positive, help="most traces kept per question: its first samples")
    parser.add_argument(
        "--max_traces",
        type=positive,
        help="most traces kept in all: those of the first questions, in an order drawn from the seed",
    )
    parser.add_argument(
        "--seed",
        type=natural,
        help="of the order of questions and of random steps; 0 if not given. For RUN/rounds/001/traces give the run's",
    )
    parser.epilog = "With --config, any of its keys can be set: --prune.max_traces null"


def main(args: argparse.Namespace) -> int:
    """Prints a summary to standard output; the status is 1 if the verdicts say nothing about the traces."""
    import tpt_jax as tpt
    from tpt_jax.io.tables import stdout_console
    from tpt_jax.prune.summary import print_summary
    from tpt_jax.terminal import say

    options = _options(args)
    result = tpt.judge_file(
        options.pop("task"), args.questions, args.traces, args.output, held_out=args.held_out, **options
    )
    print_summary(stdout_console(), result.judged, result.choice, result.num_trimmed)
    if result.fault is not None:
        say(f"tpt: {result.fault}")
    return 0 if result.fault is None else 1


OPTIONS = (
    "task",
    "checker",
    "steps",
    "max_per_question",
    "max_traces",
    "seed",
    "num_workers",
    "seconds_per_trace",
    "run_code_without_sandbox",
)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of judge_file that are given: by options, or else by the config."""
    given = {name: value for name in OPTIONS if (value := getattr(args, name)) not in (None, False)}
    if args.config is None:
        if args.overrides:
            raise UserError(f"--{next(iter(args.overrides))}: a key of a config; give --config too")
        if args.task is None:
            raise UserError("--task: missing; give the task of these questions, or --config")
        return given
    config = read_config(args)
    of_config = {
        **{name: getattr(config.prune, name) for name in OPTIONS if hasattr(config.prune, name)},
        "task": config.task.name,
        "checker": getattr(config.task, "checker", None),  # of a task of the user's own
        "seed": config.seed,
    }
    return {**of_config, **given}
