"""The data sets of the reasoning_gym library (arXiv 2505.24760): generated questions, scored by the library itself.

Some data sets are refused, each for a reason that REFUSED gives.
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pydantic
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from tpt_jax.checks.refused_data_sets import REFUSED
from tpt_jax.errors import STRICT, InvalidRecordError, UserError, suggestion
from tpt_jax.records import Generation, Question, Shot
from tpt_jax.tasks.decontamination import normalised
from tpt_jax.tasks.task import Task, TaskConfig
from tpt_jax.terminal import say

Split = Literal["train", "test"]

INSTRUCTION = (
    "Think step by step. Then write the final answer, and nothing else, between <answer> and </answer>, as in: "
    "<answer>42</answer>"
)
SHOTS = (
    Shot(
        "What is left of 90 when 17 is taken away twice?",
        "17 taken away twice is 2 * 17 = 34.\n90 - 34 = 56.\n<answer>56</answer>",
    ),
    Shot(
        "Turn this grid by a quarter to the right:\n1 2\n3 4",
        "The left column from below, 3 1, becomes the first row; the right one from below, 4 2, the second.\n"
        "<answer>3 1\n4 2</answer>",
    ),
)

# The library draws question i of a seed from seed + i: the splits' seeds are so far apart that they never meet.
FIRST_SEED: Mapping[Split, int] = {"train": 0, "test": 2**31}
DRAWS_PER_QUESTION = 20


@dataclass(frozen=True, config=STRICT)
class ReasoningGymConfig(TaskConfig):
    """Which questions are drawn.

    Attributes:
      dataset: the library's name for it.
      options: of the data set, by the names that its config class in the library has.
      num_train, num_test: questions in the two splits, no two alike.
    """

    name: Literal["reasoning_gym"]
    dataset: str
    options: dict[str, Any] = pydantic.Field(default_factory=dict)
    num_train: PositiveInt = 2_000
    num_test: PositiveInt = 200

    checker_name: ClassVar[str] = "reasoning_gym"
    generation: ClassVar[Generation] = Generation(max_prompt_tokens=1_024, max_new_tokens=1_024)

    def load(self) -> Task:
        """Draws both splits, the same questions each time.

        Raises:
          UserError: no such data set or options of one, or too few different questions.
        """
        _check_options(self.dataset, self.options)
        say(f"drawing {self.num_train:,} and {self.num_test:,} questions of reasoning_gym's {self.dataset}")
        seen: set[str] = set()
        test = self._draw("test", self.num_test, seen)
        train = self._draw("train", self.num_train, seen)
        return self.task(train, test, instruction=INSTRUCTION, shots=SHOTS)

    def num_questions(self) -> tuple[int, int]:
        return self.num_train, self.num_test

    @staticmethod
    def read_question(name: str, line: Mapping[str, Any]) -> Question:
        """A question from an entry as the library makes it: {"question", "answer", "metadata"}.

        Its data is what the checker needs: {"dataset", "options", "metadata"}.

        Raises:
          InvalidRecordError: it is none, or of a data set that is refused.
        """
        metadata = line.get("metadata")
        dataset = metadata.get("source_dataset") if isinstance(metadata, dict) else None
        if not isinstance(dataset, str) or not isinstance(line.get("question"), str):
            raise InvalidRecordError(
                'lacks "question" or "metadata" with "source_dataset"; write the entries that reasoning_gym makes'
            )
        if dataset in REFUSED:
            raise InvalidRecordError(f"of reasoning_gym's {dataset}, which is not used: {REFUSED[dataset]}")
        answer = line.get("answer")  # None where many are right
        data = {"dataset": dataset, "options": line.get("options", {}), "metadata": metadata}
        plain = json.loads(json.dumps(data, default=str))  # as it would come back from a file: tuples are lists
        return Question(name, line["question"], "" if answer is None else str(answer), plain)

    def _draw(self, split: Split, count: int, seen: set[str]) -> tuple[Question, ...]:
        """Questions whose texts are not among the seen ones, to which they are added."""
        questions: list[Question] = []
        for part in range(DRAWS_PER_QUESTION):
            for entry in _entries(self.dataset, self.options, FIRST_SEED[split] + part * count, count):
                text = normalised(entry["question"])
                # An empty reference: nothing at all would be right, and with some data sets any text.
                if text not in seen and entry["answer"] != "":
                    seen.add(text)
                    name = f"{self.name}/{self.dataset}/{split}/{len(questions)}"
                    questions.append(self.read_question(name, {**entry, "options": self.options}))
                if len(questions) == count:
                    return tuple(questions)
        raise UserError(
            f"task.num_{split} ({count}): only {len(questions)} different questions in {DRAWS_PER_QUESTION * count} of "
            f"reasoning_gym's {self.dataset}; ask for fewer, or set task.options so that there are more"
        )


def _entries(dataset: str, options: Mapping[str, Any], seed: int, size: int) -> list[dict[str, Any]]:
    """The library's own, as dictionaries with "question", "answer" and "metadata".

    Raises:
      UserError: it cannot make them with these options.
    """
    import reasoning_gym  # slow to import: only when questions are drawn

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some data sets print while they work
            made = reasoning_gym.create_dataset(dataset, seed=seed, size=size, **options)
            return [made[index] for index in range(size)]
    except Exception as error:  # of many kinds: the library checks options with assertions, or not at all
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"task.options ({json.dumps(options, default=str)}): reasoning_gym's {dataset} cannot work with them "
            f"({reason}); its options are {', '.join(_option_names(dataset))}"
        ) from error


def _check_options(dataset: str, options: Mapping[str, Any]) -> None:
    """Raises UserError where the library has no such data set, or the data set has no such option."""
    from reasoning_gym.factory import DATASETS

    if dataset in REFUSED:
        raise UserError(f"task.dataset ({dataset!r}): not used: {REFUSED[dataset]}; name another one")
    if dataset not in DATASETS:
        hint = suggestion(dataset, sorted(DATASETS.keys() - REFUSED.keys()), most=3)
        raise UserError(f"task.dataset ({dataset!r}): reasoning_gym has none of that name; {hint}")
    names = _option_names(dataset)
    for option in options:
        if option in ("seed", "size"):
            raise UserError(f"task.options.{option}: not for you to set; set task.num_train and task.num_test")
        if option not in names:
            hint = suggestion(option, names)
            raise UserError(f"task.options.{option}: unknown to reasoning_gym's {dataset}; {hint}")


def _option_names(dataset: str) -> list[str]:
    from reasoning_gym.factory import DATASETS

    return [field.name for field in dataclasses.fields(DATASETS[dataset][1]) if field.name not in ("seed", "size")]
