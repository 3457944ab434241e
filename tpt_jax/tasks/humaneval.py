"""HumanEval: 164 Python functions to complete from their signature and docstring (arXiv 2107.03374)."""

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT, InvalidRecordError, UserError
from tpt_jax.io.files import parse_line
from tpt_jax.records import Generation, Question, Shot
from tpt_jax.tasks.mbpp import INSTRUCTION
from tpt_jax.tasks.task import Task, TaskConfig

NUM_QUESTIONS = 164  # as published
SOURCE = "github.com/openai/human-eval (data)"
REQUEST = "Complete this Python program:"

# Written for this project in the style of the data set.
SHOTS = (
    Shot(
        f'{REQUEST}\n```python\ndef longest_gap(days: list[int]) -> int:\n    """ The largest difference between '
        'neighbours of an ascending list; 0 for fewer than two.\n    >>> longest_gap([1, 4, 5])\n    3\n    """\n```',
        "Neighbours come from zipping the list with itself from the second element on; fewer than two elements give no "
        "pairs, so max needs a default.\n```python\ndef longest_gap(days: list[int]) -> int:\n"
        "    return max((later - day for day, later in zip(days, days[1:])), default=0)\n```",
    ),
    Shot(
        f'{REQUEST}\n```python\ndef initials(name: str) -> str:\n    """ The first letters of a name\'s words, as '
        "capitals.\n    >>> initials('ada king lovelace')\n    'AKL'\n    \"\"\"\n```",
        "Splitting at spaces gives the words, none of them empty. I take the first letter of each, joined and in "
        "capitals.\n```python\ndef initials(name: str) -> str:\n"
        '    return "".join(word[0] for word in name.split()).upper()\n```',
    ),
)


@dataclass(frozen=True, config=STRICT)
class HumanEvalConfig(TaskConfig):
    """Where to read HumanEval from, and how to split it: as published it is a test set only.

    Attributes:
      folder: holds HumanEval.jsonl.gz, as OpenAI publishes it, or HumanEval.jsonl.
      train_share: share of the questions to train on, those whose task_ids have the smallest SHA-256; the rest are the
        test split. Published results are for all 164 questions and do not compare with those on this split: run
        `tpt eval` on both models instead.
    """

    name: Literal["humaneval"]
    folder: Path
    train_share: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.5

    checker_name: ClassVar[str] = "code"
    seconds_per_trace: ClassVar[float] = 10.0
    generation: ClassVar[Generation] = Generation(max_prompt_tokens=768, max_new_tokens=768)

    def load(self) -> Task:
        """Reads the questions and splits them.

        Raises:
          UserError: the file is missing or invalid.
        """
        questions = sorted(_read(self.folder.expanduser()), key=lambda question: _sha256(question.id))
        num_train = round(self.train_share * len(questions))
        train, test = tuple(questions[:num_train]), tuple(questions[num_train:])
        return self.task(train, test, instruction=INSTRUCTION, shots=SHOTS)

    def num_questions(self) -> tuple[int, int]:
        num_train = round(self.train_share * NUM_QUESTIONS)
        return num_train, NUM_QUESTIONS - num_train

    @staticmethod
    def default_id(index: int, line: Mapping[str, Any]) -> str:
        return str(line.get("task_id", index))

    @staticmethod
    def read_question(name: str, line: Mapping[str, Any]) -> Question:
        """Reads {"prompt", "entry_point", "test"}, where "test" defines check(candidate)."""
        missing = [key for key in ("prompt", "entry_point", "test") if not isinstance(line.get(key), str)]
        if missing:
            raise InvalidRecordError(f'lacks "{missing[0]}"; write it as in HumanEval.jsonl')
        prompt, entry_point = line["prompt"], line["entry_point"]
        data = {
            "prompt": prompt,
            "entry_point": entry_point,
            "setup": line["test"],
            "tests": [f"check({entry_point})"],
        }
        return Question(name, f"{REQUEST}\n```python\n{prompt.strip()}\n```", "", data)


def _sha256(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _read(folder: Path) -> list[Question]:
    path = next((path for name in ("HumanEval.jsonl.gz", "HumanEval.jsonl") if (path := folder / name).is_file()), None)
    if path is None:
        raise UserError(
            f"{folder}/HumanEval.jsonl.gz: no such file; get it from {SOURCE} and set task.folder to its folder"
        )
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unpacked ({error}); download it again from {SOURCE}") from error
    questions = []
    for index, line in enumerate(filter(bytes.strip, lines)):
        try:
            item = parse_line(line)
            questions.append(HumanEvalConfig.read_question(HumanEvalConfig.default_id(index, item), item))
        except InvalidRecordError as error:
            raise UserError(f"{path}: question {index + 1}: {error}") from error
    return questions
