r"""Reads the calculations of a trace: its sequence of equations, however they are written.

"She has 3 apples + 4 apples = <<3+4=7>>7 apples, worth 7 \times $1.50 = $10.5" holds "3+4=7" and "7*1.5=10.5".
"""

import re

_ANNOTATION = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's for a calculator; it repeats the equation
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]{1,40})\}\s*\{([^{}]{1,40})\}")
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|textbf)\s*\{[^{}]{0,60}\}")
_SPELLINGS = (
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])|[×·]"), "*"),
    (re.compile(r"\\div(?![A-Za-z])|÷"), "/"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"(?<=[\d)])\s*[xX]\s*(?=[$(]*\d)"), "*"),
    (re.compile(r"\*\*+"), " "),  # bold
    (re.compile(r"\\[,;:!]|[$€£{}\[\]\\]"), " "),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
)
_TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<sign>[-+*/^=()%])|(?P<word>[A-Za-z][A-Za-z'.-]*)|(?P<end>\S|\n)"
)
MAX_WORDS = 4  # of a unit, between a number and the next sign: "3 red apples each + 4"


def equations(text: str) -> list[str]:
    """The equations of a text in order, with plain signs, without units and spaces.

    An equation has a sign of arithmetic and a result; "x = 7" is none. A chain, "3 + 4 = 7 = 14 / 2", is one.
    """
    if "=" not in text:
        return []
    found: list[str] = []
    parts: list[str] = []
    num_words = 0

    def finish() -> None:
        nonlocal num_words
        if (equation := _as_equation(parts)) is not None:
            found.append(equation)
        parts.clear()
        num_words = 0

    for match in _TOKEN.finditer(_plain(text)):
        kind, token = match.lastgroup, match.group()
        if kind == "word":
            num_words += 1
            if num_words > MAX_WORDS or not parts:
                finish()
        elif kind == "end":
            finish()
        elif kind == "number":
            if parts and (num_words or parts[-1][-1].isdigit() or parts[-1] in ")%"):
                finish()  # a number after a number begins another equation
            parts.append(_plain_number(token))
            num_words = 0
        else:
            parts.append(token)
            num_words = 0
    finish()
    return found


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


def _as_equation(parts: list[str]) -> str | None:
    """The equation that numbers and signs make, or None; brackets around a single number are left out."""
    text = re.sub(r"\(([\d.]+)\)", r"\1", "".join(parts)).strip("*/^=%").rstrip("+-(")
    left, equals, right = text.partition("=")
    is_calculation = re.search(r"[\d)%][-+*/^]", left) or re.search(r"[\d)%][-+*/^]", right)
    return text if equals and left and re.search(r"\d", left) and re.search(r"\d", right) and is_calculation else None
