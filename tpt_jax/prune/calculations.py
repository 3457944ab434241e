r"""Reads the calculations of a trace: its sequence of equations, however they are written.

"She has 3 apples + 4 apples = <<3+4=7>>7 apples, worth 7 \times $1.50 = $10.5" holds "3+4=7" and "7*1.5=10.5".
"""

import re
from collections.abc import Iterator, Sequence

_ANNOTATION = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's for a calculator; it repeats the equation
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]{1,40})\}\s*\{([^{}]{1,40})\}")
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|textbf)\s*\{[^{}]{0,60}\}")
_SPELLINGS = (
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])|[×·]"), "*"),
    (re.compile(r"\\div(?![A-Za-z])|÷"), "/"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"(?:(?<=[\d)])\s*|(?<=\s))[xX]\s*(?=[$(]*\.?\d)"), "*"),
    (re.compile(r"[/-](?=[A-Za-z])"), " "),  # of a unit: "$40/night", "5-year"
    (re.compile(r"\*\*+"), " "),  # bold
    (re.compile(r"\\[,;:!]|[$€£{}\[\]\\]"), " "),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
)
_TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<sign>[-+*/^=()%])|(?P<word>[A-Za-z][A-Za-z'.&-]*)|(?P<end>\S)"
)
MAX_WORDS = 4  # of a unit, between a number and the next sign: "3 red apples each + 4"


def equations(text: str) -> list[str]:
    """The equations of a text in order, with plain signs, without units and spaces.

    An equation has a sign of arithmetic and a result; "x = 7" is not one. A chain, "3 + 4 = 7 = 14 / 2", is one.
    """
    return [equation for line in text.split("\n") if "=" in line for equation in _of_line(_plain(line))]


def _of_line(line: str) -> Iterator[str]:
    parts: list[str] = []  # numbers and signs since the last equation
    num_words = 0  # since the last of them
    for match in _TOKEN.finditer(line):
        kind, token = match.lastgroup, match.group()
        if kind == "word":
            num_words += 1
        # An equation ends at any other sign, after many words, and where a number or a bracket follows a number.
        is_after_number = parts and (parts[-1][-1].isdigit() or parts[-1] in ")%")
        is_next = (kind == "number" and parts and (num_words or is_after_number)) or (
            token == "(" and num_words and is_after_number
        )
        if kind == "end" or num_words > MAX_WORDS or is_next:
            yield from _as_equation(parts)
            parts, num_words = [], 0
        if kind in ("number", "sign"):
            parts.append(_plain_number(token) if kind == "number" else token)
            num_words = 0
    yield from _as_equation(parts)


def shape(equation: str) -> str:
    """An equation without its numbers: "#+#=#"."""
    return re.sub(r"[\d.]+", "#", equation)


def _plain(text: str) -> str:
    text = _ANNOTATION.sub("", text)
    if "\\" in text:
        text = _LATEX_TEXT.sub(" ", _FRACTION.sub(r"(\1)/(\2)", text))
    for pattern, sign in _SPELLINGS:
        text = pattern.sub(sign, text)
    return text


def _plain_number(token: str) -> str:
    """ "7.50" is "7.5", "007" is "7"."""
    whole, _, decimals = token.partition(".")
    decimals = decimals.rstrip("0")
    whole = whole.lstrip("0") or "0"
    return f"{whole}.{decimals}" if decimals else whole


def _as_equation(parts: Sequence[str]) -> Iterator[str]:
    """The equation that numbers and signs make, if any; brackets around a single number are left out."""
    if "=" not in parts:
        return
    text = re.sub(r"\(([\d.]+)\)", r"\1", "".join(parts)).strip("*/^=%").rstrip("+-(")
    left, equals, right = text.partition("=")
    is_calculation = re.search(r"[\d)%][-+*/^]", left) or re.search(r"[\d)%][-+*/^]", right)
    if equals and re.search(r"\d", left) and re.search(r"\d", right) and is_calculation:
        yield text
