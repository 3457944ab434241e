"""What a task is: questions with known answers, how they are asked, and the name of the checker that judges."""

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.records import Generation, Question, QuestionSet, Shot


@dataclasses.dataclass(frozen=True)
class Task:
    """Questions to train on, and held-out questions to test on.

    Attributes:
      num_contaminated: training questions that were left out because they are test questions too.
    """

    name: str
    train: QuestionSet
    test: QuestionSet
    num_contaminated: int = 0

    def __post_init__(self) -> None:
        for split, questions in (("training", self.train), ("test", self.test)):
            if not questions:
                raise UserError(f"task {self.name}: no {split} questions; give a file that holds some")
            seen: set[str] = set()
            for question in questions:
                if question.id in seen:
                    raise UserError(
                        f"task {self.name}: two {split} questions have the id {question.id!r}; make ids unique"
                    )
                seen.add(question.id)


class TaskConfig(abc.ABC):
    """What a config's task section says; each task's file has its own, a frozen dataclass.

    Attributes:
      name: which task; in the config it chooses the class.
      checker_name: of the checker that judges the task's traces unless the user names another.
      seconds_per_trace: a slower check is killed, unless the user says otherwise.
      generation: the lengths that the task needs.
    """

    name: str
    checker_name: ClassVar[str]
    seconds_per_trace: ClassVar[float] = 5.0
    generation: ClassVar[Generation] = Generation()

    @abc.abstractmethod
    def load(self) -> Task:
        """The questions.

        Raises:
          UserError: they cannot be had; says what to do.
        """

    @abc.abstractmethod
    def num_questions(self) -> tuple[int, int]:
        """How many there are to train on and to test on, without having them."""

    def task(
        self,
        train: Iterable[Question],
        test: Iterable[Question],
        *,
        instruction: str = "",
        shots: Iterable[Shot] = (),
        checker: str | None = None,
    ) -> Task:
        """The task with these questions, asked and judged as the class says.

        Args:
          checker: another one than the class names.
        """

        def split(questions: Iterable[Question]) -> QuestionSet:
            return QuestionSet(
                tuple(questions),
                instruction,
                checker or self.checker_name,
                tuple(shots),
                self.generation,
                self.seconds_per_trace,
            )

        return Task(self.name, split(train), split(test))

    @staticmethod
    def default_id(index: int, line: Mapping[str, Any]) -> str:
        """What a question without "id" is called: its number in its file (from 0), or what its publishers call it."""
        return str(index)

    @staticmethod
    def read_question(name: str, line: Mapping[str, Any]) -> Question:
        """A question from one object of a file in the form that the task's questions are published in.

        Args:
          name: the question's id.

        Raises:
          InvalidRecordError: it is none; says what it lacks.
        """
        return read_plain_question(name, line)


def read_plain_question(name: str, line: Mapping[str, Any]) -> Question:
    """{"question", "answer"}; a worked answer in GSM8K's form is cut to what follows its last "####".

    Raises:
      InvalidRecordError: one of the two is missing, empty, or of another kind.
    """
    form = '{"id", "question", "answer"}'
    question, answer = text_of(line, "question", form), answer_of(line).rpartition("####")[2].strip()
    if not answer:
        raise InvalidRecordError(f'lacks "answer"; write {form}')
    return Question(name, question, answer)


def text_of(line: Mapping[str, Any], key: str, form: str) -> str:
    """What stands under the key.

    Args:
      form: how the whole line is to be written, for the message.

    Raises:
      InvalidRecordError: it is no text, or an empty one.
    """
    text = line.get(key)
    if not isinstance(text, str) or not text.strip():
        raise InvalidRecordError(f'lacks a text under "{key}"; write {form}')
    return text


def answer_of(line: Mapping[str, Any]) -> str:
    """The "answer" as text; "" where there is none.

    Raises:
      InvalidRecordError: it is neither a text nor a number.
    """
    answer = line.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise InvalidRecordError(f"has an answer of type {type(answer).__name__}; write a number or a quoted text")
    return "" if answer is None else str(answer).strip()
