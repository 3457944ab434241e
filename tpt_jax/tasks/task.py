"""What a task is: questions with known answers, an instruction for the prompt, and the name of a checker."""

import dataclasses

from tpt_jax.errors import UserError
from tpt_jax.records import Question


@dataclasses.dataclass(frozen=True)
class Task:
    """Questions to train on, held-out questions to test on, and how answers are asked for and checked.

    Attributes:
      instruction: stands after the question in every prompt; "" for none.
      checker: a name in prune.checkers.
    """

    name: str
    instruction: str
    checker: str
    train: tuple[Question, ...]
    test: tuple[Question, ...]

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
