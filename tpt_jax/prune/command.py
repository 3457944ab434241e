"""`tpt prune`: judges a file of traces and marks those to keep, without JAX."""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpt_jax.arguments import positive, positive_number
from tpt_jax.errors import UserError
from tpt_jax.records import JudgedTrace, Question, Trace, read_jsonl, write_jsonl


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", required=True, help="whose checker judges: gsm8k or gsm_symbolic")
    parser.add_argument(
        "--questions", type=Path, required=True, help='JSON lines or list: {"id", "question", "answer"}'
    )
    parser.add_argument(
        "--traces", type=Path, required=True, help='JSON lines: {"id", "sample", "completion" or "trace"}'
    )
    parser.add_argument("--output", type=Path, required=True, help="the traces with their verdicts, JSON lines")
    parser.add_argument(
        "--keep", choices=("correct", "strict", "any"), default="correct", help="the verdict that counts"
    )
    parser.add_argument("--max_per_question", type=positive, help="keep at most so many of each, drawn with the seed")
    parser.add_argument("--max_traces", type=positive, help="keep at most so many in all, drawn with the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=positive, help="checker processes; one a processor core if not given")
    parser.add_argument("--seconds_per_trace", type=positive_number, default=5.0, help="a slower check is killed")


def main(args: argparse.Namespace) -> int:
    """Judges, writes the output whole or not at all, and prints a summary to standard output."""
    from tpt_jax.prune.pool import CheckerPool
    from tpt_jax.prune.select import select
    from tpt_jax.tasks import task_class

    task = task_class(args.task)
    checker = task.checker_name
    questions = read_questions(args.questions)
    lines = list(read_jsonl(args.traces))
    traces = list(_traces(lines, questions, args.traces))
    if not traces:
        raise UserError(f'{args.traces}: holds no traces; write one {{"id", "sample", "completion"}} object a line')
    with CheckerPool(checker, args.num_workers, args.seconds_per_trace) as pool:
        started = time.monotonic()
        verdicts = list(pool.judge((questions[trace.id], trace) for trace in traces))
        seconds = time.monotonic() - started
    judged = list(map(JudgedTrace, traces, verdicts))
    selection = select(
        judged,
        max_per_question=args.max_per_question,
        max_traces=args.max_traces,
        seed=args.seed,
        use=args.keep,
    )
    kept = {(trace.trace.id, trace.trace.sample) for trace in selection.kept}
    write_jsonl(
        args.output,
        (
            {**line, **dataclasses.asdict(verdict), "kept": (trace.id, trace.sample) in kept}
            for line, trace, verdict in zip(lines, traces, verdicts, strict=True)
        ),
    )
    _print_summary(judged, len(kept), selection.num_dropped, len(judged) / seconds)
    return 0


def read_questions(path: Path) -> dict[str, Question]:
    """Questions by id, from JSON lines or one JSON list; without ids, a question's number (from 0) is its id.

    A worked answer in GSM8K's form is cut to what follows its last "####".

    Raises:
      UserError: something that is not a question, or two with one id, named by file and number.
    """
    questions: dict[str, Question] = {}
    for index, line in enumerate(_question_lines(path)):
        missing = [key for key in ("question", "answer") if line.get(key) in (None, "")]
        if missing:
            raise UserError(f'{path}: question {index + 1} lacks "{missing[0]}"; write {{"id", "question", "answer"}}')
        name = str(line.get("id", index))
        if name in questions:
            raise UserError(f"{path}: question {index + 1} has the id {name!r} of an earlier one; make ids unique")
        answer = str(line["answer"]).rpartition("####")[2].strip()
        questions[name] = Question(name, str(line["question"]), answer)
    if not questions:
        raise UserError(f"{path}: holds no questions")
    return questions


def _question_lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file() and path.read_bytes().lstrip().startswith(b"["):
        try:
            lines = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
        for index, line in enumerate(lines):
            if not isinstance(line, dict):
                raise UserError(f'{path}: question {index + 1} is no object; write {{"id", "question", "answer"}}')
            yield line
    else:
        yield from read_jsonl(path)


def _traces(lines: list[dict[str, Any]], questions: dict[str, Question], path: Path) -> Iterator[Trace]:
    seen: dict[str, set[int]] = {}
    for number, line in enumerate(lines, start=1):
        name = str(line.get("id"))
        completion = line.get("completion", line.get("trace"))
        if name not in questions:
            raise UserError(
                f"{path}: trace {number} has the id {name!r}, which no question has; give the questions it answers"
            )
        if not isinstance(completion, str):
            raise UserError(f'{path}: trace {number} lacks a text under "completion" or "trace"')
        samples = seen.setdefault(name, set())
        sample = line.get("sample", len(samples))
        if not isinstance(sample, int):
            raise UserError(f"{path}: trace {number} has the sample {sample!r}; number samples from 0")
        if sample in samples:
            raise UserError(
                f"{path}: trace {number} is sample {sample} of question {name!r} a second time; number them apart"
            )
        samples.add(sample)
        yield Trace(name, sample, completion, finish_reason=line.get("finish_reason", "stop"))


def _print_summary(judged: list[JudgedTrace], num_kept: int, dropped: dict[str, int], rate: float) -> None:
    from rich.console import Console
    from rich.table import Table

    from tpt_jax.evaluate import mean_interval

    by_question: dict[str, list[JudgedTrace]] = {}
    for trace in judged:
        by_question.setdefault(trace.trace.id, []).append(trace)
    table = Table("", "traces", "share", "Pass@1, 95% over questions")
    for label in ("correct", "strict"):
        count = sum(getattr(trace.verdict, label) for trace in judged)
        means = [
            sum(getattr(trace.verdict, label) for trace in traces) / len(traces) for traces in by_question.values()
        ]
        low, high = mean_interval(means)
        table.add_row(
            label, str(count), f"{count / len(judged):.1%}", f"{sum(means) / len(means):.1%} ({low:.1%} to {high:.1%})"
        )
    no_answer = sum(trace.verdict.extracted is None for trace in judged)
    table.add_row("no answer", str(no_answer), f"{no_answer / len(judged):.1%}", "")
    table.add_row("kept", str(num_kept), f"{num_kept / len(judged):.1%}", "")
    for reason, count in dropped.items():
        table.add_row(reason, str(count), f"{count / len(judged):.1%}", "")
    console = Console()
    console.print(table)
    console.print(f"{len(judged)} traces of {len(by_question)} questions, {rate:,.0f} verdicts/s", highlight=False)
