"""`tpt prune`: judges a file of traces and marks those to keep, without JAX."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tpt_jax.commands.arguments import natural, positive, positive_number
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.files import check_output, write_jsonl
from tpt_jax.io.record_files import MAX_BROKEN_SHARE, finish_reason_of, id_of, read_records, sample_of
from tpt_jax.records import JudgedTrace, Keep, Question, Trace
from tpt_jax.terminal import listed, progress, say

if TYPE_CHECKING:
    from tpt_jax.checks.pool import CheckerPool

ReadQuestion = Callable[[str, dict[str, Any]], Question]
NameQuestion = Callable[[int, Mapping[str, Any]], Iterable[str]]


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """What is judged, and how."""
    parser.add_argument("--task", required=True, help="whose questions these are, and whose checker judges: gsm8k, ...")
    parser.add_argument(
        "--questions",
        type=Path,
        required=True,
        help='JSON lines or list, as the task\'s are published: {"id", "question", "answer"}; without an id, traces '
        "may call one by its number from 0, or as a run does: gsm8k/train/0 is the first one of train.jsonl",
    )
    parser.add_argument(
        "--traces",
        type=Path,
        required=True,
        help='JSON lines: {"id", "sample", "completion" or "trace"}, and "finish_reason": "length" if one was cut',
    )
    parser.add_argument("--checker", help="judge with this one: a name, or your own module:function")
    parser.add_argument("--num_workers", type=positive, help="checker processes; one a processor core if not given")
    parser.add_argument(
        "--seconds_per_trace", type=positive_number, help="a slower check is killed; what the task needs if not given"
    )
    parser.add_argument(
        "--run_code_without_sandbox",
        action="store_true",
        help="run the programs that the model wrote with your own rights, on a machine that you can lose",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_input_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="the traces with their verdicts, JSON lines")
    parser.add_argument("--held_out", type=Path, help="questions of an evaluation; traces of theirs are not kept")
    parser.add_argument("--keep", choices=get_args(Keep), default="correct", help="the verdict that counts")
    parser.add_argument("--max_per_question", type=positive, help="keep at most so many of each, drawn with the seed")
    parser.add_argument("--max_traces", type=positive, help="keep at most so many in all, drawn with the seed")
    parser.add_argument("--seed", type=natural, default=0)


def main(args: argparse.Namespace) -> int:
    """Judges, writes the output whole or not at all, and prints a summary to standard output.

    The exit status is 1 where the verdicts are there and say nothing.
    """
    from rich.console import Console

    from tpt_jax.prune.selection import select
    from tpt_jax.prune.summary import print_summary
    from tpt_jax.tasks import task_class
    from tpt_jax.tasks.decontamination import normalised, texts_of

    check_output(args.output, filter(None, (args.questions, args.traces, args.held_out)))
    given = read_input(args)
    questions, traces = given.questions, [trace for _, trace in given.lines]
    held_out = read_questions(args.held_out, task_class(args.task).read_question) if args.held_out else {}
    tested = texts_of(held_out.values())
    verdicts = []
    with given.pool(args.num_workers) as pool, progress("verdicts", len(traces), "traces") as advance:
        for verdict in pool.judge((questions[trace.id], trace) for trace in traces):
            verdicts.append(verdict)
            advance(1)
    judged = list(map(JudgedTrace, traces, verdicts))
    selection = select(
        judged,
        max_per_question=args.max_per_question,
        max_traces=args.max_traces,
        seed=args.seed,
        use=args.keep,
        is_held_out=lambda name: normalised(questions[name].question) in tested,
    )
    kept = {(trace.trace.id, trace.trace.sample) for trace in selection.kept}
    write_jsonl(
        args.output,
        (
            {**line, **dataclasses.asdict(verdict), "kept": (trace.id, trace.sample) in kept}
            for (line, trace), verdict in zip(given.lines, verdicts, strict=True)
        ),
    )
    print_summary(Console(), judged, selection)
    fault = what_is_wrong(judged)
    if fault is not None:
        say(f"tpt: checker {given.checker!r}: {fault}")
    return 0 if fault is None else 1


def what_is_wrong(judged: Sequence[JudgedTrace]) -> str | None:
    """Why the verdicts say nothing: the checker cannot judge, or not these questions; None where they do."""
    from tpt_jax.prune.summary import failed_on_all

    if failed := failed_on_all(judged):
        return f"{failed}; mend it, or name another one"
    reasons = {trace.verdict.reason for trace in judged}
    if reasons <= {"time limit", "memory limit"}:
        return f"every trace ended with a limit ({listed(sorted(reasons))}); --seconds_per_trace sets that of time"
    asked = {trace.trace.id for trace in judged}
    unknown = list(dict.fromkeys(trace.trace.id for trace in judged if trace.verdict.unknown))
    if len(unknown) > MAX_BROKEN_SHARE * len(asked):
        return (
            f"it cannot read the reference answers of {len(unknown)} of {len(asked)} questions, more than "
            f"{MAX_BROKEN_SHARE:.0%}: {listed(unknown)}; mend them, or name another checker"
        )
    return None


@dataclasses.dataclass(frozen=True)
class Input:
    """Traces to judge, each with the line that it stood in, and the name of who judges them."""

    questions: dict[str, Question]
    lines: list[tuple[dict[str, Any], Trace]]
    checker: str
    seconds_per_trace: float

    def pool(self, num_workers: int | None) -> "CheckerPool":
        from tpt_jax.checks.pool import CheckerPool

        return CheckerPool(self.checker, num_workers, self.seconds_per_trace)


def read_input(args: argparse.Namespace) -> Input:
    """What the input arguments name.

    Raises:
      UserError: there is no such task or checker, or a file that is not what it should be.
    """
    from tpt_jax.checks.registry import require, without_sandbox
    from tpt_jax.tasks import task_class

    task = task_class(args.task)
    checker = args.checker or task.checker_name
    if args.run_code_without_sandbox:
        checker = without_sandbox(checker)
    require(checker)  # before the files are read

    def names(index: int, line: Mapping[str, Any]) -> Iterable[str]:
        published = (str(line["task_id"]),) if "task_id" in line else ()
        return task.default_id(index, line), f"{args.task}/{args.questions.stem}/{index}", *published

    questions = read_questions(args.questions, task.read_question, names)
    seconds = args.seconds_per_trace or task.seconds_per_trace
    return Input(questions, read_traces(args.traces, questions), checker, seconds)


def read_questions(
    path: Path, read: ReadQuestion, names: NameQuestion = lambda index, _: [str(index)]
) -> dict[str, Question]:
    """Questions by name: by their ids, which the lines give.

    Args:
      read: a task's read_question.
      names: what a question without an id is called, by its number (from 0) and line; the first one is its id.

    Raises:
      UserError: there are none, or more than 1% are no questions, named by file and line.
    """
    questions: dict[str, Question] = {}

    def add(index: int, line: dict[str, Any]) -> None:
        called = [*names(index, line)] if line.get("id") is None else [id_of(line, None)]
        for name in called:
            if name in questions:
                raise InvalidRecordError(f"the id {name!r} is that of an earlier question; make ids unique")
        question = read(called[0], line)
        questions.update(dict.fromkeys(called, question))

    read_records(path, add)
    if not questions:
        raise UserError(f"{path}: holds no questions")
    return questions


def read_traces(path: Path, questions: dict[str, Question]) -> list[tuple[dict[str, Any], Trace]]:
    """The lines of a file with the traces in them; one without a sample number has the next one of its question.

    Raises:
      UserError: there are none, or more than 1% are no traces of these questions, named by file and line.
    """
    samples: dict[str, set[int]] = {question.id: set() for question in questions.values()}

    def read(_: int, line: dict[str, Any]) -> tuple[dict[str, Any], Trace]:
        given, completion = id_of(line, line.get("task_id")), line.get("completion", line.get("trace"))
        if given not in questions:
            raise InvalidRecordError(
                f"no question has the id {given!r}; the questions are called {listed([*samples], 3)}"
            )
        if not isinstance(completion, str):
            raise InvalidRecordError('lacks a text under "completion" or "trace"')
        name = questions[given].id
        sample = sample_of(line, default=len(samples[name]))
        if sample in samples[name]:
            raise InvalidRecordError(f"sample {sample} of question {name!r} a second time; number them apart")
        trace = Trace(name, sample, completion, finish_reason=finish_reason_of(line))
        samples[name].add(sample)
        return line, trace

    traces = read_records(path, read)
    if not traces:
        raise UserError(f'{path}: holds no traces; write one {{"id", "sample", "completion"}} object a line')
    return traces
