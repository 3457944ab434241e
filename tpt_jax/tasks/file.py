"""A user-defined task: questions, answers and worked examples from files, judged by any checker."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic.dataclasses import dataclass

from tpt_jax.checks.registry import get_checker
from tpt_jax.errors import STRICT, InvalidRecordError
from tpt_jax.io.hub_datasets import HubSplit, open_split
from tpt_jax.io.paths import to_path
from tpt_jax.io.record_files import parse_id, read_all, read_records
from tpt_jax.records import Question, Shot
from tpt_jax.tasks.task import Task, TaskConfig, parse_answer, parse_text, read_plain_question

FORM = '{"id", "question", "answer"}'
Source = Annotated[str | Path, pydantic.AfterValidator(os.fspath)]
NEED_AN_ANSWER = ("numeric", "math", "choice")  # checkers that compare with the answer alone


@dataclass(frozen=True, config=STRICT)
class FileConfig(TaskConfig):
    """The files with the questions, and their checker.

    A question is {"id", "question", "answer"}; any other keys are passed to the checker as the question's data. Without
    an id, the eighth training question is file/train/7. The answer may be missing if the checker does not use it.

    Attributes:
      train, test: files of questions: JSON lines, a JSON list, or by the suffix a YAML list (.yaml, .yml), CSV (.csv,
        .tsv) or Parquet (.parquet); all but Parquet also gzipped (.gz). Or splits of data sets on the Hugging Face Hub:
        hf://OWNER/NAME/SPLIT, with a subset hf://openai/gsm8k:main/train.
      columns: what the files or data sets call a question's keys, where that differs: {question: problem}.
      versions: the commits of data sets on the Hub, by OWNER/NAME; those missing are found when a run starts, and
        recorded here.
      checker: numeric, math, choice or another checker by name, or your own function as "module:function", in a file
        in the folder where the command runs.
      instruction: follows the question in every prompt.
      shots: a file of worked examples, {"question", "completion"}, in one of the same formats.
    """

    name: Literal["file"]
    train: Source
    test: Source
    checker: str = "numeric"
    instruction: str = ""
    shots: Path | None = None
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    checker_name: ClassVar[str] = "numeric"

    def load(self) -> Task:
        """Reads the files; a few broken records are reported and left out.

        Raises:
          UserError: a file or data set is missing, more than 1% of its records are broken, or the checker is unknown.
          MachineError: the Hugging Face Hub cannot be reached.
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
        """Counts the questions in the files."""
        return len(self._read("train")), len(self._read("test"))

    def hub_splits(self) -> list[HubSplit]:
        """The splits that are on the Hugging Face Hub.

        Raises:
          UserError: a name starts with hf:// and is not one.
        """
        splits = (HubSplit.parse(os.fspath(source)) for source in (self.train, self.test))
        return [split for split in splits if split is not None]

    @staticmethod
    def read_question(name: str, line: Mapping[str, Any]) -> Question:
        """Reads {"question", "answer"} and any other keys, as data for the checker.

        Raises:
          InvalidRecordError: the question is missing, or there is neither an answer nor data.
        """
        data = {key: value for key, value in line.items() if key not in ("id", "question", "answer")}
        if data and not parse_answer(line):
            return Question(name, parse_text(line, "question", FORM), "", data)
        return dataclasses.replace(read_plain_question(name, line), data=data)

    def _read(self, split: Literal["train", "test"]) -> tuple[Question, ...]:
        read = functools.partial(self._read_unique, split=split, seen_ids=set())
        source = os.fspath(self.train if split == "train" else self.test)
        hub_split = HubSplit.parse(source)
        if hub_split is None:
            return tuple(read_records(to_path(source), read))
        return tuple(read_all(open_split(hub_split, self.versions.get(hub_split.name.repository)), read))

    def _read_unique(self, index: int, line: Mapping[str, Any], split: str, seen_ids: set[str]) -> Question:
        """Reads a question and adds its id to the seen ones; refuses a repeated id."""
        line = self._renamed(line)
        if "question" not in line:
            raise InvalidRecordError(
                f'lacks "question"; it has {", ".join(line) or "no keys"}: name them in task.columns, as '
                "{question: problem, answer: solution}"
            )
        question = self.read_question(parse_id(line, f"{self.name}/{split}/{index}"), line)
        if question.answer == "" and self.checker in NEED_AN_ANSWER:
            raise InvalidRecordError(f'lacks "answer", which the checker {self.checker} needs')
        if question.id in seen_ids:
            raise InvalidRecordError(f"repeats the id {question.id!r}; make ids unique")
        seen_ids.add(question.id)
        return question

    def _renamed(self, line: Mapping[str, Any]) -> Mapping[str, Any]:
        """A record with a question's own keys."""
        if missing := [column for column in self.columns.values() if column not in line]:
            raise InvalidRecordError(f"lacks {missing[0]!r}, which task.columns names; it has {', '.join(line)}")
        others = {key: value for key, value in line.items() if key not in self.columns.values()}
        return others | {key: line[column] for key, column in self.columns.items()}


def _read_shot(_: int, line: Mapping[str, Any]) -> Shot:
    form = '{"question", "completion"}'
    return Shot(parse_text(line, "question", form), parse_text(line, "completion", form))
