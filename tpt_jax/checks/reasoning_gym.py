"""Checks answers to reasoning_gym questions with the library's own scores. No text from a model is ever evaluated.

A trace is correct if the library gives full marks, without partial credit, and the answer contains nothing else. Some
of the library's scorers search the text for the reference answer: "279 or 5", "-279" and "not 279" all score in full
for 279. We therefore also compare numbers ourselves, reject negations and alternatives, and require the patterns in
ANSWER_FORMATS from data sets with lenient scorers. Only rounding is forgiven, in data sets that ask for decimals.
"""

import contextlib
import copy
import functools
import io
import json
import re
from collections.abc import Mapping
from typing import Any

# Takes a second, so import it while a worker starts rather than within the first trace's time limit.
import reasoning_gym

from tpt_jax.checks.answers.announce import Kind
from tpt_jax.checks.answers.extract import Missing, extract_answer
from tpt_jax.checks.answers.number import find_numbers, parse_number, plain
from tpt_jax.checks.answers.tagged import TEXT_READER
from tpt_jax.checks.refused_data_sets import REFUSED
from tpt_jax.records import Question, Verdict

FULL_SCORE = 1.0  # exactly: calendar_arithmetic scores some wrong answers above 1
MAX_ANSWER_CHARACTERS = 10_000  # the library's own answers are shorter

# Data sets by special treatment.
GRID_DATASETS = ("arc_agi", "rearc")  # scorers compare grids as tuples, but JSON files hold lists
ROUNDED_DATASETS = ("power_function", "polynomial_equations")  # questions ask for fewer digits than the reference has
WORD_DATASETS = ("letter_jumble", "word_sorting", "figlet_font")  # scorers ignore extra letters and words
_ASSIGNMENT = r"[\w'-]+ is an? \w+"
ANSWER_FORMATS: Mapping[str, re.Pattern[str]] = {
    "fraction_simplification": re.compile(r"\$?(?:\\d?frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|\d+\s*/\s*\d+)\$?"),
    "kakurasu": re.compile(r"[01\s,\[\]]+"),
    "knights_knaves": re.compile(rf"{_ASSIGNMENT}(?:(?:,|,? and) {_ASSIGNMENT})*\.?"),
    "quantum_lock": re.compile(r"[A-C](?:\s*(?:→|->|,|\s)\s*[A-C])*"),
    "rush_hour": re.compile(r"[A-Z][+-]\d+(?:[ ,]+[A-Z][+-]\d+)*"),
    "sokoban": re.compile(r"[LURD]+"),
    "survo": re.compile(r"[\d\s]+"),
    "tower_of_hanoi": re.compile(r"(?:Move disk \d+ from Peg \d+ to Peg \d+\s*)+"),
}
_NEGATION = re.compile(r"\b(?:not|or|wrong|incorrect|false)\b|n't\b", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:/\d+)?(?:e[-+]?\d+)?")
_WORD = re.compile(r"[^\s,]+")


def check_reasoning_gym(question: Question, completion: str, *, is_finished: bool = True) -> Verdict:
    """Scores the final answer; strict requires the tags that the prompt asks for."""
    data = question.data
    if not {"dataset", "options", "metadata"} <= data.keys() or data["dataset"] in REFUSED:
        return Verdict.unreadable()
    final = extract_answer(completion, TEXT_READER, is_finished=is_finished)
    if isinstance(final, Missing):
        return Verdict.wrong(final.value)
    answer, announcement = final.value, final.announcement
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return Verdict.wrong("answer too long")
    scorer = _scorer(data["dataset"], json.dumps(data["options"], sort_keys=True))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some scorers print the model's answer
            score = scorer.score_answer(answer, _library_entry(question))
    except MemoryError:
        raise
    except Exception:  # the library raises various types for answers it cannot read
        return Verdict.wrong("unreadable answer", answer)
    correct = score == FULL_SCORE and _is_answer_only(answer, data["dataset"], question.answer)
    return Verdict(
        answer, strict=correct and announcement is not None and announcement.kind is Kind.TAG, correct=correct
    )


def _is_answer_only(answer: str, dataset: str, reference: str) -> bool:
    """Whether an answer with a full score contains the answer and nothing else."""
    answer_format = ANSWER_FORMATS.get(dataset)
    if answer_format and not answer_format.fullmatch(answer):
        return False
    if _NEGATION.search(answer) and not _NEGATION.search(reference):
        return False
    if dataset in WORD_DATASETS:
        return [len(word) for word in _WORD.findall(answer)] == [len(word) for word in _WORD.findall(reference)]
    if not _NUMBER.fullmatch(reference):
        return True
    expected, numbers = parse_number(reference), {number for _, number in find_numbers(plain(answer))}
    return expected is None or (len(numbers) == 1 and (dataset in ROUNDED_DATASETS or numbers.pop().equals(expected)))


@functools.cache
def _scorer(dataset: str, options: str) -> Any:
    return reasoning_gym.create_dataset(dataset, seed=0, size=1, **json.loads(options))


def _library_entry(question: Question) -> dict[str, Any]:
    """Returns the question in the library's form; a copy, because scorers modify their entry."""
    metadata = copy.deepcopy(question.data["metadata"])
    if question.data["dataset"] in GRID_DATASETS:
        metadata["output"] = tuple(map(tuple, metadata["output"]))
    return {"question": question.question, "answer": question.answer or None, "metadata": metadata}
