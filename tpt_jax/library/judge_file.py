"""`judge_file`: judges a file of traces and marks those to keep, as `tpt prune`; without JAX."""

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from typing import IO

from tpt_jax.errors import InvalidRecordError
from tpt_jax.io.files import check_output, write_pieces
from tpt_jax.io.paths import to_path
from tpt_jax.io.record_files import MAX_BROKEN_SHARE
from tpt_jax.io.record_formats import RecordFile
from tpt_jax.library.judging import StepsToParse, judge_pairs
from tpt_jax.library.trace_files import (
    Line,
    TracesToJudge,
    completion_key,
    parse_trace,
    read_questions,
    read_traces_to_judge,
)
from tpt_jax.loop.seeds import derive_seed
from tpt_jax.prune.apply import lack
from tpt_jax.prune.candidate import Candidate
from tpt_jax.prune.pipeline import Choice, Pipeline
from tpt_jax.prune.registry import DEFAULT_STEPS, parse_steps
from tpt_jax.prune.summary import failed_on_all
from tpt_jax.prune.trim import is_same, trimmed_completion
from tpt_jax.records import TOKEN_FIELDS, Question, Trace, Verdict
from tpt_jax.tasks import task_class
from tpt_jax.tasks.decontamination import normalised, normalised_texts
from tpt_jax.terminal import listed

LIMITS = frozenset({"time limit", "memory limit"})  # verdict reasons
VERDICT_FIELDS = tuple(field.name for field in dataclasses.fields(Verdict))
OF_THE_WHOLE = (*TOKEN_FIELDS, "logprob", "entropy")  # what a trimmed trace does not have


@dataclasses.dataclass(frozen=True)
class JudgedFile:
    """The result of judging a file; the traces themselves are in the output.

    Attributes:
      judged: each trace of the output, in the same order, without its texts.
      choice: the indices of the kept ones.
      num_trimmed: how many of the kept ones were trimmed.
      fault: why the verdicts are meaningless; None if they are not.
    """

    judged: list[Candidate]
    choice: Choice
    num_trimmed: int
    fault: str | None


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
    """Judges traces and writes them with their verdicts and `kept`, atomically; the kept ones trimmed, if steps do so.

    Memory does not grow with the traces' texts, unless a step of your own gets them: traces are judged as they are
    read, and wait on the output's disk for the selection. A trace is only trimmed if that does not change its verdict;
    it then has neither token ids nor scores.

    Args:
      task: the task of these questions; its checker judges unless `checker` names another.
      questions, traces, held_out: JSON lines; see `tpt prune --help`. Traces of held-out questions are not kept.
        `traces` may be the folder rounds/001/traces of a run, and `questions` the file questions.jsonl beside it.
      steps, max_per_question, max_traces: as in `select`.
      seed: as in `select`; the run's, if the traces are those of a run's round, whose selection is then repeated.
      num_workers, seconds_per_trace, run_code_without_sandbox: as in `judge`.

    Raises:
      UserError: an unknown task, checker or step, traces that lack what a step needs, an invalid file, or an output
        that cannot be written.
    """
    pipeline = Pipeline(parse_steps(steps, "steps"), max_per_question, max_traces, _round_seed(traces, seed))
    pipeline.require()
    output = pathlib.Path(output)
    check_output(output, [to_path(path) for path in (questions, traces, held_out) if path is not None])
    read = read_traces_to_judge(
        task, questions, traces, checker, seconds_per_trace, run_code_without_sandbox=run_code_without_sandbox
    )
    if pipeline.needs:
        _check_fields(pipeline, read.file)
    held_out_questions = read_questions(held_out, task_class(task).read_question) if held_out else {}
    tested = normalised_texts(held_out_questions.values())
    # Without a name: it vanishes with this process.
    with tempfile.TemporaryFile("w+", encoding="utf-8", dir=os.path.dirname(os.path.realpath(output))) as judged_lines:
        judged = _judge_lines(read, pipeline, num_workers, judged_lines)
        choice = pipeline.choose(judged, lambda name: normalised(read.questions[name].question) in tested)
        trimmed = _trimmed(read, pipeline, num_workers, judged_lines, judged, choice) if pipeline.trims else frozenset()
        write_pieces(output, _with_kept(judged_lines, pipeline, choice, trimmed))
    fault = find_fault(judged)
    fault = None if fault is None else f"checker {read.checker!r}: {fault}"
    return JudgedFile(judged, choice, len(trimmed), fault)


def _round_seed(traces: str | os.PathLike[str], seed: int) -> int:
    """The seed that a run selects a round's traces with, for the folder .../rounds/001/traces; else the given one."""
    path = pathlib.PurePath(os.path.abspath(os.fspath(traces)))
    is_round = path.name == "traces" and path.parent.name.isdigit() and path.parent.parent.name == "rounds"
    return derive_seed(seed, int(path.parent.name), "select") if is_round else seed


def _check_fields(pipeline: Pipeline, file: RecordFile) -> None:
    """Makes sure that the traces have what the steps need, before any is judged.

    Raises:
      UserError: one lacks it; names step and field.
    """
    for _, load in file:
        try:
            line = load()
        except InvalidRecordError:
            continue  # reported later
        for field in sorted(pipeline.needs):
            is_empty = not line.get(field) if field in TOKEN_FIELDS else line.get(field) is None
            if is_empty and line.get(completion_key(line)):
                raise lack(pipeline, field, "steps")


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


def _trimmed(
    read: TracesToJudge,
    pipeline: Pipeline,
    num_workers: int | None,
    judged_lines: IO[str],
    judged: Sequence[Candidate],
    choice: Choice,
) -> frozenset[int]:
    """The indices of the kept traces that can be trimmed without another verdict."""
    waiting: deque[tuple[int, Verdict]] = deque()

    def pairs() -> Iterator[tuple[Question, Trace]]:
        for index, line in _kept_lines(judged_lines, choice):
            completion = _trimmed_text(pipeline, line)
            if completion is not None:
                waiting.append((index, Verdict(**{name: line[name] for name in VERDICT_FIELDS})))
                each = judged[index]
                yield read.questions[each.id], Trace(each.id, each.sample, completion)

    verdicts = judge_pairs(pairs(), len(choice.kept), read.checker, num_workers, read.seconds_per_trace)
    with contextlib.closing(verdicts):
        same = []
        for verdict in verdicts:
            index, whole = waiting.popleft()
            if is_same(verdict, whole):
                same.append(index)
    return frozenset(same)


def _kept_lines(judged_lines: IO[str], choice: Choice) -> Iterator[tuple[int, Line]]:
    kept = frozenset(choice.kept)
    judged_lines.seek(0)
    return ((index, json.loads(line)) for index, line in enumerate(judged_lines) if index in kept)


def _trimmed_text(pipeline: Pipeline, line: Line) -> str | None:
    """A line's completion, trimmed; None if nothing is dropped."""
    completion = line[completion_key(line)]
    trimmed = trimmed_completion(pipeline, parse_trace(line, "", 0, completion))
    return None if trimmed == completion else trimmed


def _with_kept(judged_lines: IO[str], pipeline: Pipeline, choice: Choice, trimmed: frozenset[int]) -> Iterator[str]:
    """The judged lines with `kept` as their last field; some of the kept ones trimmed."""
    kept = frozenset(choice.kept)
    judged_lines.seek(0)
    for index, text in enumerate(judged_lines):
        if index in trimmed:
            line = json.loads(text)
            line[completion_key(line)] = _trimmed_text(pipeline, line)
            text = json.dumps({name: value for name, value in line.items() if name not in OF_THE_WHOLE}) + "\n"
        yield text.removesuffix("}\n") + f', "kept": {json.dumps(index in kept)}}}\n'


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
