"""Files of traces, and the questions they answer, as `tpt prune` reads them."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tpt_jax.checks.registry import require, without_sandbox
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.paths import Path, to_path
from tpt_jax.io.record_files import (
    parse_finish_reason,
    parse_id,
    parse_number,
    parse_numbers,
    parse_sample,
    read_records,
    stream_records,
)
from tpt_jax.io.record_formats import RecordFile, RecordFiles, open_records, plain_name
from tpt_jax.records import TOKEN_FIELDS, Question, Trace
from tpt_jax.tasks import task_class
from tpt_jax.terminal import listed

QUESTION_FIELDS = {field.name for field in dataclasses.fields(Question)}
Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TracesToJudge:
    """A file of traces, their questions, and the checker that judges them.

    Attributes:
      count: number of traces in the file, broken ones included.
    """

    questions: dict[str, Question]
    file: RecordFile
    count: int
    checker: str
    seconds_per_trace: float

    def lines(self) -> Iterator[tuple[Line, Trace]]:
        """As `read_traces`."""
        return read_traces(self.file, self.count, self.questions)

    def pairs(self) -> Iterator[tuple[Question, Trace]]:
        return ((self.questions[trace.id], trace) for _, trace in self.lines())


def read_traces_to_judge(
    task: str,
    questions: str | os.PathLike[str],
    traces: str | os.PathLike[str],
    checker: str | None,
    seconds_per_trace: float | None,
    *,
    run_code_without_sandbox: bool,
) -> TracesToJudge:
    """Reads questions and counts traces, after making sure that the checker can be used.

    Raises:
      UserError: an unknown task or checker, or an invalid file.
    """
    cls = task_class(task)
    name = checker or cls.checker_name
    if run_code_without_sandbox:
        name = str(without_sandbox(name))
    require(name)  # before the files are read
    stem = pathlib.PurePath(plain_name(to_path(questions))).stem

    def names(index: int, line: Mapping[str, Any]) -> Iterable[str]:
        published = (str(line["task_id"]),) if "task_id" in line else ()
        return cls.default_id(index, line), f"{task}/{stem}/{index}", *published

    by_name = read_questions(questions, cls.read_question, names)
    file = _open_traces(to_path(traces))
    return TracesToJudge(by_name, file, file.count(), name, seconds_per_trace or cls.seconds_per_trace)


def _open_traces(path: Path) -> RecordFile:
    """The records of a file, or of a run's round: a folder with several files."""
    if not path.is_dir():
        return open_records(path)
    files = sorted(path.glob("think-*.jsonl"))
    if not files:
        raise UserError(f"{path}: holds no think-*.jsonl; give a file, or the folder traces of a run's round")
    return RecordFiles(path, [open_records(file) for file in files])


def completion_key(line: Mapping[str, Any]) -> str:
    """Where a line has its completion."""
    return "trace" if line.get("completion") is None else "completion"


def parse_trace(line: Mapping[str, Any], question_id: str, sample: int, completion: str) -> Trace:
    """A line's trace, with the scores that the line has.

    Raises:
      InvalidRecordError: a field is invalid.
    """
    lists: dict[str, Any] = {name: parse_numbers(line, name) for name in TOKEN_FIELDS}
    if len({len(values) for values in lists.values()} - {0}) > 1:
        raise InvalidRecordError(f"has {', '.join(TOKEN_FIELDS)} of different lengths")
    sums = {name: parse_number(line, name) for name in ("logprob", "entropy")}
    return Trace(question_id, sample, completion, finish_reason=parse_finish_reason(line), **sums, **lists)


def read_questions(
    path: str | os.PathLike[str],
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

    def add(index: int, line: Line) -> None:
        own_names = [*names(index, line)] if line.get("id") is None else [parse_id(line, None)]
        for name in own_names:
            if name in questions:
                raise InvalidRecordError(f"the id {name!r} belongs to an earlier question; make ids unique")
        # The file of a run's round holds Questions as they are.
        question = Question(**line) if line.keys() == QUESTION_FIELDS else read(own_names[0], line)
        questions.update(dict.fromkeys(own_names, question))

    read_records(path, add)
    if not questions:
        raise UserError(f"{path}: holds no questions")
    return questions


def read_traces(file: RecordFile, count: int, questions: Mapping[str, Question]) -> Iterator[tuple[Line, Trace]]:
    """Yields the lines of a file with their traces; a trace without a sample number gets its question's next one.

    Args:
      count: the file's number of records.

    Raises:
      UserError: there are none, or more than 1% of the lines are invalid; names file and line.
    """
    samples: dict[str, set[int]] = {question.id: set() for question in questions.values()}

    def read(_: int, line: Line) -> tuple[Line, Trace]:
        name, completion = parse_id(line, line.get("task_id")), line.get(completion_key(line))
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
        trace = parse_trace(line, question_id, sample, completion)
        samples[question_id].add(sample)
        return line, trace

    if not count:
        raise UserError(f'{file.path}: holds no traces; write one {{"id", "sample", "completion"}} object per line')
    yield from stream_records(file, count, read)
