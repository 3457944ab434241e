"""Data sets of the reasoning_gym library (arXiv 2505.24760): generated questions, scored by the library itself.

Some data sets are refused, for the reasons in REFUSED.
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

# The library draws question i of a seed from seed + i; the splits' seeds are too far apart to meet.
FIRST_SEED: Mapping[Split, int] = {"train": 0, "test": 2**31}
DRAWS_PER_QUESTION = 20


@dataclass(frozen=True, config=STRICT)
class ReasoningGymConfig(TaskConfig):
    """Which questions to draw.

    Attributes:
      dataset: the data set's name in the library.
      options: the data set's options, named as in its config class in the library.
      num_train, num_test: questions per split, all different.
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
          UserError: the data set or an option is unknown, or there are too few different questions.
        """
        _check_options(self.dataset, self.options)
        say(f"drawing {self.num_train:,} training and {self.num_test:,} test questions from {self.dataset}")
        seen_texts: set[str] = set()
        test = self._draw("test", self.num_test, seen_texts)
        train = self._draw("train", self.num_train, seen_texts)
        return self.task(train, test, instruction=INSTRUCTION, shots=SHOTS)

    def num_questions(self) -> tuple[int, int]:
        return self.num_train, self.num_test

    @staticmethod
    def read_question(name: str, line: Mapping[str, Any]) -> Question:
        """Reads an entry as the library makes it: {"question", "answer", "metadata"}.

        The question's data is what the checker needs: {"dataset", "options", "metadata"}.

        Raises:
          InvalidRecordError: a field is missing, or the entry's data set is refused.
        """
        metadata = line.get("metadata")
        dataset = metadata.get("source_dataset") if isinstance(metadata, dict) else None
        if not isinstance(dataset, str) or not isinstance(line.get("question"), str):
            raise InvalidRecordError(
                'lacks "question" or "metadata" with "source_dataset"; write entries as reasoning_gym makes them'
            )
        if dataset in REFUSED:
            raise InvalidRecordError(f"of reasoning_gym's {dataset}, which is not used: {REFUSED[dataset]}")
        answer = line.get("answer")  # None if many answers are right
        data = {"dataset": dataset, "options": line.get("options", {}), "metadata": metadata}
        plain = json.loads(json.dumps(data, default=str))  # as read back from a file: lists for tuples
        return Question(name, line["question"], "" if answer is None else str(answer), plain)

    def _draw(self, split: Split, count: int, seen_texts: set[str]) -> tuple[Question, ...]:
        """Draws questions with new texts, which are added to the seen ones."""
        questions: list[Question] = []
        for batch in range(DRAWS_PER_QUESTION):
            for entry in _draw_entries(self.dataset, self.options, FIRST_SEED[split] + batch * count, count):
                text = normalised(entry["question"])
                # With an empty reference answer an empty completion would be right, and for some data sets any text.
                if text not in seen_texts and entry["answer"] != "":
                    seen_texts.add(text)
                    name = f"{self.name}/{self.dataset}/{split}/{len(questions)}"
                    questions.append(self.read_question(name, {**entry, "options": self.options}))
                if len(questions) == count:
                    return tuple(questions)
        raise UserError(
            f"task.num_{split} ({count}): only {len(questions)} different questions in {DRAWS_PER_QUESTION * count} of "
            f"reasoning_gym's {self.dataset}; ask for fewer, or set task.options to allow for more"
        )


def _draw_entries(dataset: str, options: Mapping[str, Any], seed: int, size: int) -> list[dict[str, Any]]:
    """The library's entries, {"question", "answer", "metadata"}.

    Raises:
      UserError: the library fails with these options.
    """
    import reasoning_gym  # slow to import, so only when questions are drawn

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some data sets print
            entries = reasoning_gym.create_dataset(dataset, seed=seed, size=size, **options)
            return [entries[index] for index in range(size)]
    except Exception as error:  # of any type: the library checks options with assertions, or not at all
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"task.options ({json.dumps(options, default=str)}): reasoning_gym's {dataset} fails with these options "
            f"({reason}); its options are {', '.join(_option_names(dataset))}"
        ) from error


def _check_options(dataset: str, options: Mapping[str, Any]) -> None:
    """Raises UserError if the data set is unknown or refused, or has no such option."""
    from reasoning_gym.factory import DATASETS

    if dataset in REFUSED:
        raise UserError(f"task.dataset ({dataset!r}): not used: {REFUSED[dataset]}; choose another one")
    if dataset not in DATASETS:
        hint = suggestion(dataset, sorted(DATASETS.keys() - REFUSED.keys()), most=3)
        raise UserError(f"task.dataset ({dataset!r}): unknown to reasoning_gym; {hint}")
    names = _option_names(dataset)
    for option in options:
        if option in ("seed", "size"):
            raise UserError(f"task.options.{option}: cannot be set; set task.num_train and task.num_test")
        if option not in names:
            hint = suggestion(option, names)
            raise UserError(f"task.options.{option}: unknown to reasoning_gym's {dataset}; {hint}")


def _option_names(dataset: str) -> list[str]:
    from reasoning_gym.factory import DATASETS

    return [field.name for field in dataclasses.fields(DATASETS[dataset][1]) if field.name not in ("seed", "size")]
