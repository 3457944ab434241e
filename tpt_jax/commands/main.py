"""The `tpt` command: one file per verb, with its arguments and one call of the library.

Nothing here imports JAX, or anything else that takes time, before a verb needs it: `tpt --help` is instant.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from tpt_jax.commands import (
    bench,
    chat,
    check_task,
    completion,
    evaluate,
    export,
    init,
    plan,
    prune,
    report,
    run,
    sample,
    sft,
    sweep,
)
from tpt_jax.commands.arguments import OneLineParser
from tpt_jax.errors import RESUMES, HostsError, MachineError, Stopped, UserError, one_line
from tpt_jax.io import streams

RESUMABLE = ("run", "eval", "sample", "sft", "sweep")
RESULTS_ON_STDOUT = ("chat", "check-task", "eval", "sample", "prune", "plan", "bench")  # and nowhere else
TRACEBACK = "TPT_TRACEBACK"

AddArguments = Callable[[argparse.ArgumentParser], None]
Main = Callable[[argparse.Namespace], int | None]


class _Terminated(KeyboardInterrupt):
    """SIGTERM and SIGHUP end a command just as Ctrl-C does, so that it cleans up; later, runs hear them themselves."""

    def __init__(self, signal: signal.Signals):
        super().__init__()
        self.signal = signal


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status.

    0 done, 1 failed, 2 a mistake in the user's input, 75 (EX_TEMPFAIL) stopped by SIGTERM or SIGHUP and resumable, 143
    stopped by SIGTERM, 129 by SIGHUP, 130 interrupted. Every failure is one line; with TPT_TRACEBACK=1 in the
    environment its traceback comes first.
    """
    streams.prepare()
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    try:
        args.parser, args.overrides = parser, _overrides(parser, args, rest)
        with _signals_interrupt():
            status = args.main(args) or 0
            if args.has_results_on_stdout:
                streams.check_written()
            return status
    except UserError as error:
        return _fail(error, 2)
    except Stopped as error:
        return _fail(f"{error}{_resumes(args)}", os.EX_TEMPFAIL)
    except _Terminated as error:
        status = os.EX_TEMPFAIL if args.is_resumable else 128 + error.signal
        return _fail(f"stopped by {error.signal.name}{_resumes(args)}", status)
    except KeyboardInterrupt:
        return _fail(f"interrupted{_resumes(args)}", 130)
    except SystemExit:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        return _fail(_describe(error, args.is_resumable), 1)


def command() -> int:
    """The `tpt` command of a process: `main`, with nothing on standard error but its lines.

    Libraries write in threads of their own. When a disk is full they are given up, and print tracebacks of errors that
    come after the one that `main` reports, some of them while the interpreter ends.
    """
    if not os.environ.get(TRACEBACK):
        sys.excepthook = sys.unraisablehook = threading.excepthook = lambda *_: None
    status = main()
    for each in (signal.SIGTERM, signal.SIGHUP):  # all is said and done: a second one must not change the status
        signal.signal(each, signal.SIG_IGN)
    return status


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Raises _Terminated in the body at the first SIGTERM or SIGHUP."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in previous:
            signal.signal(each, signal.SIG_IGN)  # a second one would interrupt the cleaning up
        raise _Terminated(signal.Signals(number))

    if threading.current_thread() is not threading.main_thread():  # no other may handle signals
        yield
        return
    heard = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]  # nohup
    previous = {each: signal.signal(each, interrupt) for each in heard}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _resumes(args: argparse.Namespace) -> str:
    return f"; {RESUMES}" if args.is_resumable else ""


def _fail(message: object, status: int) -> int:
    print(f"tpt: {one_line(str(message))}", file=sys.stderr)
    return status


def _describe(error: BaseException, is_resumable: bool) -> str:
    """One line about a failure."""
    if isinstance(error, FloatingPointError | HostsError | MachineError):
        return str(error)
    if isinstance(error, OSError):  # a full disk, a read-only or vanished folder
        line = f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}"
        return f"{line}; once that is mended, {RESUMES}" if is_resumable else line
    reason = next(iter(str(error).strip().splitlines()), "")
    line = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    if isinstance(error, RuntimeError) and _has_other_hosts():  # XLA's collectives do not say why they fail
        return f"{line}; if another host is gone or cannot be reached, the same command resumes"
    return line if os.environ.get(TRACEBACK) else f"{line} ({TRACEBACK}=1 shows where)"


def _has_other_hosts() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()  # counting them would start devices that may not start


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="tpt", description="Think, Prune, Train: self-improving language models.")
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the versions of tpt_jax, JAX and Python")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_verb(verbs, "init", init.add_arguments, init.main, "Write a working project of your own into a new folder.")
    _add_verb(
        verbs,
        "check-task",
        check_task.add_arguments,
        check_task.main,
        "Ask a task's checker right and wrong answers, and show what it reads, without a model.",
    )
    _add_verb(verbs, "run", run.add_arguments, run.main, "Run or resume rounds of think, prune, train and evaluate.")
    _add_verb(verbs, "sweep", sweep.add_arguments, sweep.main, "Run or resume a grid of configs, and compare them.")
    _add_verb(verbs, "eval", evaluate.add_arguments, evaluate.main, "Pass@k of a model on the held-out questions.")
    _add_verb(verbs, "sample", sample.add_arguments, sample.main, "Sample completions of a file of prompts, or resume.")
    _add_verb(verbs, "prune", prune.add_arguments, prune.main, "Judge a file of traces and mark those to keep.")
    _add_verb(verbs, "sft", sft.add_arguments, sft.main, "Fine-tune on a file of traces, or resume.")
    _add_verb(verbs, "chat", chat.add_arguments, chat.main, "Ask a model in a terminal, and see its answers grow.")
    _add_verb(verbs, "export", export.add_arguments, export.main, "Write a checkpoint as a Hugging Face folder.")
    _add_verb(
        verbs,
        "plan",
        plan.add_arguments,
        plan.main,
        "Plan a run on a TPU slice, without a TPU: memory, time, cost.",
    )
    group = verbs.add_parser("bench", help="Measure the speed of this machine.").add_subparsers(required=True)
    _add_verb(group, "sample", bench.add_sample_arguments, bench.sample, "Tokens per second, and bytes per step.")
    _add_verb(group, "train", bench.add_train_arguments, bench.train, "Tokens per second, against the devices' peak.")
    _add_verb(group, "check", bench.add_check_arguments, bench.check, "Verdicts per second.")
    _add_verb(verbs, "report", report.add_arguments, report.main, "Write the HTML report of runs, or of a sweep.")
    _add_verb(verbs, "completion", completion.add_arguments, completion.main, "Print a shell's completion of tpt.")
    return parser


class _ShowVersion(argparse.Action):
    """Prints versions without importing JAX or starting devices."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib import metadata

        import tpt_jax as tpt

        python = ".".join(map(str, sys.version_info[:3]))
        print(f"tpt_jax {tpt.__version__}, jax {metadata.version('jax')}, Python {python}")
        parser.exit()


def _add_verb(verbs: Any, name: str, add_arguments: AddArguments, main: Main, help: str) -> None:
    parser = verbs.add_parser(name, help=help, description=help)
    parser.set_defaults(main=main, accepts_overrides=False, is_resumable=parser.prog.split()[1] in RESUMABLE)
    parser.set_defaults(has_results_on_stdout=parser.prog.split()[1] in RESULTS_ON_STDOUT)
    add_arguments(parser)


def _overrides(parser: argparse.ArgumentParser, args: argparse.Namespace, rest: list[str]) -> dict[str, str]:
    if rest and not args.accepts_overrides:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if not args.accepts_overrides:
        return {}
    from tpt_jax.config_parsing import parse_overrides

    return parse_overrides(rest)


if __name__ == "__main__":
    sys.exit(command())
