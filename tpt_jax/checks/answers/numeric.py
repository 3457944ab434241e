"""The numeric checker: finds a trace's final number and compares it with the reference answer."""

import enum
import functools
import itertools
import re
import string
from collections.abc import Sequence

from tpt_jax.checks.answers.boxes import Box, boxed_answer, find_boxes
from tpt_jax.checks.answers.conclusion import conclusion, find_doubt, is_denied, is_undecided
from tpt_jax.checks.answers.numbers import Number, canonical, find_numbers, parse_number_words, plain
from tpt_jax.records import Question, Verdict

MAX_ANSWER_CHARACTERS = 400  # read after a marker; bounds the time for a trace full of markers
MAX_MARKERS = 500  # only the last ones of a trace are read

# What announces a final answer; the answer follows on the same line. They match lower-case text. Each pattern begins
# with a literal, which makes them several times as fast as one combined pattern.
MARKERS = {
    "hashes": re.compile(r"####"),
    "box": re.compile(r"\\(?:boxed|fbox)\s*\{"),
    "tag": re.compile(r"<answer>"),
    "words": re.compile(
        r"answer\b(?<!\bto answer)[^.\n:=]{0,40}?"
        r"(?:\bis\b|\b(?:would|will|should|must) be\b|\bequals\b|\bcomes to\b|=|:)"
    ),
    "line": re.compile(r"\n[ \t]*\**a[ \t]*:(?![^\n]*\n\W*b[ \t]*:)"),  # "A: 18", unless a line "B: ..." follows
}
# Any marker: shows that a trace has given its answer.
ANY_MARKER = re.compile(r"####|\\boxed|<answer>|\banswer\b[^\n]{0,60}?\d", re.IGNORECASE)
# lm-evaluation-harness 0.4, tasks/gsm8k/gsm8k.yaml: what strict-match extracts and what its comparison ignores.
STRICT = re.compile(r"#### (-?[0-9.,]+)")
STRICT_IGNORES = re.compile(r",|\$|\.$")

_TO_LOWER_CASE = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_HEADING = re.compile(  # "#### Step 3: Divide", "#### Day 2"
    r"\**\s*(?:step|part)?\s*\d{1,2}[.:)]\**\s+\**[A-Za-z]|\**\s*(?:step|part|day|case|week|month|year)\s+\d{1,2}\W*$",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\*\*([^*\n]*\d[^*\n]*)\*\*")
_PARENTHESES = re.compile(r"\([^()]*\)")
_EXPLANATION = re.compile(r"\b(?:since|because|as|given|where|which|so that)\b|\. ")  # an explanation follows
# Between two numbers these mean an unfinished calculation.
_OPERATOR = re.compile(r"[\s)}]*(?:[-+*×÷^–/<>≤≥:]|\bx\b|\btimes\b|\bplus\b|\bminus\b|\bover\b|\bdivided by\b)[\s({$]*")
_PHRASE = re.compile(r"(?!.*(?:[,;&]|\b(?:and|or|to)\b))\W*\w+\W+\w+.*", re.DOTALL)  # two words or more, no list
_NOT_A_NUMBER = re.compile(r"\\sqrt|\\pi\b|[√π]|\bpi\b|[<>≤≥]\s*\d")
# Right after a number these make it part of something larger: a power, a product, a mixed number.
_CONTINUATION = re.compile(
    r"\)?\s?(?:\^|\*\*(?=[\d({])|[²³])|[nxyzKMB]\b|\s(?:squared|cubed)\b|\s(?:and\s)?an?\s(?:half|quarter|third)\b"
)
_LINE_BREAK = re.compile(r"[ \t*:]*\n")
_WORD = re.compile(r"[A-Za-z]{2}")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,])")
_RESULT = re.compile(r"=([^=\n]*)")


class Missing(enum.Enum):
    """Why a trace has no final answer to compare."""

    NONE = "no answer"
    SEVERAL = "several answers"
    TAKEN_BACK = "taken back"
    UNFINISHED = "unfinished calculation"


def check_numeric(question: Question, completion: str) -> Verdict:
    """Compares final numbers exactly: 18, $18.00, eighteen and 18 dollars are equal."""
    reference = parse_number(question.answer)
    if reference is None:
        return Verdict.unreadable()
    answer = extract(completion)
    if isinstance(answer, Missing):
        return Verdict.wrong(answer.value)
    correct = answer.equals(reference, question.question)
    strict = correct and matches_strictly(question.answer, completion)
    return Verdict(canonical(answer.value), strict=strict, correct=correct)


def matches_strictly(answer: str, completion: str) -> bool:
    """Whether lm-evaluation-harness's gsm8k strict-match accepts it: compares the first "#### number" as a string."""
    match = STRICT.search(completion)
    return match is not None and STRICT_IGNORES.sub("", match[1]) == STRICT_IGNORES.sub("", answer.strip())


@functools.lru_cache(maxsize=4_096)  # every sample of a question has the same reference answer
def parse_number(text: str) -> Number | None:
    """Reads a text that is one number: "$1,234.50", "-3", "1/2", "50%", "5 apples"; None for any other text."""
    number = _parse_answer(plain(text[:MAX_ANSWER_CHARACTERS]))
    return number if isinstance(number, Number) else None


def extract(completion: str) -> Number | Missing:
    """Extracts a trace's final answer: the number after its last marker or, without markers, its last number.

    In a trace without markers the last line with a number counts: see _last_number.
    """
    text = "\n" + plain(conclusion(completion, ANY_MARKER))
    markers = _find_markers(text)
    boxes = find_boxes(text) if any(kind == "box" for kind, _ in markers) else []
    denied = False
    for kind, end in reversed(markers):
        line = _box_at(text, boxes, end) if kind == "box" else _line_after(text, end)
        denied = denied or is_denied(line)
        if denied or (kind == "hashes" and _HEADING.match(line)):
            continue
        answer = _answer_at_marker(kind, line, text[end:])
        if answer is not Missing.NONE:
            return _unless_taken_back(answer, text[end:])
        if kind == "hashes" and line:  # "#### No solution", or a heading: the answer can only follow it
            return _last_number(text[end:])
    return Missing.NONE if denied or _ends_with_marker(text, markers) else _last_number(text)


def _answer_at_marker(kind: str, line: str, after: str) -> Number | Missing:
    """Reads the answer a marker announces: on its line, or at the end of the solution that it heads.

    Args:
      kind: a key of MARKERS.
      line: the first non-empty line after the marker.
      after: the whole text after the marker.
    """
    if kind == "tag":
        content = after.partition("</answer>")[0].strip()
        return _last_number(content) if "\n" in content else _parse_answer(line)
    if is_undecided(line):
        return Missing.NONE
    is_heading = kind == "line" or (kind == "words" and _LINE_BREAK.match(after))
    if is_heading and _WORD.match(line) and re.search(r"\d", after.partition(line)[2]):
        return _last_number(after)
    return _parse_answer(line)


def _unless_taken_back(answer: Number | Missing, after: str) -> Number | Missing:
    """The announced answer; TAKEN_BACK if the text after it reaches another one, or denies it and reaches none."""
    doubt = find_doubt(after)
    if doubt is None:
        return answer
    later = _last_number(doubt.rest)
    is_upheld = later == answer if isinstance(later, Number) else not doubt.is_denial
    return answer if is_upheld else Missing.TAKEN_BACK


def _find_markers(text: str) -> list[tuple[str, int]]:
    """The kind and end position of each marker, in order."""
    lower_case = text.translate(_TO_LOWER_CASE)  # lower() would change the length of some texts
    markers = [(match.end(), kind) for kind, pattern in MARKERS.items() for match in pattern.finditer(lower_case)]
    return [(kind, end) for end, kind in sorted(markers)[-MAX_MARKERS:]]


def _line_after(text: str, end: int) -> str:
    """The first non-empty line after a marker that ends at `end`."""
    return text[end : end + MAX_ANSWER_CHARACTERS].lstrip("\n*:= \t").partition("\n")[0]


def _box_at(text: str, boxes: Sequence[Box], end: int) -> str:
    """The answer in the box whose marker ends at `end`, joined with the boxes it continues; "" if there is none."""
    for index, box in enumerate(boxes):
        if box.start < end <= box.end:
            return boxed_answer(text, boxes[: index + 1])
    return ""


def _ends_with_marker(text: str, markers: list[tuple[str, int]]) -> bool:
    """Whether the text ends with a "####" that no answer follows."""
    return bool(markers) and markers[-1][0] == "hashes" and not text[markers[-1][1] :].strip("\n*:# \t")


def _parse_answer(line: str) -> Number | Missing:
    """Reads the answer after a marker: 18 in "$18 dollars", 20 in "4 * 5 = 20", 4 in "he is 5 feet in **4 years**"."""
    clause = _EXPLANATION.split(line, maxsplit=1)[0]
    clause = clause if re.search(r"\d", clause) else line
    parsed = {side: _parse_single(side) for side in clause.split("=")}
    values = {side: result for side, result in parsed.items() if isinstance(result, Number)}
    if len(set(values.values())) > 1:  # "32 / 3 = 10.67": the fraction is the calculation
        values = {side: value for side, value in values.items() if "/" not in side}
    if values:
        # Still several: "16 oz = 1 lb".
        return Missing.SEVERAL if len(set(values.values())) > 1 else values.popitem()[1]
    missing = [result for result in parsed.values() if isinstance(result, Missing) and result is not Missing.NONE]
    return missing[-1] if missing else parse_number_words(line.lstrip("*[( \t")) or Missing.NONE


def _parse_single(text: str) -> Number | Missing:
    """Reads the one number of a text without "="."""
    bold = _BOLD.search(text)
    without_parentheses = _PARENTHESES.sub(" ", text)
    if bold:
        text = bold[1]
    elif re.search(r"\d", without_parentheses):
        text = without_parentheses
    text = _SPACED_THOUSANDS.sub(lambda match: match[0].replace(" ", ""), text)
    numbers = find_numbers(text)
    if not numbers:
        return Missing.NONE
    if _NOT_A_NUMBER.search(text) or any(_CONTINUATION.match(text, match.end()) for match, _ in numbers):
        return Missing.UNFINISHED
    gaps = [
        text[left.end() : right.start()] + (right["sign"] or "" if right.start() > left.end() else "")
        for (left, _), (right, _) in itertools.pairwise(numbers)
    ]
    if any(map(_OPERATOR.fullmatch, gaps)):
        return Missing.UNFINISHED
    first = numbers[0][1]
    if all(number == first for _, number in numbers):
        return first
    leads = not text[: numbers[0][0].start()].strip("*[( \t")
    return first if leads and _PHRASE.match(gaps[0]) else Missing.SEVERAL


def _last_number(text: str) -> Number | Missing:
    """Reads the last line that has a number: a bold one, else the result of the last equation, else the last number."""
    for line in reversed(text.splitlines()):
        numbers = [number for _, number in find_numbers(line)]
        if not numbers:
            continue
        if is_undecided(line):
            return Missing.NONE
        bold = [number for bold_text in _BOLD.findall(line) for _, number in find_numbers(bold_text)]
        if bold:
            return bold[-1]
        results = [number for _, number in find_numbers(_RESULT.findall(text)[-1])] if "=" in text else []
        return results[0] if results and results[0] in numbers else numbers[-1]
    return Missing.NONE
