"""`judge_file`: judges a file of traces and marks those to keep, as `tpt prune`; without JAX."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpt_jax.checks.registry import require, without_sandbox
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.files import check_output, write_jsonl
from tpt_jax.io.record_files import MAX_BROKEN_SHARE, parse_finish_reason, parse_id, parse_sample, read_records
from tpt_jax.library.judging import judge_pairs
from tpt_jax.prune.selection import Selection, select
from tpt_jax.prune.summary import failed_on_all
from tpt_jax.records import JudgedTrace, Keep, Question, Trace
from tpt_jax.tasks import task_class
from tpt_jax.tasks.decontamination import normalised, normalised_texts
from tpt_jax.terminal import listed

LIMITS = frozenset({"time limit", "memory limit"})  # verdict reasons


@dataclasses.dataclass(frozen=True)
class JudgedFile:
    """The result of judging a file.

    Attributes:
      fault: why the verdicts are meaningless; None if they are not.
    """

    judged: list[JudgedTrace]
    selection: Selection
    fault: str | None


@dataclasses.dataclass(frozen=True)
class TracesToJudge:
    """Traces, each with its line in the file, and the checker that judges them."""

    questions: dict[str, Question]
    lines: list[tuple[dict[str, Any], Trace]]
    checker: str
    seconds_per_trace: float

    @property
    def pairs(self) -> list[tuple[Question, Trace]]:
        return [(self.questions[trace.id], trace) for _, trace in self.lines]


def judge_file(
    task: str,
    questions: str | os.PathLike[str],
    traces: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    held_out: str | os.PathLike[str] | None = None,
    checker: str | None = None,
    keep: Keep = "correct",
    max_per_question: int | None = None,
    max_traces: int | None = None,
    seed: int = 0,
    num_workers: int | None = None,
    seconds_per_trace: float | None = None,
    run_code_without_sandbox: bool = False,
) -> JudgedFile:
    """Judges traces and writes them with their verdicts and `kept`, atomically.

    Args:
      task: the task of these questions; its checker judges unless `checker` names another.
      questions, traces, held_out: JSON lines; see `tpt prune --help`. Traces of held-out questions are not kept.
      keep, max_per_question, max_traces, seed: as in `select`.
      num_workers, seconds_per_trace, run_code_without_sandbox: as in `judge`.

    Raises:
      UserError: an unknown task or checker, an invalid file, or an output that cannot be written.
    """
    questions, traces, output = Path(questions), Path(traces), Path(output)
    held_out = None if held_out is None else Path(held_out)
    check_output(output, filter(None, (questions, traces, held_out)))
    read = read_traces_to_judge(
        task, questions, traces, checker, seconds_per_trace, run_code_without_sandbox=run_code_without_sandbox
    )
    held_out_questions = read_questions(held_out, task_class(task).read_question) if held_out else {}
    tested = normalised_texts(held_out_questions.values())
    verdicts = judge_pairs(read.pairs, read.checker, num_workers, read.seconds_per_trace)
    judged = [JudgedTrace(trace, verdict) for (_, trace), verdict in zip(read.lines, verdicts, strict=True)]
    selection = select(
        judged,
        max_per_question=max_per_question,
        max_traces=max_traces,
        seed=seed,
        keep=keep,
        is_held_out=lambda name: normalised(read.questions[name].question) in tested,
    )
    kept = {(each.trace.id, each.trace.sample) for each in selection.kept}
    write_jsonl(
        output,
        (
            {**line, **dataclasses.asdict(verdict), "kept": (trace.id, trace.sample) in kept}
            for (line, trace), verdict in zip(read.lines, verdicts, strict=True)
        ),
    )
    fault = find_fault(judged)
    return JudgedFile(judged, selection, None if fault is None else f"checker {read.checker!r}: {fault}")


def find_fault(judged: Sequence[JudgedTrace]) -> str | None:
    """Why the verdicts are meaningless: the checker failed, or cannot judge these questions; None if they are not."""
    if failure := failed_on_all(judged):
        return f"{failure}; fix it, or name another one"
    reasons = {trace.verdict.reason for trace in judged}
    if reasons <= LIMITS:
        return f"every trace hit a limit ({listed(sorted(reasons))}); --seconds_per_trace sets the time limit"
    asked = {trace.trace.id for trace in judged}
    unknown = list(dict.fromkeys(trace.trace.id for trace in judged if trace.verdict.unknown))
    if len(unknown) > MAX_BROKEN_SHARE * len(asked):
        return (
            f"it cannot read the reference answers of {len(unknown)} of {len(asked)} questions, more than "
            f"{MAX_BROKEN_SHARE:.0%}: {listed(unknown)}; fix them, or name another checker"
        )
    return None


def read_traces_to_judge(
    task: str,
    questions: Path,
    traces: Path,
    checker: str | None,
    seconds_per_trace: float | None,
    *,
    run_code_without_sandbox: bool,
) -> TracesToJudge:
    """Reads questions and traces, after making sure that the checker can be used.

    Raises:
      UserError: an unknown task or checker, or an invalid file.
    """
    cls = task_class(task)
    name = checker or cls.checker_name
    if run_code_without_sandbox:
        name = str(without_sandbox(name))
    require(name)  # before the files are read

    def names(index: int, line: Mapping[str, Any]) -> Iterable[str]:
        published = (str(line["task_id"]),) if "task_id" in line else ()
        return cls.default_id(index, line), f"{task}/{questions.stem}/{index}", *published

    by_name = read_questions(questions, cls.read_question, names)
    return TracesToJudge(by_name, read_traces(traces, by_name), name, seconds_per_trace or cls.seconds_per_trace)


def read_questions(
    path: Path,
    read: Callable[[str, dict[str, Any]], Question],
    names: Callable[[int, Mapping[str, Any]], Iterable[str]] = lambda index, _: [str(index)],
) -> dict[str, Question]:
    """Questions by name: their ids, or the names of a question without an id.

    Args:
      read: a task's read_question.
      names: the names of a question without an id, from its index and line; the first one becomes its id.

    Raises:
      UserError: there are none, or more than 1% of the lines are invalid; names file and line.
    """
    questions: dict[str, Question] = {}

    def add(index: int, line: dict[str, Any]) -> None:
        own_names = [*names(index, line)] if line.get("id") is None else [parse_id(line, None)]
        for name in own_names:
            if name in questions:
                raise InvalidRecordError(f"the id {name!r} belongs to an earlier question; make ids unique")
        question = read(own_names[0], line)
        questions.update(dict.fromkeys(own_names, question))

    read_records(path, add)
    if not questions:
        raise UserError(f"{path}: holds no questions")
    return questions


def read_traces(path: Path, questions: Mapping[str, Question]) -> list[tuple[dict[str, Any], Trace]]:
    """The lines of a file with their traces; a trace without a sample number gets the next one of its question.

    Raises:
      UserError: there are none, or more than 1% of the lines are invalid; names file and line.
    """
    samples: dict[str, set[int]] = {question.id: set() for question in questions.values()}

    def read(_: int, line: dict[str, Any]) -> tuple[dict[str, Any], Trace]:
        name, completion = parse_id(line, line.get("task_id")), line.get("completion", line.get("trace"))
        if name not in questions:
            raise InvalidRecordError(f"no question has the id {name!r}; the questions' ids are {listed([*samples], 3)}")
        if not isinstance(completion, str):
            raise InvalidRecordError('lacks text under "completion" or "trace"')
        question_id = questions[name].id
        sample = parse_sample(line, default=len(samples[question_id]))
        if sample in samples[question_id]:
            raise InvalidRecordError(
                f"sample {sample} of question {question_id!r} appears twice; make sample numbers unique"
            )
        trace = Trace(question_id, sample, completion, finish_reason=parse_finish_reason(line))
        samples[question_id].add(sample)
        return line, trace

    traces = read_records(path, read)
    if not traces:
        raise UserError(f'{path}: holds no traces; write one {{"id", "sample", "completion"}} object per line')
    return traces
