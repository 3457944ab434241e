"""Numeric final answers: found in a trace, read exactly, compared exactly. Nothing a model wrote is ever evaluated."""

import re
from fractions import Fraction

from tpt_jax.records import Question, Verdict

LONGEST_TEXT = 100_000  # characters; a final answer stands at the end, so only the end of a longer trace is read
LONGEST_ANSWER = 400  # characters after a mark, so that a trace full of marks takes no longer than another
MOST_MARKS = 500  # the last ones of a trace that is full of them
LONGEST_NUMBER = 60  # characters; a longer one is no answer to any question, and big integers are slow

_DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+"  # 1,234.50 and also 1,30,000
NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>[-−–]\s?)?[$£€₹]?\s?(?P<minus>[-−])?(?P<whole>{_DIGITS})"
    rf"(?:(?:\s(?P<mixed>\d+))?\s?/\s?(?P<under>\d+(?:\.\d+)?)(?![\d/]))?"
)

# Where a final answer is announced; what follows on the line holds it.
MARK = re.compile(
    r"####"
    r"|\\boxed\s*\{"
    r"|\banswer\s*(?:is|=|:|would be|will be)"
    r"|^[ \t]*\**A[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
# The format that the prompt asks for, as lm-evaluation-harness's gsm8k strict-match has it; the last one counts.
STRICT = re.compile(r"#### (-?[0-9.,]+)")

_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{"), " "),
    (re.compile(r"\{,\}|\\,(?=\d{3})"), ","),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\[!,;: ]|\\(?:left|right)"), " "),
)


def check_numeric(question: Question, completion: str) -> Verdict:
    """Compares final numbers exactly: 18, $18.00 and 18 dollars are one."""
    reference = parse_number(question.answer)
    if reference is None:
        return Verdict.not_known("unreadable reference answer")
    found = extract(completion)
    if found is None:
        return Verdict.wrong("no answer")
    correct = found == reference
    return Verdict(canonical(found), strict=correct and extract_strict(completion) == reference, correct=correct)


def parse_number(text: str) -> Fraction | None:
    """The first number of a text: "$1,234.50", "-3", "1/2", "18.00", "50%", "5 apples"; None where it has none."""
    match = NUMBER.search(_plain(text))
    return _value(match) if match else None


def canonical(value: Fraction) -> str:
    """One spelling for equal numbers: "18", "-0.5", "1/3"."""
    denominator = value.denominator
    for factor in (2, 5):
        while denominator % factor == 0:
            denominator //= factor
    if value.denominator == 1 or denominator != 1:
        return str(value)
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}}"
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def extract(completion: str) -> Fraction | None:
    """The final answer of a trace: after the last mark whose line holds a number, else the last number of all."""
    text = _plain(completion[-LONGEST_TEXT:])
    for mark in reversed(list(MARK.finditer(text))[-MOST_MARKS:]):
        line = text[mark.end() : mark.end() + LONGEST_ANSWER].lstrip("\n*:= \t").partition("\n")[0]
        value = _announced(line)
        if value is not None:
            return value
    values = [value for match in NUMBER.finditer(text) if (value := _value(match)) is not None]
    return values[-1] if values else None


def extract_strict(completion: str) -> Fraction | None:
    """The number after the last "#### ", where nothing but digits, separators and a sign stands there."""
    found = STRICT.findall(completion[-LONGEST_TEXT:])
    text = found[-1].rstrip(".").replace(",", "") if found else ""
    return Fraction(text) if re.fullmatch(r"-?\d+(\.\d+)?|-?\.\d+", text) and len(text) <= LONGEST_NUMBER else None


def _announced(line: str) -> Fraction | None:
    """The answer in what follows a mark: "$18 dollars", and 20 in "4 * 5 = 20"."""
    values = [value for match in NUMBER.finditer(line.rpartition("=")[2]) if (value := _value(match)) is not None]
    return values[0] if values else None


def _plain(text: str) -> str:
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def _value(match: re.Match[str]) -> Fraction | None:
    whole, mixed, under = match["whole"].replace(",", ""), match["mixed"], match["under"]
    if len(match.group()) > LONGEST_NUMBER:
        return None
    value = Fraction(whole)
    if under is not None:
        divisor = Fraction(under)
        if divisor == 0:
            return None
        value = value + Fraction(mixed) / divisor if mixed is not None else value / divisor
    return -value if match["sign"] or match["minus"] else value
