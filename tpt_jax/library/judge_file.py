"""`judge_file`: judges a file of traces and marks those to keep, as `tpt prune`; without JAX."""

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from tpt_jax.checks.registry import require, without_sandbox
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.files import check_output, write_pieces
from tpt_jax.io.paths import to_path
from tpt_jax.io.record_files import (
    MAX_BROKEN_SHARE,
    parse_finish_reason,
    parse_id,
    parse_sample,
    read_records,
    stream_records,
)
from tpt_jax.io.record_formats import RecordFile, open_records, plain_name
from tpt_jax.library.judging import StepsToParse, judge_pairs
from tpt_jax.prune.candidate import Candidate
from tpt_jax.prune.pipeline import Choice, Pipeline
from tpt_jax.prune.registry import DEFAULT_STEPS, parse_steps
from tpt_jax.prune.summary import failed_on_all
from tpt_jax.records import Question, Trace, Verdict
from tpt_jax.tasks import task_class
from tpt_jax.tasks.decontamination import normalised, normalised_texts
from tpt_jax.terminal import listed

LIMITS = frozenset({"time limit", "memory limit"})  # verdict reasons
Line = dict[str, Any]
VERDICT_FIELDS = tuple(field.name for field in dataclasses.fields(Verdict))


@dataclasses.dataclass(frozen=True)
class JudgedFile:
    """The result of judging a file; the traces themselves are in the output.

    Attributes:
      judged: each trace of the output, in the same order, without its texts.
      choice: the indices of the kept ones.
      fault: why the verdicts are meaningless; None if they are not.
    """

    judged: list[Candidate]
    choice: Choice
    fault: str | None


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


def judge_file(
    task: str,
    questions: str | os.PathLike[str],
    traces: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    held_out: str | os.PathLike[str] | None = None,
    checker: str | None = None,
    steps: StepsToParse = DEFAULT_STEPS,
    max_per_question: int | None = None,
    max_traces: int | None = None,
    seed: int = 0,
    num_workers: int | None = None,
    seconds_per_trace: float | None = None,
    run_code_without_sandbox: bool = False,
) -> JudgedFile:
    """Judges traces and writes them with their verdicts and `kept`, atomically.

    Memory does not grow with the traces' texts: traces are judged as they are read, and wait on the output's disk for
    the selection.

    Args:
      task: the task of these questions; its checker judges unless `checker` names another.
      questions, traces, held_out: JSON lines; see `tpt prune --help`. Traces of held-out questions are not kept.
      steps, max_per_question, max_traces, seed: as in `select`.
      num_workers, seconds_per_trace, run_code_without_sandbox: as in `judge`.

    Raises:
      UserError: an unknown task or checker, an invalid file, or an output that cannot be written.
    """
    pipeline = Pipeline(parse_steps(steps, "steps"), max_per_question, max_traces, seed)
    output = pathlib.Path(output)
    check_output(output, [to_path(path) for path in (questions, traces, held_out) if path is not None])
    read = read_traces_to_judge(
        task, questions, traces, checker, seconds_per_trace, run_code_without_sandbox=run_code_without_sandbox
    )
    held_out_questions = read_questions(held_out, task_class(task).read_question) if held_out else {}
    tested = normalised_texts(held_out_questions.values())
    # Without a name: it vanishes with this process.
    with tempfile.TemporaryFile("w+", encoding="utf-8", dir=os.path.dirname(os.path.realpath(output))) as judged_lines:
        judged = _judge_lines(read, pipeline, num_workers, judged_lines)
        choice = pipeline.choose(judged, lambda name: normalised(read.questions[name].question) in tested)
        write_pieces(output, _with_kept(judged_lines, choice))
    fault = find_fault(judged)
    return JudgedFile(judged, choice, None if fault is None else f"checker {read.checker!r}: {fault}")


def _judge_lines(read: TracesToJudge, pipeline: Pipeline, num_workers: int | None, output: IO[str]) -> list[Candidate]:
    """Judges traces, and writes their lines with the verdicts, but without `kept`."""
    waiting: deque[tuple[Line, Trace]] = deque()  # for their verdicts

    def pairs() -> Iterator[tuple[Question, Trace]]:
        for line, trace in read.lines():
            waiting.append((line, trace))
            yield read.questions[trace.id], trace

    judged = []
    verdicts = judge_pairs(pairs(), read.count, read.checker, num_workers, read.seconds_per_trace)
    with contextlib.closing(verdicts):
        for verdict in verdicts:
            line, trace = waiting.popleft()
            line = {**line, **{name: getattr(verdict, name) for name in VERDICT_FIELDS}}
            line.pop("kept", None)
            output.write(json.dumps(line, default=str) + "\n")  # a Parquet file may hold dates and decimals
            judged.append(pipeline.candidate(trace, verdict))
    return judged


def _with_kept(judged_lines: IO[str], choice: Choice) -> Iterator[str]:
    """The judged lines with `kept` as their last field."""
    kept = frozenset(choice.kept)
    judged_lines.seek(0)
    for index, line in enumerate(judged_lines):
        ending = f', "kept": {json.dumps(index in kept)}}}\n'
        yield line.removesuffix("}\n") + ending


def find_fault(judged: Sequence[Candidate]) -> str | None:
    """Why the verdicts are meaningless: the checker failed, or cannot judge these questions; None if they are not."""
    if failure := failed_on_all(judged):
        return f"{failure}; fix it, or name another one"
    reasons = {trace.verdict.reason for trace in judged}
    if reasons <= LIMITS:
        return f"every trace hit a limit ({listed(sorted(reasons))}); --seconds_per_trace sets the time limit"
    asked = {trace.id for trace in judged}
    unknown = list(dict.fromkeys(trace.id for trace in judged if trace.verdict.unknown))
    if len(unknown) > MAX_BROKEN_SHARE * len(asked):
        return (
            f"it cannot read the reference answers of {len(unknown)} of {len(asked)} questions, more than "
            f"{MAX_BROKEN_SHARE:.0%}: {listed(unknown)}; fix them, or name another checker"
        )
    return None


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
    file = open_records(to_path(traces))
    return TracesToJudge(by_name, file, file.count(), name, seconds_per_trace or cls.seconds_per_trace)


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
        question = read(own_names[0], line)
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
        name, completion = parse_id(line, line.get("task_id")), line.get("completion")
        if completion is None:
            completion = line.get("trace")
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

    if not count:
        raise UserError(f'{file.path}: holds no traces; write one {{"id", "sample", "completion"}} object per line')
    yield from stream_records(file, count, read)
