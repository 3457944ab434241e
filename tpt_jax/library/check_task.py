"""`check_task`: asks a task's checker right and wrong answers, before any model is loaded; without JAX."""

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from tpt_jax.checks.pool import CheckerPool
from tpt_jax.checks.registry import without_sandbox
from tpt_jax.config_parsing import check_value
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.record_files import MAX_BROKEN_SHARE, read_records
from tpt_jax.prune.summary import always_failed
from tpt_jax.records import Question, QuestionSet, Trace, Verdict
from tpt_jax.tasks import Task
from tpt_jax.tasks.decontamination import normalised
from tpt_jax.terminal import listed, progress

Split = Literal["train", "test"]
EXAMPLE_FORM = '{"question" or "question_id", "completion", "correct": true or false}'
# Ways to say an answer. A checker need not take all of them.
PHRASINGS: Mapping[str, str] = {
    "as it is": "{}",
    "sentence": "The answer is {}.",
    "after ####": "#### {}",
    "boxed": "\\boxed{{{}}}",
}
EMPTY, OTHER, EXAMPLE = "empty", "another's", "yours"  # of another question; an example of the user's


@dataclasses.dataclass(frozen=True)
class _Ask:
    """A completion to ask the checker about.

    Attributes:
      form: how it was made: one of PHRASINGS with the reference answer, or EMPTY, OTHER or EXAMPLE.
      expected: whether it is right; None for a phrasing, which the checker need not take.
    """

    split: Split
    question: Question
    form: str
    completion: str
    expected: bool | None


@dataclasses.dataclass(frozen=True)
class CheckedCompletion(_Ask):
    """A completion and what the checker says about it."""

    verdict: Verdict

    @property
    def is_as_expected(self) -> bool:
        return not self.verdict.unknown and self.expected in (None, self.verdict.correct)


@dataclasses.dataclass(frozen=True)
class SplitCheck:
    """What is known of all questions of a split.

    Attributes:
      unreadable: ids of questions whose reference answer the checker cannot read.
      repeated: ids of questions with the text of an earlier one.
      contradicting: those of them whose answer differs too.
    """

    num_questions: int
    unreadable: tuple[str, ...]
    repeated: tuple[str, ...]
    contradicting: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TaskCheck:
    """The result of `check_task`.

    Attributes:
      completions: those of the first questions, then the user's examples.
      splits: by name.
      num_contaminated: training questions left out because they are also test questions.
      seconds_per_check: of one worker process, on average.
    """

    completions: tuple[CheckedCompletion, ...]
    splits: Mapping[Split, SplitCheck]
    num_contaminated: int
    seconds_per_check: float

    @property
    def mistakes(self) -> tuple[str, ...]:
        """Why the task should not be trained on, a line each; () if nothing speaks against it."""
        lines = []
        for split, check in self.splits.items():
            if len(check.unreadable) > MAX_BROKEN_SHARE * check.num_questions:
                lines.append(
                    f"{len(check.unreadable)} of {check.num_questions} {split} reference answers cannot be read: "
                    f"{listed(check.unreadable)}"
                )
        wrong = [each for each in self.completions if each.expected is not None and not each.is_as_expected]
        if examples := [each for each in wrong if each.form == EXAMPLE]:
            lines.append(f"{len(examples)} of your examples are judged otherwise: {_quoted(examples)}")
        if others := [each for each in wrong if each.form != EXAMPLE and each.verdict.correct]:
            lines.append(f"{len(others)} wrong answers count as right: {_quoted(others)}")
        return tuple(lines)


def check_task(
    task: Task,
    *,
    examples: str | os.PathLike[str] | Iterable[Mapping[str, Any]] = (),
    num_shown: int = 2,
    num_workers: int | None = None,
    seconds_per_trace: float | None = None,
    run_code_without_sandbox: bool = False,
) -> TaskCheck:
    """Asks the checker about answers to the first questions, the user's examples, and all reference answers.

    Args:
      examples: completions whose verdict is known, or a file of them: {"question" or "question_id", "completion",
        "correct"}.
      num_shown: questions of each split whose answers are asked about in several forms.
      num_workers: checker processes; one per processor core if not given.
      seconds_per_trace: a check that takes longer is killed; the task's limit if not given.
      run_code_without_sandbox: run the programs of examples with your own user rights.

    Raises:
      UserError: an example is invalid, or the checker cannot be used or fails on every answer.
    """
    check_value("num_shown", num_shown, PositiveInt)
    check_value("num_workers", num_workers, PositiveInt | None)
    splits: dict[Split, QuestionSet] = {"train": task.train, "test": task.test}
    asks = [ask for split, questions in splits.items() for ask in _first_asks(split, questions, num_shown)]
    asks += _example_asks(examples, splits)
    # Every reference answer is read once, whatever the completion is.
    everywhere = [_Ask(split, each, EMPTY, "", False) for split in splits for each in splits[split]]
    spec = without_sandbox(task.train.checker) if run_code_without_sandbox else task.train.checker
    seconds = task.train.seconds_per_trace if seconds_per_trace is None else seconds_per_trace
    with CheckerPool(spec, num_workers, seconds) as pool:
        verdicts, seconds_per_check = _judge(pool, [*asks, *everywhere], num_workers or os.cpu_count() or 1)
    if failure := always_failed({verdict.reason for verdict in verdicts}):
        raise UserError(f"checker: {failure}; fix it, or give another one")
    unknown = [(ask, verdict) for ask, verdict in zip((*asks, *everywhere), verdicts, strict=True) if verdict.unknown]
    return TaskCheck(
        tuple(CheckedCompletion(**vars(ask), verdict=verdict) for ask, verdict in zip(asks, verdicts, strict=False)),
        {
            split: _check_split(splits[split], tuple({ask.question.id: 0 for ask, _ in unknown if ask.split == split}))
            for split in splits
        },
        task.num_contaminated,
        seconds_per_check,
    )


def _judge(pool: CheckerPool, asks: Sequence[_Ask], num_workers: int) -> tuple[list[Verdict], float]:
    """Verdicts, and the mean time of a check in seconds of one worker."""
    pairs = [(ask.question, Trace(ask.question.id, 0, ask.completion)) for ask in asks]
    pool.wait_until_ready()
    started = time.monotonic()
    verdicts = []
    with progress("check", len(pairs), "answers") as advance:
        for verdict in pool.judge(pairs):
            verdicts.append(verdict)
            advance(1)
    return verdicts, (time.monotonic() - started) * min(num_workers, len(pairs)) / len(pairs)


def _first_asks(split: Split, questions: QuestionSet, count: int) -> list[_Ask]:
    """Right and wrong answers to the first questions of a split. A program has no reference answer to ask about."""
    asks = []
    for index, question in enumerate(questions[:count]):
        if question.answer:
            asks += [
                _Ask(split, question, form, phrasing.format(question.answer), None)
                for form, phrasing in PHRASINGS.items()
            ]
        asks.append(_Ask(split, question, EMPTY, "", False))
        if other := _other_answer(question, [*questions[index + 1 :], *questions[:index]]):
            asks.append(_Ask(split, question, OTHER, other, False))
    return asks


def _other_answer(question: Question, others: Sequence[Question]) -> str | None:
    """The first answer of another question that is another value too; None if there is none."""
    own = _value(question.answer)
    return next((other.answer for other in others if own and other.answer and _value(other.answer) != own), None)


def _value(answer: str) -> float | str:
    """A number, or else a normalised text, to compare answers by."""
    try:
        return float(answer.replace(",", ""))
    except ValueError:
        return normalised(answer)


def _example_asks(
    examples: str | os.PathLike[str] | Iterable[Mapping[str, Any]], splits: Mapping[Split, QuestionSet]
) -> list[_Ask]:
    known: list[tuple[Split, Question]] = [(split, question) for split in splits for question in splits[split]]
    by_id: dict[str, tuple[Split, Question]] = {each.id: (split, each) for split, each in reversed(known)}
    by_text: dict[str, tuple[Split, Question]] = {
        normalised(each.question): (split, each) for split, each in reversed(known)
    }

    def read(index: int, line: Mapping[str, Any]) -> _Ask:
        text, name, completion, correct = (
            line.get(key) for key in ("question", "question_id", "completion", "correct")
        )
        if not isinstance(completion, str) or not isinstance(correct, bool):
            raise InvalidRecordError(
                f'lacks text under "completion", or true or false under "correct"; write {EXAMPLE_FORM}'
            )
        found = by_text.get(normalised(text)) if isinstance(text, str) else by_id.get(str(name))
        if found is None:
            raise InvalidRecordError(
                f"is about a question that the task does not have ({text or name!r:.80}); write examples of your own "
                "questions, or delete it"
            )
        split, question = found
        return _Ask(split, question, EXAMPLE, completion, correct)

    if isinstance(examples, str | os.PathLike):
        return read_records(Path(examples), read)
    asks = []
    for index, line in enumerate(examples):
        try:
            asks.append(read(index, line))
        except InvalidRecordError as error:
            raise UserError(f"examples, item {index + 1}: {error}") from error
    return asks


def _check_split(questions: QuestionSet, unreadable: tuple[str, ...]) -> SplitCheck:
    answers: dict[str, str] = {}
    repeated, contradicting = [], []
    for question in questions:
        text = normalised(question.question)
        if text in answers:
            repeated.append(question.id)
            if _value(answers[text]) != _value(question.answer):
                contradicting.append(question.id)
        answers.setdefault(text, question.answer)
    return SplitCheck(len(questions), unreadable, tuple(repeated), tuple(contradicting))


def _quoted(completions: Sequence[CheckedCompletion]) -> str:
    return listed([f"{each.completion[:40]!r} to {each.question.id}" for each in completions], 3)
