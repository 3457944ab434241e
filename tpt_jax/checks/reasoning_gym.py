"""Answers to reasoning_gym's questions, scored by the library; nothing a model wrote is evaluated.

A trace is right where the library gives the full mark, partial credit is none, and the answer is nothing but an answer:
some data sets look for theirs among other things, so that "279 or 5", "-279" and "not 279" have the full mark for 279.
Therefore a number is compared by us too, an answer that denies itself is none, and FORMS says what an answer has to
look like where the library does not care. What is left to forgive: rounding where a question asks for decimals.
"""

import contextlib
import copy
import functools
import io
import json
import re
from collections.abc import Mapping
from typing import Any

# A second to import: while a worker starts, not in the time of its first trace.
import reasoning_gym

from tpt_jax.checks.answers.conclusion import conclusion, find_doubt
from tpt_jax.checks.answers.numbers import find_numbers, plain
from tpt_jax.checks.answers.numeric import parse_number
from tpt_jax.checks.refused_data_sets import REFUSED
from tpt_jax.records import Question, Verdict

FULL_MARK = 1.0  # not more either: calendar_arithmetic gives more than that to some wrong answers
LONGEST_ANSWER = 10_000  # characters; the library's own answers are shorter
BOARDS = ("arc_agi", "rearc")  # whose boards are compared as tuples; from a file they come as lists

ROUNDED = ("power_function", "polynomial_equations")  # whose questions ask for fewer digits than the reference has
WORDS = ("letter_jumble", "word_sorting", "figlet_font")  # whose superfluous letters and words the library ignores
_ASSIGNMENT = r"[\w'-]+ is an? \w+"
FORMS: Mapping[str, re.Pattern[str]] = {
    "fraction_simplification": re.compile(r"\$?(?:\\d?frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|\d+\s*/\s*\d+)\$?"),
    "kakurasu": re.compile(r"[01\s,\[\]]+"),
    "knights_knaves": re.compile(rf"{_ASSIGNMENT}(?:(?:,|,? and) {_ASSIGNMENT})*\.?"),
    "quantum_lock": re.compile(r"[A-C](?:\s*(?:→|->|,|\s)\s*[A-C])*"),
    "rush_hour": re.compile(r"[A-Z][+-]\d+(?:[ ,]+[A-Z][+-]\d+)*"),
    "sokoban": re.compile(r"[LURD]+"),
    "survo": re.compile(r"[\d\s]+"),
    "tower_of_hanoi": re.compile(r"(?:Move disk \d+ from Peg \d+ to Peg \d+\s*)+"),
}
_DENIAL = re.compile(r"\b(?:not|or|wrong|incorrect|false)\b|n't\b", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:/\d+)?(?:e[-+]?\d+)?")
_WORD = re.compile(r"[^\s,]+")

_OPEN, _CLOSE = "<answer>", "</answer>"  # as the library's own prompts have it
_MARK = re.compile(r"####|\\boxed\s*\{|\banswer\s*(?:is|(?:should|must|would|will) be|=|:)", re.IGNORECASE)
_ANNOUNCED = re.compile(rf"{_CLOSE}|{_MARK.pattern}", re.IGNORECASE)


def check_reasoning_gym(question: Question, completion: str) -> Verdict:
    """Scores the final answer; strict where it stands in the tags that the prompt asks for."""
    data = question.data
    if not {"dataset", "options", "metadata"} <= data.keys() or data["dataset"] in REFUSED:
        return Verdict.unreadable()
    answer, in_tags, after = extract(completion)
    if answer is None:
        return Verdict.wrong("no answer")
    if find_doubt(after) and not re.search(rf"(?<![\w.,-]){re.escape(answer)}\W*$", after):
        return Verdict.wrong("taken back")
    if len(answer) > LONGEST_ANSWER:
        return Verdict.wrong("answer too long")
    scorer = _scorer(data["dataset"], json.dumps(data["options"], sort_keys=True))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some data sets print what a model wrote
            score = scorer.score_answer(answer, _entry(question))
    except MemoryError:
        raise
    except Exception:  # of whatever kind the library lets out for an answer that it cannot read
        return Verdict.wrong("unreadable answer", answer)
    correct = score == FULL_MARK and _is_plain(answer, data["dataset"], question.answer)
    return Verdict(answer, strict=correct and in_tags, correct=correct)


def _is_plain(answer: str, dataset: str, reference: str) -> bool:
    """Whether what the library calls right is an answer and nothing else."""
    form = FORMS.get(dataset)
    if form and not form.fullmatch(answer):
        return False
    if _DENIAL.search(answer) and not _DENIAL.search(reference):
        return False
    if dataset in WORDS:
        return [len(word) for word in _WORD.findall(answer)] == [len(word) for word in _WORD.findall(reference)]
    if not _NUMBER.fullmatch(reference):
        return True
    wanted, found = parse_number(reference), {number for _, number in find_numbers(plain(answer))}
    return wanted is None or (len(found) == 1 and (dataset in ROUNDED or found.pop().equals(wanted)))


def extract(completion: str) -> tuple[str | None, bool, str]:
    """The final answer, whether it stands in the tags, and what comes after it.

    It is what the last pair of tags holds, if nothing is announced later that takes it back; else what follows the last
    mark ("####", "\\boxed{", "answer is"); else the last line that is not empty.
    """
    text = conclusion(completion, _ANNOUNCED)
    end = text.rfind(_CLOSE)
    start = text.rfind(_OPEN, 0, max(end, 0))
    marks = list(_MARK.finditer(text))
    if start >= 0:
        after = text[end + len(_CLOSE) :]
        if not marks or marks[-1].start() < end or not find_doubt(after):
            return text[start + len(_OPEN) : end].strip(), True, after
    if marks:
        return _after(marks[-1], text), False, text[marks[-1].end() :]
    lines = text.strip().splitlines()
    return (lines[-1].strip() if lines else None), False, ""


def _after(mark: re.Match[str], text: str) -> str | None:
    rest = text[mark.end() :]
    if mark.group().startswith("\\boxed"):
        return _braced(rest)
    line = rest.lstrip(":=*$` \t\n").partition("\n")[0]
    return line.rstrip("*$` \t" if mark.group() == "####" else "*$` \t.") or None  # a sentence ends with a full stop


def _braced(text: str) -> str | None:
    """What stands before the brace that closes one opened before the text."""
    depth = 1
    for index, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:index].strip() or None
    return None


@functools.cache
def _scorer(dataset: str, options: str) -> Any:
    return reasoning_gym.create_dataset(dataset, seed=0, size=1, **json.loads(options))


def _entry(question: Question) -> dict[str, Any]:
    """The question as the library made it; a copy, for the library writes into what it is given."""
    metadata = copy.deepcopy(question.data["metadata"])
    if question.data["dataset"] in BOARDS:
        metadata["output"] = tuple(map(tuple, metadata["output"]))
    return {"question": question.question, "answer": question.answer or None, "metadata": metadata}
