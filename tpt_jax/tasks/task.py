"""A task: training and test questions with checkable answers, and the config section that loads them."""

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.records import Generation, Question, QuestionSet, Shot


@dataclasses.dataclass(frozen=True)
class Task:
    """Questions to train on, and held-out questions to evaluate on.

    Attributes:
      train: the training questions, with how they are asked and judged.
      test: the held-out questions, likewise.
      num_contaminated: number of training questions left out because they are also test questions.
    """

    name: str
    train: QuestionSet
    test: QuestionSet
    num_contaminated: int = 0

    def __post_init__(self) -> None:
        for split, questions in (("training", self.train), ("test", self.test)):
            if not questions:
                raise UserError(f"task {self.name}: no {split} questions; give at least one")
            seen_ids: set[str] = set()
            for question in questions:
                if question.id in seen_ids:
                    raise UserError(
                        f"task {self.name}: two {split} questions have the id {question.id!r}; make ids unique"
                    )
                seen_ids.add(question.id)


class TaskConfig(abc.ABC):
    """A config's `task` section. Each task defines its own subclass, a frozen dataclass.

    Attributes:
      name: the task's name, which selects the class.
      checker_name: the checker that judges the task's traces, unless the user names another.
      seconds_per_trace: default time limit of a check.
      generation: default lengths of prompts and completions.
    """

    name: str
    checker_name: ClassVar[str]
    seconds_per_trace: ClassVar[float] = 5.0
    generation: ClassVar[Generation] = Generation()

    @abc.abstractmethod
    def load(self) -> Task:
        """Loads both splits.

        Raises:
          UserError: they cannot be loaded; the message says what to do.
        """

    @abc.abstractmethod
    def num_questions(self) -> tuple[int, int]:
        """Numbers of training and test questions, if possible without loading them: `tpt plan` needs no more."""

    def task(
        self,
        train: Iterable[Question],
        test: Iterable[Question],
        *,
        instruction: str = "",
        shots: Iterable[Shot] = (),
        checker: str | None = None,
    ) -> Task:
        """Builds the task from its questions, with this class's lengths and time limit in both splits.

        Args:
          instruction: placed after every question; "" for none.
          shots: worked examples that a prompt may begin with.
          checker: judges the traces; None for the class's own checker.
        """

        def question_set(questions: Iterable[Question]) -> QuestionSet:
            return QuestionSet(
                tuple(questions),
                instruction=instruction,
                checker=checker or self.checker_name,
                shots=tuple(shots),
                generation=self.generation,
                seconds_per_trace=self.seconds_per_trace,
            )

        return Task(self.name, question_set(train), question_set(test))

    @staticmethod
    def default_id(index: int, line: Mapping[str, Any]) -> str:
        """Id of a question without "id": its publisher's name for it, or its index in the file, from 0."""
        return str(index)

    @staticmethod
    def read_question(name: str, line: Mapping[str, Any]) -> Question:
        """Reads a question from an object in the task's published format.

        Args:
          name: the question's id.

        Raises:
          InvalidRecordError: a field is missing or invalid; names it.
        """
        return read_plain_question(name, line)


def read_plain_question(name: str, line: Mapping[str, Any]) -> Question:
    """Reads {"question", "answer"}; of a worked answer in GSM8K's format, only what follows the last "####".

    Raises:
      InvalidRecordError: either field is missing, empty or of the wrong type.
    """
    form = '{"id", "question", "answer"}'
    question, answer = parse_text(line, "question", form), parse_answer(line).rpartition("####")[2].strip()
    if not answer:
        raise InvalidRecordError(f'lacks "answer"; write {form}')
    return Question(name, question, answer)


def parse_text(line: Mapping[str, Any], key: str, form: str) -> str:
    """The text under a key.

    Args:
      form: the expected form of the whole line, for the message.

    Raises:
      InvalidRecordError: it is missing, blank or not text.
    """
    text = line.get(key)
    if not isinstance(text, str) or not text.strip():
        raise InvalidRecordError(f'lacks text under "{key}"; write {form}')
    return text


def parse_answer(line: Mapping[str, Any]) -> str:
    """The "answer" as text; "" if there is none.

    Raises:
      InvalidRecordError: it is neither text nor a number.
    """
    answer = line.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise InvalidRecordError(f'has an "answer" of type {type(answer).__name__}; write a number or quoted text')
    return "" if answer is None else str(answer).strip()
