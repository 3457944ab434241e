"""A task of the user's own: questions, answers and worked examples from files, judged by a checker of their choice."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from tpt_jax.checks.registry import get_checker
from tpt_jax.errors import STRICT, InvalidRecordError
from tpt_jax.io.record_files import id_of, read_records
from tpt_jax.records import Question, Shot
from tpt_jax.tasks.task import Task, TaskConfig, answer_of, read_plain_question, text_of

FORM = '{"id", "question", "answer"}'
NEED_AN_ANSWER = ("numeric", "math", "choice")  # checkers that compare with nothing else


@dataclass(frozen=True, config=STRICT)
class FileConfig(TaskConfig):
    """Where the questions are, and who judges.

    A question is {"id", "question", "answer"}; what else stands there is given to the checker as the question's data.
    Without an id, the eighth one is file/train/7; a checker that does not look at the answer needs none.

    Attributes:
      train, test: files of questions: JSON lines, a JSON list, or a YAML list (.yaml, .yml).
      checker: a name from prune.checkers, or "module:function" of one's own; see get_checker.
      instruction: stands after the question in every prompt.
      shots: a file of worked examples, {"question", "completion"}, of the same kinds.
    """

    name: Literal["file"]
    train: Path
    test: Path
    checker: str = "numeric"
    instruction: str = ""
    shots: Path | None = None

    checker_name: ClassVar[str] = "numeric"

    def load(self) -> Task:
        """Reads the files. Questions that cannot be used are named and left out, as read_records says.

        Raises:
          UserError: a file is missing or broken, or there is no such checker.
        """
        get_checker(self.checker)
        shots = () if self.shots is None else tuple(read_records(self.shots.expanduser(), _read_shot))
        return self.task(
            self._read("train"),
            self._read("test"),
            instruction=self.instruction,
            shots=shots,
            checker=self.checker,
        )

    def num_questions(self) -> tuple[int, int]:
        """Those in the files: they have to be there."""
        return len(self._read("train")), len(self._read("test"))

    @staticmethod
    def read_question(name: str, line: Mapping[str, Any]) -> Question:
        """A question from an object with whatever its checker needs.

        Raises:
          InvalidRecordError: there is no question, or nothing that tells right from wrong.
        """
        data = {key: value for key, value in line.items() if key not in ("id", "question", "answer")}
        if data and not answer_of(line):
            return Question(name, text_of(line, "question", FORM), "", data)
        return dataclasses.replace(read_plain_question(name, line), data=data)

    def _read(self, split: Literal["train", "test"]) -> tuple[Question, ...]:
        read = functools.partial(self._read_new, split=split, seen=set())
        return tuple(read_records((self.train if split == "train" else self.test).expanduser(), read))

    def _read_new(self, index: int, line: Mapping[str, Any], split: str, seen: set[str]) -> Question:
        """A question whose id is none of the seen ones, to which it is added."""
        question = self.read_question(id_of(line, f"{self.name}/{split}/{index}"), line)
        if question.answer == "" and self.checker in NEED_AN_ANSWER:
            raise InvalidRecordError(f'lacks "answer", with which the checker {self.checker} compares')
        if question.id in seen:
            raise InvalidRecordError(f"has the id {question.id!r} of an earlier one; make ids unique")
        seen.add(question.id)
        return question


def _read_shot(_: int, line: Mapping[str, Any]) -> Shot:
    form = '{"question", "completion"}'
    return Shot(text_of(line, "question", form), text_of(line, "completion", form))
