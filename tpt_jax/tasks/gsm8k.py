"""GSM8K grade-school word problems (arXiv 2110.14168)."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT, UserError
from tpt_jax.io.record_files import read_items, read_records
from tpt_jax.records import Generation, Question, Shot
from tpt_jax.tasks.download import check_one_source, read_dataset
from tpt_jax.tasks.task import Task, TaskConfig

NUM_TRAIN, NUM_TEST = 7_473, 1_319  # as published
INSTRUCTION = "Solve the problem step by step. End with a line that holds only the final number, as in: #### 42"

# Written for this project in the style of the data set: they show the steps and the format of the last line.
SHOTS = (
    Shot(
        "A ferry makes 6 crossings a day and carries 45 passengers on each. On Sundays it makes 2 crossings fewer. How "
        "many passengers can it carry in a week?",
        "On each of the 6 other days it carries 6 * 45 = 270 passengers, so 6 * 270 = 1620 in all.\n"
        "On Sunday it makes 6 - 2 = 4 crossings and carries 4 * 45 = 180 passengers.\n"
        "In a week that is 1620 + 180 = 1800 passengers.\n#### 1800",
    ),
    Shot(
        "Ines buys 3 notebooks at $2.50 each and a pen for $1.75. She pays with a $10 bill. How much change does she "
        "get, in dollars?",
        "The notebooks cost 3 * 2.50 = 7.50 dollars.\nWith the pen that is 7.50 + 1.75 = 9.25 dollars.\n"
        "Her change is 10 - 9.25 = 0.75 dollars.\n#### 0.75",
    ),
    Shot(
        "A tank holds 240 litres and is one third full. Water runs in at 8 litres a minute. After how many minutes is "
        "the tank full?",
        "The tank holds 240 / 3 = 80 litres now.\nSo 240 - 80 = 160 litres are missing.\n"
        "At 8 litres a minute that takes 160 / 8 = 20 minutes.\n#### 20",
    ),
    Shot(
        "Omar is twice as old as his sister. In 5 years their ages will add up to 40. How old is Omar now?",
        "In 5 years the two will be 2 * 5 = 10 years older together, so now their ages add up to 40 - 10 = 30.\n"
        "Omar has two of three equal parts of that: 30 / 3 = 10, and 2 * 10 = 20.\n#### 20",
    ),
)


@dataclass(frozen=True, config=STRICT)
class Gsm8kConfig(TaskConfig):
    """Where to read GSM8K from.

    Attributes:
      folder: reads train.jsonl and test.jsonl, as OpenAI publishes them (github.com/openai/grade-school-math), from
        this folder; null: tensorflow-datasets downloads them once.
      manual_dir: such a folder for tensorflow-datasets to convert, instead of downloading.
    """

    name: Literal["gsm8k"]
    folder: Path | None = None
    manual_dir: Path | None = None

    checker_name: ClassVar[str] = "numeric"
    generation: ClassVar[Generation] = Generation(max_prompt_tokens=320, max_new_tokens=512)

    def load(self) -> Task:
        """Reads both splits.

        Raises:
          UserError: they cannot be loaded, or more than 1% of the questions lack a final answer.
        """
        check_one_source(self.folder, self.manual_dir)

        def questions(split: str) -> tuple[Question, ...]:
            def read(index: int, line: dict[str, Any]) -> Question:
                return self.read_question(f"{self.name}/{split}/{index}", line)

            if self.folder is None:
                lines = read_dataset("gsm8k", split, self.manual_dir)
                return tuple(read_items(f"tensorflow-datasets tpt_gsm8k, {split}", lines, read))
            path = self.folder.expanduser() / f"{split}.jsonl"
            if not path.is_file():
                raise UserError(
                    f"{path}: no such file; get train.jsonl and test.jsonl from github.com/openai/grade-school-math "
                    "(grade_school_math/data) and set task.folder to their folder"
                )
            return tuple(read_records(path, read))

        return self.task(questions("train"), questions("test"), instruction=INSTRUCTION, shots=SHOTS)

    def num_questions(self) -> tuple[int, int]:
        return NUM_TRAIN, NUM_TEST
