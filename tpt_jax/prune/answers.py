"""Numeric final answers: found in a trace, and compared with the reference."""

import enum
import itertools
import re
import string
from collections.abc import Iterator

from tpt_jax.prune.numbers import Number, canonical, find_numbers, in_words, plain
from tpt_jax.records import Question, Verdict

LONGEST_TEXT = 100_000  # characters; a final answer stands at the end, so only the end of a longer trace is read
LONGEST_ANSWER = 400  # characters after a mark, so that a trace full of marks takes no longer than another
MOST_MARKS = 500  # the last ones of a trace that is full of them

# Where a final answer is announced; what follows on the line holds it. For text in lower case. Each begins with a
# literal, which is several times as fast as one expression for all of them.
MARKS = {
    "hashes": re.compile(r"####"),
    "box": re.compile(r"\\(?:boxed|fbox)\s*\{"),
    "tag": re.compile(r"<answer>"),
    "words": re.compile(r"answer\b[^.\n:=]{0,40}?(?:\bis\b|\bwould be\b|\bwill be\b|=|:)"),
    "line": re.compile(r"\n[ \t]*\**a[ \t]*:"),  # "A: 18"
}
# lm-evaluation-harness 0.4, tasks/gsm8k/gsm8k.yaml: what strict-match extracts, and what its comparison ignores.
STRICT = re.compile(r"#### (-?[0-9.,]+)")
STRICT_IGNORES = re.compile(r",|\$|\.$")

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_HEADING = re.compile(r"\**\s*(?:step|part)?\s*\d{1,2}[.:)]\**\s+\**[A-Za-z]", re.IGNORECASE)  # "#### Step 3: Divide"
_BOLD = re.compile(r"\*\*([^*\n]*\d[^*\n]*)\*\*")
_PARENTHESES = re.compile(r"\([^()]*\)")
_LIST = re.compile(r"[^\d\n]{0,20}(?:,|\band\b|\bor\b|\bto\b|&|/)\s*(?:about|maybe|perhaps)?\W*$")
_OPERATOR = re.compile(r"\s*\)?\s*[-+*×÷^–/]\s*[($]*\s*$")
_NO_NUMBER = re.compile(r"\\sqrt|\\pi\b|[√π]")
_SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,])")


class Missing(enum.Enum):
    """Why a trace has no final answer that could be compared."""

    NONE = "no answer"
    SEVERAL = "several answers"
    UNFINISHED = "unfinished calculation"


def check_numeric(question: Question, completion: str) -> Verdict:
    """Compares final numbers exactly: 18, $18.00, eighteen and 18 dollars are one."""
    reference = parse_number(question.answer)
    if reference is None:
        return Verdict.not_known("unreadable reference answer")
    found = extract(completion)
    if isinstance(found, Missing):
        return Verdict.wrong(found.value)
    correct = found.equals(reference)
    strict = correct and matches_strictly(question.answer, completion)
    return Verdict(canonical(found.value), strict=strict, correct=correct)


def matches_strictly(answer: str, completion: str) -> bool:
    """What lm-evaluation-harness's gsm8k strict-match says: the first "#### number", compared as a string."""
    match = STRICT.search(completion)
    return match is not None and STRICT_IGNORES.sub("", match[1]) == STRICT_IGNORES.sub("", answer.strip())


def parse_number(text: str) -> Number | None:
    """The one number that a reference answer is: "$1,234.50", "-3", "1/2", "50%", "5 apples"; None where it is none."""
    number = _announced(plain(text[:LONGEST_ANSWER]))
    return number if isinstance(number, Number) else None


def extract(completion: str) -> Number | Missing:
    """The final answer of a trace: what its last mark announces, else the last number of all.

    In a trace without marks the last line with a number counts, and in it a number in bold before others.
    """
    text = "\n" + plain(completion[-LONGEST_TEXT:])
    marks = _marks(text)
    for kind, end in reversed(marks):
        line = _line_after(text, kind, end)
        if kind == "hashes" and _HEADING.match(line):
            continue
        found = _announced(line)
        if found is not Missing.NONE:
            return found
        if kind == "hashes" and line:  # "#### No solution", or a heading: only what comes after it can be the answer
            return _last_number(text[end:])
    return Missing.NONE if _ends_in_a_mark(text, marks) else _last_number(text)


def _marks(text: str) -> list[tuple[str, int]]:
    """The kinds of the marks and where they end, in order."""
    lower = text.translate(_LOWER)  # not lower(), which makes some texts longer
    found = [(match.end(), kind) for kind, pattern in MARKS.items() for match in pattern.finditer(lower)]
    return [(kind, end) for end, kind in sorted(found)[-MOST_MARKS:]]


def _line_after(text: str, kind: str, end: int) -> str:
    after = text[end : end + LONGEST_ANSWER]
    if kind == "box":
        return _balanced(after)
    return after.lstrip("\n*:= \t").partition("\n")[0]


def _balanced(text: str) -> str:
    """Up to the brace that closes one opened before."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:place]
    return text


def _ends_in_a_mark(text: str, marks: list[tuple[str, int]]) -> bool:
    """Whether an answer is announced and then there is nothing."""
    return bool(marks) and marks[-1][0] == "hashes" and not text[marks[-1][1] :].strip("\n*:# \t")


def _announced(line: str) -> Number | Missing:
    """The answer in what follows a mark: "$18 dollars"; 20 in "4 * 5 = 20"; 4 in "he is 5 feet tall in **4 years**"."""
    for text in _candidates(line):
        if _NO_NUMBER.search(text):
            return Missing.UNFINISHED
        text = _SPACED.sub(lambda match: match[0].replace(" ", ""), text)
        found = find_numbers(text)
        if not found:
            continue
        if len({number for _, number in found}) == 1:
            return found[0][1]
        between = [text[left.end() : right.start()] for (left, _), (right, _) in itertools.pairwise(found)]
        if any(_OPERATOR.fullmatch(gap) for gap in between):
            return Missing.UNFINISHED
        if any(_LIST.fullmatch(gap) for gap in between):
            return Missing.SEVERAL
        begins = not text[: found[0][0].start()].strip("*[( \t")
        return found[0][1] if begins else found[-1][1]
    return in_words(line.lstrip("*[( \t")) or Missing.NONE


def _candidates(line: str) -> Iterator[str]:
    """The parts of a line in which its answer may stand, the likeliest first."""
    left, _, right = line.rpartition("=")
    for side in (right, left):
        bold = _BOLD.search(side)
        if bold:
            yield bold[1]
        yield _PARENTHESES.sub(" ", side)
        yield side


def _last_number(text: str) -> Number | Missing:
    for line in reversed(text.splitlines()):
        found = find_numbers(line)
        if found:
            bold = [number for part in _BOLD.findall(line) for _, number in find_numbers(part)]
            return bold[-1] if bold else found[-1][1]
    return Missing.NONE
