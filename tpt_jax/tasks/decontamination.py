"""Keeps test questions out of the training set, even under other ids or in another spelling."""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable

from tpt_jax.errors import UserError
from tpt_jax.records import Question
from tpt_jax.tasks.task import Task

# Ignored when questions are compared: \u2018 to \u201d are curly quotes; a price is the same with and without its $.
PUNCTUATION = r".,;:!?()$'\"\u2018\u2019\u201c\u201d"


def normalised(text: str) -> str:
    """A text's words and symbols in lower case, without punctuation and spacing: equal for two spellings of a question.

    "What's  5 + 3?" equals "what's 5+3". "5 + 3" differs from "5 - 3": operators are kept, and so are the symbols that
    puzzles are drawn with.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(rf"\w+|[^\w\s{PUNCTUATION}]", text))


def normalised_texts(questions: Iterable[Question]) -> frozenset[str]:
    """The normalised texts of questions."""
    return frozenset(normalised(question.question) for question in questions)


def without_test_questions(task: Task) -> Task:
    """Leaves out training questions with a test question's text, and counts them in `num_contaminated`.

    Raises:
      UserError: no training question is left.
    """
    test_texts = normalised_texts(task.test)
    train = task.train.only([question for question in task.train if normalised(question.question) not in test_texts])
    if not train:
        raise UserError(f"task {task.name}: every training question is also a test question; give disjoint sets")
    return dataclasses.replace(task, train=train, num_contaminated=len(task.train) - len(train))
