"""Multiple-choice questions from files, in a plain format or as MMLU and ARC are published."""

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT, InvalidRecordError
from tpt_jax.io.record_files import parse_id, read_records
from tpt_jax.records import Generation, Question, Shot
from tpt_jax.tasks.task import Task, TaskConfig

INSTRUCTION = "Think step by step. End with a line that holds only the letter of the right choice, as in: #### C"
FORM = 'write {"id", "question", "choices": [...], "answer": the letter, the index from 0 or the text of a choice}'


def with_choices(question: str, choices: Sequence[str]) -> str:
    """The question as asked: its text, then a line "A) ..." for each choice."""
    lines = (f"{letter}) {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False))
    return "\n".join((question, *lines))


# Written for this project: they show that choices are weighed and that the last line is a letter.
SHOTS = (
    Shot(
        with_choices(
            "A train leaves at 9:40 and arrives at 13:05. How long does it travel?",
            ("2 h 25 min", "3 h 25 min", "3 h 35 min", "4 h 25 min"),
        ),
        "From 9:40 to 12:40 are 3 hours.\nFrom 12:40 to 13:05 are 25 minutes more.\nThat is 3 h 25 min.\n#### B",
    ),
    Shot(
        with_choices(
            "A glass of ice water stands in a warm, humid kitchen. Why do drops form on its outside?",
            (
                "Water seeps through the glass",
                "The ice melts",
                "Vapour in the air condenses on the cold glass",
                "The glass is not clean",
            ),
        ),
        "Glass lets no water through, and melting ice stays inside.\nHumid air that touches a cold surface cools, and "
        "cool air holds less vapour: the rest becomes drops on the glass.\n#### C",
    ),
    Shot(
        with_choices("Which of these numbers is divisible by 6?", ("1,026", "1,118", "1,215", "1,334")),
        "A number divisible by 6 is even, and its digits add up to a multiple of 3.\n1,026 is even, and "
        "1 + 0 + 2 + 6 = 9 is a multiple of 3.\n#### A",
    ),
)


@dataclass(frozen=True, config=STRICT)
class MultipleChoiceConfig(TaskConfig):
    """The files with the questions.

    Attributes:
      train, test: JSON lines of {"id", "question", "choices", "answer"}; the answer is the right choice's letter, its
        index from 0 (as in MMLU), or its text. ARC's two published formats are read too.
    """

    name: Literal["multiple_choice"]
    train: Path
    test: Path

    checker_name: ClassVar[str] = "choice"
    generation: ClassVar[Generation] = Generation(max_prompt_tokens=512, max_new_tokens=512)

    def load(self) -> Task:
        """Reads both files.

        Raises:
          UserError: one is missing, or more than 1% of its questions are invalid.
        """
        train, test = self._read("train"), self._read("test")
        return self.task(train, test, instruction=INSTRUCTION, shots=SHOTS)

    def num_questions(self) -> tuple[int, int]:
        return len(self._read("train")), len(self._read("test"))

    def _read(self, split: Literal["train", "test"]) -> tuple[Question, ...]:
        def read(index: int, line: Mapping[str, Any]) -> Question:
            return self.read_question(parse_id(line, f"{self.name}/{split}/{index}"), line)

        return tuple(read_records((self.train if split == "train" else self.test).expanduser(), read))

    @staticmethod
    def read_question(name: str, line: Mapping[str, Any]) -> Question:
        """Reads {"question", "choices", "answer"}, or a question as ARC publishes it."""
        line = _convert_arc(line)
        choices = line.get("choices")
        if not isinstance(line.get("question"), str) or not line["question"].strip():
            raise InvalidRecordError(f'lacks "question"; {FORM}')
        if not isinstance(choices, list) or not 2 <= len(choices) <= len(string.ascii_uppercase):
            raise InvalidRecordError(f'"choices" must be a list of 2 to {len(string.ascii_uppercase)}; {FORM}')
        texts = [str(choice).strip() for choice in choices]
        if not all(texts) or len(set(texts)) < len(texts):
            raise InvalidRecordError('"choices" holds an empty or a repeated text; write each choice once')
        answer = _parse_letter(line.get("answer"), texts)
        return Question(name, with_choices(line["question"].strip(), texts), answer, {"choices": texts})


def _convert_arc(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """A question of ARC (arXiv 1803.05457) as {"question", "choices", "answer"}; any other line unchanged.

    ARC has two published formats, {"question": {"stem", "choices": [{"text", "label"}, ...]}, "answerKey"} and
    {"question", "choices": {"text": [...], "label": [...]}, "answerKey"}; labels are letters, or numbers from 1.
    """
    question = line.get("question")
    if isinstance(question, Mapping):
        line = {**line, "question": question.get("stem"), "choices": question.get("choices")}
    choices = line.get("choices")
    if isinstance(choices, list) and choices and all(isinstance(choice, Mapping) for choice in choices):
        choices = {key: [choice.get(key) for choice in choices] for key in ("text", "label")}
    if not isinstance(choices, Mapping):
        return line
    texts, labels, key = choices.get("text"), choices.get("label"), line.get("answerKey")
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
        raise InvalidRecordError(f'"choices" has different numbers of texts and labels; {FORM}')
    if key not in labels:
        raise InvalidRecordError(f'"answerKey" ({key!r:.80}) is not a label of its choices; {FORM}')
    return {**line, "choices": texts, "answer": str(texts[labels.index(key)]).strip()}


def _parse_letter(answer: Any, choices: Sequence[str]) -> str:
    """The letter of the right choice, from its letter, index or text; a letter that is also a text is the letter."""
    letters = string.ascii_uppercase[: len(choices)]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return letters[answer]
    text = answer.strip() if isinstance(answer, str) else ""
    if len(text) == 1 and text in letters:
        return text
    if text in choices:
        return letters[choices.index(text)]
    if len(text) == 1 and text.upper() in letters:
        return text.upper()
    raise InvalidRecordError(f'"answer" ({answer!r:.80}) is not one of the {len(choices)} choices; {FORM}')
