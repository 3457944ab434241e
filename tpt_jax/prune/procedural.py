"""Answers to reasoning_gym's questions, scored by the library; nothing a model wrote is evaluated.

A trace is right where the library gives the full mark; partial credit is none. The library forgives more than we do
elsewhere: superfluous words after the right ones in letter_jumble and word_sorting, rounding where a question asks for
decimals, ten letters in place in a longer word of figlet_font.
"""

import contextlib
import copy
import functools
import io
import json
import re
from typing import Any

# A second to import: while a worker starts, not in the time of its first trace.
import reasoning_gym

from tpt_jax.records import Question, Verdict
from tpt_jax.tasks.reasoning_gym import REFUSED

FULL_MARK = 1.0  # not more either: calendar_arithmetic gives more than that to some wrong answers
LONGEST_TEXT = 100_000  # characters; only the end of a longer trace is read
LONGEST_ANSWER = 10_000  # characters; the library's own answers are shorter
BOARDS = ("arc_agi", "rearc")  # whose boards are compared as tuples; from a file they come as lists

_OPEN, _CLOSE = "<answer>", "</answer>"  # as the library's own prompts have it
_MARK = re.compile(r"####|\\boxed\s*\{|\banswer\s*(?:is|=|:)", re.IGNORECASE)


def check_reasoning_gym(question: Question, completion: str) -> Verdict:
    """Scores the final answer; strict where it stands in the tags that the prompt asks for."""
    data = question.data
    if not {"dataset", "options", "metadata"} <= data.keys() or data["dataset"] in REFUSED:
        return Verdict.not_known("unreadable reference answer")
    answer, in_tags = extract(completion)
    if answer is None:
        return Verdict.wrong("no answer")
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
    correct = score == FULL_MARK
    return Verdict(answer, strict=correct and in_tags, correct=correct)


def extract(completion: str) -> tuple[str | None, bool]:
    """The final answer, and whether it stands in the tags.

    It is what the last pair of tags holds; else what follows the last mark ("####", "\\boxed{", "answer is"); else the
    last line that is not empty.
    """
    text = completion[-LONGEST_TEXT:]
    end = text.rfind(_CLOSE)
    start = text.rfind(_OPEN, 0, max(end, 0))
    if start >= 0:
        return text[start + len(_OPEN) : end].strip(), True
    marks = list(_MARK.finditer(text))
    if marks:
        return _after(marks[-1], text), False
    lines = text.strip().splitlines()
    return (lines[-1].strip() if lines else None), False


def _after(mark: re.Match[str], text: str) -> str | None:
    rest = text[mark.end() :]
    if mark.group().startswith("\\boxed"):
        return _braced(rest)
    rest = rest.lstrip(":=* \t\n")
    line = rest.partition("\n")[0].strip().strip("*")
    if mark.group() != "####":  # a sentence, with the full stop at its end
        line = line.removesuffix(".")
    return line or None


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
