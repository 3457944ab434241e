"""The `tpt` command: a thin subcommand for each verb.

Nothing here imports JAX before a verb needs it: `tpt --help` is instant, and so are the checker processes, which import
the main module anew.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tpt_jax.commands.arguments import OneLineParser, natural, positive
from tpt_jax.errors import HostsError, MachineError, Stopped, UserError

Verb = Callable[[argparse.Namespace, dict[str, str]], int]
GO_ON = ("run", "eval", "sample", "sft")  # where they were interrupted


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status.

    0 done, 1 failed, 2 a mistake in what the user gave, 75 (EX_TEMPFAIL) stopped by SIGTERM, 130 interrupted.
    """
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    try:
        return args.verb(args, _overrides(parser, args, rest))
    except UserError as error:
        print(f"tpt: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder that may not be written, a full disk
        where = f"{error.filename}: " if error.filename else ""
        print(f"tpt: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except (FloatingPointError, HostsError, MachineError) as error:
        print(f"tpt: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not _is_among_hosts():
            raise
        reason = str(error).partition("\n")[0]
        print(f"tpt: another host is gone, or cannot be reached ({reason}); the same command goes on", file=sys.stderr)
        return 1
    except Stopped:
        print("tpt: stopped by SIGTERM; the same command goes on from here", file=sys.stderr)
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        print(f"tpt: interrupted{'; the same command goes on from here' if args.goes_on else ''}", file=sys.stderr)
        return 130


def _is_among_hosts() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.process_count() > 1


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="tpt", description="Think, Prune, Train: self-improving language models.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def add(name: str, verb: Verb, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(verb=verb, takes_overrides=False, goes_on=name in GO_ON)
        return sub

    run = add("run", _run, "Think, prune, train and evaluate, round after round; goes on with a run that exists.")
    _takes_config(run)
    run.add_argument("--run_dir", help="the run's folder, on a disk or gs://BUCKET/...; runs/NAME if not given")
    _takes_hosts(run)

    evaluate = add("eval", _evaluate, "Pass@k of a checkpoint on the held-out questions.")
    _takes_config(evaluate)
    evaluate.add_argument("--model", required=True, help="a Hugging Face folder or a run's checkpoint")
    evaluate.add_argument("--run_dir", help="keep the judged traces in this folder")
    _takes_hosts(evaluate)

    sample = add("sample", _sample, "Sample completions of a file of prompts; goes on where it was killed.")
    from tpt_jax.library import sample_file as sample_command

    sample_command.add_arguments(sample)
    sample.set_defaults(takes_overrides=True)
    _takes_hosts(sample)

    prune = add("prune", _prune, "Judge a file of traces and mark those to keep.")
    from tpt_jax.library import judge_file as prune_command

    prune_command.add_arguments(prune)

    sft = add("sft", _sft, "Fine-tune on a file of traces.")
    _takes_config(sft)
    sft.add_argument("--model", required=True, help="a Hugging Face folder or a run's checkpoint")
    sft.add_argument("--traces", type=Path, required=True, help='JSON lines: {"id", "completion"}, ids of the task')
    sft.add_argument("--output", required=True, help="the checkpoint's folder, on a disk or gs://BUCKET/...")
    _takes_hosts(sft)

    export = add("export", _export, "Write a checkpoint as a Hugging Face folder.")
    export.add_argument("--checkpoint", required=True, help="a run's checkpoint")
    _takes_hosts(export)
    export.add_argument("--output", type=Path, required=True, help="the folder to write")
    export.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the written weights")

    plan = add("plan", _plan, "What a run needs on a TPU slice, and what a round costs; no TPU is needed.")
    _takes_config(plan)
    from tpt_jax.plan import command as plan_command

    plan_command.add_arguments(plan)

    _add_benches(verbs)

    report = add("report", _report, "Write the HTML report of one or more runs.")
    from tpt_jax.commands import report as report_command

    report_command.add_arguments(report)
    return parser


def _add_benches(verbs: Any) -> None:
    from tpt_jax.bench import check as check_bench
    from tpt_jax.bench import sample as sample_bench
    from tpt_jax.bench import train as train_bench

    group = verbs.add_parser("bench", help="Measure a phase on this machine.").add_subparsers(required=True)
    for name, verb, module, text in (
        ("sample", _bench_sample, sample_bench, "Tokens a second, and what they could be."),
        ("train", _bench_train, train_bench, "Tokens a second, and the share of the devices' speed that is used."),
        ("check", _bench_check, check_bench, "Verdicts a second."),
    ):
        parser = group.add_parser(name, help=text)
        parser.set_defaults(verb=verb, takes_overrides=False, goes_on=False)
        module.add_arguments(parser)


def _takes_hosts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several hosts", "Cloud TPU, GKE and Slurm say by themselves who the others are.")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of the first host")
    group.add_argument("--num_processes", type=positive, help="how many hosts")
    group.add_argument("--process_id", type=natural, help="which one this is, from 0")


def _takes_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="a YAML file; see configs/")
    parser.set_defaults(takes_overrides=True)
    parser.epilog = "Any key of the config can be set: --train.rows 8 --seed 1"


def _overrides(parser: argparse.ArgumentParser, args: argparse.Namespace, rest: list[str]) -> dict[str, str]:
    if rest and not args.takes_overrides:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if not args.takes_overrides:
        return {}
    from tpt_jax.config import parse_overrides

    return parse_overrides(rest)


def _run(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from tpt_jax.config import load_config

    config = load_config(args.config, overrides)
    _prepare_jax()
    _join_hosts(args)
    from tpt_jax.library.verbs import run

    return run(config, args.run_dir or os.path.join("runs", config.name))


def _evaluate(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from tpt_jax.config import load_config

    config = load_config(args.config, overrides)
    _prepare_jax()
    _join_hosts(args)
    from tpt_jax.library.verbs import evaluate_model

    return evaluate_model(config, args.model, args.run_dir)


def _sft(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from tpt_jax.config import load_config

    config = load_config(args.config, overrides)
    _prepare_jax()
    _join_hosts(args)
    from tpt_jax.library.finetune_file import train_on_file

    return train_on_file(config, args.model, args.traces, args.output)


def _export(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    _prepare_jax()
    _join_hosts(args)
    from tpt_jax.library.verbs import export_checkpoint

    return export_checkpoint(args.checkpoint, args.output, args.dtype)


def _sample(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    if (overrides or args.config) and not (args.config and args.show_prompts):
        given = ", ".join(f"--{name}" for name in (*overrides, *(["config"] if args.config else [])))
        raise UserError(f"{given}: only with --show_prompts --config FILE; tpt sample --help tells what else there is")
    _prepare_jax()
    if args.show_prompts:
        from tpt_jax.library.verbs import show_prompts

        return show_prompts(args.show_prompts, args.config, overrides, args.model, args.prompts)
    _join_hosts(args)
    from tpt_jax.library import sample_file as command

    return command.main(args)


def _plan(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from tpt_jax.config import load_config
    from tpt_jax.plan import command
    from tpt_jax.plan.topology import prepare_environment

    config = load_config(args.config, overrides)
    prepare_environment()
    _prepare_jax(keep_programs=False)  # what is compiled for devices that are not there cannot be loaded again
    return command.main(args, config)


def _bench_sample(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    _prepare_jax()
    from tpt_jax.bench import sample as bench

    return bench.main(args)


def _bench_train(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    _prepare_jax()
    from tpt_jax.bench import train as bench

    return bench.main(args)


def _bench_check(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from tpt_jax.bench import check as bench

    return bench.main(args)


def _prune(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from tpt_jax.library import judge_file as command

    return command.main(args)


def _report(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from tpt_jax.commands import report as command

    return command.main(args)


def _prepare_jax(*, keep_programs: bool = True) -> None:
    """Keeps compiled programs between runs, and libraries' chatter off the terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it says at import that it found no PyTorch
    import jax

    for chatty in ("absl", "jax", "orbax", "grain"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    if not keep_programs:
        jax.config.update("jax_enable_compilation_cache", False)
    elif jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        cache = Path.home() / ".cache" / "tpt_jax" / "compilations"
        jax.config.update("jax_compilation_cache_dir", str(cache))


def _join_hosts(args: argparse.Namespace) -> None:
    """One process of a pod, or a process that is alone; only the first host tells how far it is."""
    from tpt_jax.runtime import hosts, preemption
    from tpt_jax.terminal import STDERR, say

    given = (args.coordinator, args.num_processes, args.process_id)
    if any(value is not None for value in given) and None in given:
        raise UserError("--coordinator, --num_processes and --process_id: give all three, or none")
    hosts.join(hosts.Coordinator(*given) if args.coordinator else None)
    preemption.listen()
    STDERR.quiet = not hosts.is_first()
    if hosts.count() > 1:
        say(f"hosts: {hosts.roster()}")


if __name__ == "__main__":
    sys.exit(main())
