"""Numeric final answers: found in a trace, and compared with the reference."""

import enum
import functools
import itertools
import re
import string
from collections.abc import Sequence

from tpt_jax.checks.answers.boxes import Box, boxed_answer, find_boxes
from tpt_jax.checks.answers.conclusion import conclusion, find_doubt, is_denied, is_undecided
from tpt_jax.checks.answers.numbers import Number, canonical, find_numbers, in_words, plain
from tpt_jax.records import Question, Verdict

LONGEST_ANSWER = 400  # characters after a mark, so that a trace full of marks takes no longer than another
MOST_MARKS = 500  # the last ones of a trace that is full of them

# Where a final answer is announced; what follows on the line holds it. For text in lower case. Each begins with a
# literal, which is several times as fast as one expression for all of them.
MARKS = {
    "hashes": re.compile(r"####"),
    "box": re.compile(r"\\(?:boxed|fbox)\s*\{"),
    "tag": re.compile(r"<answer>"),
    "words": re.compile(
        r"answer\b(?<!\bto answer)[^.\n:=]{0,40}?"
        r"(?:\bis\b|\b(?:would|will|should|must) be\b|\bequals\b|\bcomes to\b|=|:)"
    ),
    "line": re.compile(r"\n[ \t]*\**a[ \t]*:(?![^\n]*\n\W*b[ \t]*:)"),  # "A: 18", not the first of A, B, C
}
# Any of them, for finding where a trace has answered.
ANSWERED = re.compile(r"####|\\boxed|<answer>|\banswer\b[^\n]{0,60}?\d", re.IGNORECASE)
# lm-evaluation-harness 0.4, tasks/gsm8k/gsm8k.yaml: what strict-match extracts, and what its comparison ignores.
STRICT = re.compile(r"#### (-?[0-9.,]+)")
STRICT_IGNORES = re.compile(r",|\$|\.$")

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_HEADING = re.compile(  # "#### Step 3: Divide", "#### Day 2"
    r"\**\s*(?:step|part)?\s*\d{1,2}[.:)]\**\s+\**[A-Za-z]|\**\s*(?:step|part|day|case|week|month|year)\s+\d{1,2}\W*$",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\*\*([^*\n]*\d[^*\n]*)\*\*")
_PARENTHESES = re.compile(r"\([^()]*\)")
_REASON = re.compile(r"\b(?:since|because|as|given|where|which|so that)\b|\. ")  # what follows is about the answer
# What stands between two numbers, or around one.
_OPERATOR = re.compile(r"[\s)}]*(?:[-+*×÷^–/<>≤≥:]|\bx\b|\btimes\b|\bplus\b|\bminus\b|\bover\b|\bdivided by\b)[\s({$]*")
_PHRASE = re.compile(r"(?!.*(?:[,;&]|\b(?:and|or|to)\b))\W*\w+\W+\w+.*", re.DOTALL)  # two words at least, and no list
_NO_NUMBER = re.compile(r"\\sqrt|\\pi\b|[√π]|\bpi\b|[<>≤≥]\s*\d")
# After a number: a power, a variable, more of the number.
_GOES_ON = re.compile(
    r"\)?\s?(?:\^|\*\*(?=[\d({])|[²³])|[nxyzKMB]\b|\s(?:squared|cubed)\b|\s(?:and\s)?an?\s(?:half|quarter|third)\b"
)
_BREAK = re.compile(r"[ \t*:]*\n")
_WORD = re.compile(r"[A-Za-z]{2}")
_SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,])")
_RESULT = re.compile(r"=([^=\n]*)")


class Missing(enum.Enum):
    """Why a trace has no final answer that could be compared."""

    NONE = "no answer"
    SEVERAL = "several answers"
    TAKEN_BACK = "taken back"
    UNFINISHED = "unfinished calculation"


def check_numeric(question: Question, completion: str) -> Verdict:
    """Compares final numbers exactly: 18, $18.00, eighteen and 18 dollars are one."""
    reference = parse_number(question.answer)
    if reference is None:
        return Verdict.unreadable()
    found = extract(completion)
    if isinstance(found, Missing):
        return Verdict.wrong(found.value)
    correct = found.equals(reference, question.question)
    strict = correct and matches_strictly(question.answer, completion)
    return Verdict(canonical(found.value), strict=strict, correct=correct)


def matches_strictly(answer: str, completion: str) -> bool:
    """What lm-evaluation-harness's gsm8k strict-match says: the first "#### number", compared as a string."""
    match = STRICT.search(completion)
    return match is not None and STRICT_IGNORES.sub("", match[1]) == STRICT_IGNORES.sub("", answer.strip())


@functools.lru_cache(maxsize=4_096)  # a question is asked several times
def parse_number(text: str) -> Number | None:
    """The one number that a reference answer is: "$1,234.50", "-3", "1/2", "50%", "5 apples"; None where it is none."""
    number = _announced(plain(text[:LONGEST_ANSWER]))
    return number if isinstance(number, Number) else None


def extract(completion: str) -> Number | Missing:
    """The final answer of a trace: what its last mark announces, else the last number of all.

    In a trace without marks the last line with a number counts, and in it one in bold, or the last result.
    """
    text = "\n" + plain(conclusion(completion, ANSWERED))
    marks = _marks(text)
    boxes = find_boxes(text) if any(kind == "box" for kind, _ in marks) else []
    denied = False
    for kind, end in reversed(marks):
        line = _in_box(text, boxes, end) if kind == "box" else _line_after(text, end)
        denied = denied or is_denied(line)
        if denied or (kind == "hashes" and _HEADING.match(line)):
            continue
        found = _at_a_mark(kind, line, text[end:])
        if found is not Missing.NONE:
            return _unless_taken_back(found, text[end:])
        if kind == "hashes" and line:  # "#### No solution", or a heading: only what comes after it can be the answer
            return _last_number(text[end:])
    return Missing.NONE if denied or _ends_in_a_mark(text, marks) else _last_number(text)


def _at_a_mark(kind: str, line: str, after: str) -> Number | Missing:
    """The answer that a mark announces: on its line, or at the end of the solution of which it is the heading.

    Args:
      line: what follows the mark and is not empty.
      after: all that follows it.
    """
    if kind == "tag":
        inside = after.partition("</answer>")[0].strip()
        return _last_number(inside) if "\n" in inside else _announced(line)
    if is_undecided(line):
        return Missing.NONE
    is_heading = kind == "line" or (kind == "words" and _BREAK.match(after))
    if is_heading and _WORD.match(line) and re.search(r"\d", after.partition(line)[2]):
        return _last_number(after)
    return _announced(line)


def _unless_taken_back(found: Number | Missing, after: str) -> Number | Missing:
    """An announced answer, if what follows it does not doubt it, or comes to the same."""
    doubt = find_doubt(after)
    if doubt is None:
        return found
    again = _last_number(doubt.rest)
    stands = again == found if isinstance(again, Number) else not doubt.is_denial
    return found if stands else Missing.TAKEN_BACK


def _marks(text: str) -> list[tuple[str, int]]:
    """The kinds of the marks and where they end, in order."""
    lower = text.translate(_LOWER)  # not lower(), which makes some texts longer
    found = [(match.end(), kind) for kind, pattern in MARKS.items() for match in pattern.finditer(lower)]
    return [(kind, end) for end, kind in sorted(found)[-MOST_MARKS:]]


def _line_after(text: str, end: int) -> str:
    return text[end : end + LONGEST_ANSWER].lstrip("\n*:= \t").partition("\n")[0]


def _in_box(text: str, boxes: Sequence[Box], end: int) -> str:
    """What stands in the box that begins there, with the boxes that it continues; "" where it is none."""
    for index, box in enumerate(boxes):
        if box.start < end <= box.end:
            return boxed_answer(text, boxes[: index + 1])
    return ""


def _ends_in_a_mark(text: str, marks: list[tuple[str, int]]) -> bool:
    """Whether an answer is announced and then there is nothing."""
    return bool(marks) and marks[-1][0] == "hashes" and not text[marks[-1][1] :].strip("\n*:# \t")


def _announced(line: str) -> Number | Missing:
    """The answer in what follows a mark: "$18 dollars"; 20 in "4 * 5 = 20"; 4 in "he is 5 feet tall in **4 years**"."""
    clause = _REASON.split(line, maxsplit=1)[0]
    clause = clause if re.search(r"\d", clause) else line
    sides = {side: _single(side) for side in clause.split("=")}
    values = {side: found for side, found in sides.items() if isinstance(found, Number)}
    if len(set(values.values())) > 1:  # "32 / 3 = 10.67"
        values = {side: found for side, found in values.items() if "/" not in side}
    if values:  # several: "16 oz = 1 lb"
        return Missing.SEVERAL if len(set(values.values())) > 1 else values.popitem()[1]
    missing = [found for found in sides.values() if isinstance(found, Missing) and found is not Missing.NONE]
    return missing[-1] if missing else in_words(line.lstrip("*[( \t")) or Missing.NONE


def _single(text: str) -> Number | Missing:
    """The one number of a text without "="."""
    bold = _BOLD.search(text)
    without = _PARENTHESES.sub(" ", text)
    if bold:
        text = bold[1]
    elif re.search(r"\d", without):
        text = without
    text = _SPACED.sub(lambda match: match[0].replace(" ", ""), text)
    found = find_numbers(text)
    if not found:
        return Missing.NONE
    if _NO_NUMBER.search(text) or any(_GOES_ON.match(text, match.end()) for match, _ in found):
        return Missing.UNFINISHED
    gaps = [
        text[left.end() : right.start()] + (right["sign"] or "" if right.start() > left.end() else "")
        for (left, _), (right, _) in itertools.pairwise(found)
    ]
    if any(map(_OPERATOR.fullmatch, gaps)):
        return Missing.UNFINISHED
    first = found[0][1]
    if all(number == first for _, number in found):
        return first
    begins = not text[: found[0][0].start()].strip("*[( \t")
    return first if begins and _PHRASE.match(gaps[0]) else Missing.SEVERAL


def _last_number(text: str) -> Number | Missing:
    """Of the last line that has one: in bold, else the result that the trace has come to, else the last."""
    for line in reversed(text.splitlines()):
        numbers = [number for _, number in find_numbers(line)]
        if not numbers:
            continue
        if is_undecided(line):
            return Missing.NONE
        bold = [number for part in _BOLD.findall(line) for _, number in find_numbers(part)]
        if bold:
            return bold[-1]
        results = [number for _, number in find_numbers(_RESULT.findall(text)[-1])] if "=" in text else []
        return results[0] if results and results[0] in numbers else numbers[-1]
    return Missing.NONE
