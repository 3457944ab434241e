"""MATH: competition problems in seven subjects, with worked solutions (Hendrycks et al., arXiv 2103.03874)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic.dataclasses import dataclass

from tpt_jax.checks.answers.boxes import boxed_answer, find_boxes
from tpt_jax.errors import STRICT, InvalidRecordError, UserError
from tpt_jax.io.record_files import read_folder, read_items, read_records
from tpt_jax.records import Generation, Question, Shot
from tpt_jax.tasks.download import check_one_source, read_dataset
from tpt_jax.tasks.task import Task, TaskConfig, parse_answer

NUM_TRAIN, NUM_TEST = 7_500, 5_000  # as published
INSTRUCTION = r"Solve the problem step by step. Put the final answer into a box at the end, as in: \boxed{42}"
FORM = 'write {"problem", "solution"} with the final answer in the solution\'s last \\boxed{}, or {"problem", "answer"}'

Subject = Literal[
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
]
Split = Literal["train", "test"]

# Written for this project in the style of the data set: steps in words and formulas, one box at the end.
SHOTS = (
    Shot(
        r"For what positive value of $k$ does $x^2 + kx + 49 = 0$ have exactly one real solution?",
        r"A quadratic has exactly one real solution where its discriminant is zero: $k^2 - 4 \cdot 49 = 0$." + "\n"
        r"So $k^2 = 196$, and $k = 14$ or $k = -14$. The positive one is asked for." + "\n"
        r"The final answer is $\boxed{14}$.",
    ),
    Shot(
        r"Two fair six-sided dice are rolled. What is the probability that the larger of the two numbers is 3? If both "
        r"are equal, that number counts as the larger.",
        r"There are $6 \cdot 6 = 36$ equally likely rolls." + "\n"
        r"Both numbers are at most 3 in $3 \cdot 3 = 9$ of them, and both at most 2 in $2 \cdot 2 = 4$." + "\n"
        r"The larger is 3 in the $9 - 4 = 5$ others." + "\n"
        r"The final answer is $\boxed{\frac{5}{36}}$.",
    ),
    Shot(
        r"A rectangle has sides of length $6$ and $2\sqrt{7}$. How long is its diagonal?",
        r"By the theorem of Pythagoras the diagonal $d$ fulfils $d^2 = 6^2 + (2\sqrt{7})^2 = 36 + 28 = 64$." + "\n"
        r"So $d = 8$." + "\n"
        r"The final answer is $\boxed{8}$.",
    ),
    Shot(
        r"Find all real $x$ with $\frac{x - 4}{x + 1} \le 0$. Write the answer as an interval.",
        r"The numerator is zero at $x = 4$ and the denominator at $x = -1$, which is not allowed." + "\n"
        r"Between the two the numerator is negative and the denominator positive, so the fraction is negative; "
        r"outside it is positive." + "\n"
        r"At $x = 4$ the fraction is 0, so 4 belongs to the solutions." + "\n"
        r"The final answer is $\boxed{(-1, 4]}$.",
    ),
)


@dataclass(frozen=True, config=STRICT)
class MathConfig(TaskConfig):
    """Where to read MATH from, and which problems to use.

    Attributes:
      folder: the unpacked data set: train/algebra/1.json and so on (github.com/hendrycks/math), or train.jsonl and
        test.jsonl of {"problem", "solution"} or {"problem", "answer"}; null: tensorflow-datasets downloads it once.
      manual_dir: the unpacked data set for tensorflow-datasets to convert, instead of downloading.
      subjects: use only these; null for all.
      levels: use only these, from 1 (easiest) to 5 (hardest); null for all.
    """

    name: Literal["math"]
    folder: Path | None = None
    manual_dir: Path | None = None
    subjects: tuple[Subject, ...] | None = None
    levels: tuple[Annotated[int, pydantic.Field(ge=1, le=5)], ...] | None = None

    checker_name: ClassVar[str] = "math"
    generation: ClassVar[Generation] = Generation(max_prompt_tokens=512, max_new_tokens=1024)

    def load(self) -> Task:
        """Reads both splits.

        Raises:
          UserError: they cannot be loaded, or more than 1% of the problems are invalid.
        """
        check_one_source(self.folder, self.manual_dir)
        return self.task(self._read("train"), self._read("test"), instruction=INSTRUCTION, shots=SHOTS)

    def num_questions(self) -> tuple[int, int]:
        """The published numbers, or those selected from `folder` if it is there."""
        if self.folder is None or not self.folder.expanduser().is_dir():
            return NUM_TRAIN, NUM_TEST
        return len(self._read("train")), len(self._read("test"))

    def _read(self, split: Split) -> tuple[Question, ...]:
        def read(path: str, line: Mapping[str, Any]) -> Question | None:
            name = f"{self.name}/{split}/{path.removesuffix('.json')}"
            return self.read_question(name, line) if self._is_selected(line) else None

        if self.folder is None:
            lines = read_dataset("math", split, self.manual_dir)
            source = f"tensorflow-datasets tpt_math, {split}"
            questions = read_items(source, lines, lambda _, line: read(line["path"], line))
        else:
            folder = self.folder.expanduser()
            path = folder / f"{split}.jsonl"
            if (folder / split).is_dir():
                questions = read_folder(folder / split, "*/*.json", read)
            elif path.is_file():
                questions = read_records(path, lambda index, line: read(str(index), line))
            else:
                raise UserError(
                    f"{folder}: holds neither {split}/ nor {split}.jsonl; get MATH (github.com/hendrycks/math) and set "
                    "task.folder to the unpacked folder"
                )
        return tuple(question for question in questions if question is not None)

    def _is_selected(self, line: Mapping[str, Any]) -> bool:
        subject = str(line.get("type", line.get("subject", ""))).lower().replace("&", "and").replace(" ", "_")
        level = re.search(r"[1-5]", str(line.get("level", "")))
        return (self.subjects is None or subject in self.subjects) and (
            self.levels is None or (level is not None and int(level.group()) in self.levels)
        )

    @staticmethod
    def read_question(name: str, line: Mapping[str, Any]) -> Question:
        """Reads {"problem", "solution"} as published, or {"problem" or "question", "answer"}."""
        problem, answer = line.get("problem", line.get("question")), parse_answer(line)
        if not isinstance(problem, str) or not problem.strip():
            raise InvalidRecordError(f'lacks "problem"; {FORM}')
        if answer:
            return Question(name, problem, answer)
        solution = str(line.get("solution", ""))
        boxes = find_boxes(solution)
        if not boxes:
            raise InvalidRecordError(f"its solution has no \\boxed{{}} answer; {FORM}")
        return Question(name, problem, boxed_answer(solution, boxes))
