"""A task of the user's own: questions, answers and worked examples from files, judged by a checker of their choice."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT, UnusableError
from tpt_jax.lines import read_records
from tpt_jax.prune.checkers import get_checker
from tpt_jax.records import Question
from tpt_jax.tasks.task import Shot, Task, TaskConfig, read_plain_question

NEED_AN_ANSWER = ("numeric", "math", "choice")  # checkers that compare with nothing else


@dataclass(frozen=True, config=STRICT)
class FileConfig(TaskConfig):
    """Where the questions are, and who judges.

    A question is {"id", "question", "answer"}; what else stands there is given to the checker as the question's data.
    Without an id, its number in the file (from 0) is one; a checker that does not look at the answer needs none.

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
        return Task(self.name, self.instruction, self.checker, self._read(self.train), self._read(self.test), shots)

    def num_questions(self) -> tuple[int, int]:
        """Those in the files: they have to be there."""
        return len(self._read(self.train)), len(self._read(self.test))

    @staticmethod
    def read_question(name: str, line: Mapping[str, Any]) -> Question:
        """A question from an object with whatever its checker needs.

        Raises:
          UnusableError: there is no question, or nothing that tells right from wrong.
        """
        question, answer = line.get("question"), line.get("answer")
        data = {key: value for key, value in line.items() if key not in ("id", "question", "answer")}
        if not isinstance(question, str) or not question.strip():
            raise UnusableError('lacks a text under "question"; write {"id", "question", "answer"}')
        if answer in (None, "") and data:
            return Question(name, question, "", data)
        if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
            raise UnusableError(f"has an answer that is a {type(answer).__name__}; write a number or a quoted text")
        plain = read_plain_question(name, line)
        return Question(name, question, plain.answer, data)

    def _read(self, path: Path) -> tuple[Question, ...]:
        read = functools.partial(self._read_new, seen=set())
        return tuple(read_records(path.expanduser(), read))

    def _read_new(self, index: int, line: Mapping[str, Any], seen: set[str]) -> Question:
        """A question whose id is none of the seen ones, to which it is added."""
        given = line.get("id")
        question = self.read_question(str(index if given is None else given), line)
        if question.answer == "" and self.checker in NEED_AN_ANSWER:
            raise UnusableError(f'lacks "answer", with which the checker {self.checker} compares')
        if question.id in seen:
            raise UnusableError(f"has the id {question.id!r} of an earlier one; make ids unique")
        seen.add(question.id)
        return question


def _read_shot(index: int, line: Mapping[str, Any]) -> Shot:
    for key in ("question", "completion"):
        if not isinstance(line.get(key), str) or not line[key].strip():
            raise UnusableError(f'lacks a text under "{key}"; write {{"question", "completion"}}')
    return Shot(line["question"], line["completion"])
