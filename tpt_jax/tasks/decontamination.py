"""A question that is tested must not be trained on, whatever it is called and however it is spaced."""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable

from tpt_jax.errors import UserError
from tpt_jax.records import Question
from tpt_jax.tasks.task import Task

# Curly quotes by their numbers; a price is the same with its $ and without it.
PUNCTUATION = r".,;:!?()$'\"\u2018\u2019\u201c\u201d"


def normalised(text: str) -> str:
    """What two spellings of one question share: words and signs, in lower case, without spacing and punctuation.

    "What's  5 + 3?" and "what's 5+3" are one question; "5 + 3" and "5 - 3" are two: signs stay, and so do those that
    puzzles are drawn with.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(rf"\w+|[^\w\s{PUNCTUATION}]", text))


def texts_of(questions: Iterable[Question]) -> frozenset[str]:
    """The questions' normalised texts, to look others up in."""
    return frozenset(normalised(question.question) for question in questions)


def without_test_questions(task: Task) -> Task:
    """The task without those training questions whose text is a test question's; they are counted.

    Raises:
      UserError: nothing is left to train on.
    """
    tested = texts_of(task.test)
    train = task.train.only([question for question in task.train if normalised(question.question) not in tested])
    if not train:
        raise UserError(f"task {task.name}: every training question is a test question too; give two sets")
    return dataclasses.replace(task, train=train, num_contaminated=len(task.train) - len(train))
