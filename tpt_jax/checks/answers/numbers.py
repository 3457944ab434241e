"""Finds numbers in a text, and reads and compares them exactly.

Reads "$1,234.50", "1,30,000", "-3", "2 1/2", "½", "18.00", "50%", "1.5 million", "1e2", "4 × 10^3", "twenty-five" and
their LaTeX forms. Expressions are never evaluated.
"""

import dataclasses
import re
from collections.abc import Mapping
from fractions import Fraction

MAX_NUMBER_CHARACTERS = 60  # longer ones are skipped: no question has such an answer, and big integers are slow

# Signs and words that scale the number before them.
SCALES: Mapping[str, Fraction] = {
    "%": Fraction(1, 100),
    "percent": Fraction(1, 100),
    "k": Fraction(10**3),
    "dozen": Fraction(12),
    "dozens": Fraction(12),
    "hundred": Fraction(10**2),
    "thousand": Fraction(10**3),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
}

# Possessive quantifiers: a failed lookahead must not make the match shorter, or 12:43 would be read as 1.
_DECIMAL = (
    r"\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)(?:\.\d++)?+"  # 1,234.50 and also 1,30,000
    r"|\d++,\d{1,2}(?![\d,])"  # a decimal comma
    r"|\d++(?:\.\d++)?+|\.\d++"
)
NUMBER = re.compile(
    rf"""
    (?<![\w.^])(?<!\d:)
    (?:(?<![\d)%]\ )\b(?P<negative>negative|minus)\ )?
    (?P<sign>[-−–])?(?:[$£€₹]\s?)?(?P<minus>[-−])?
    (?P<digits>{_DECIMAL})(?::00)?(?!:\d|\d)
    (?:[eE](?P<exponent>[-+]?\d{{1,2}})(?!\d)
      |\s?(?:×|\*|x)\s?10\s?(?:\^|\*\*)\s?\{{?(?P<power>[-−]?\d{{1,2}})\}}?(?!\d))?
    (?:(?:\s(?:and\s)?(?P<numerator>\d++))?\s?/\s?(?P<denominator>\d++(?:\.\d++)?+)(?![\d/]))?
    (?:(?P<scale>k\b)|\s?(?P<percent>%|percent\b)|\s(?P<word>dozens?|hundred|thousand|million|billion|trillion)\b)?
    """,
    re.VERBOSE,
)

_LATEX_TO_PLAIN = (
    (re.compile(r"(\d)?\s*\\[dt]?frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}"), r"\1 \2/\3"),
    (re.compile(r"(\d)?\s*\\[dt]?frac\s*(\d)\s*(\d)"), r"\1 \2/\3"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{"), " "),
    (re.compile(r"\{,\}|\\,(?=\d{3})"), ","),
    (re.compile(r"\\(?:times|cdot)\b"), "×"),
    (re.compile(r"\\div\b"), "÷"),
    (re.compile(r"\\approx\b"), "="),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\[,;: ]|\\(?:left|right)\b|\^\s*\{?\\circ\}?"), " "),
)
_VULGAR_FRACTIONS = {
    **{"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5"},
    **{"⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"},
}
_TO_ASCII = str.maketrans({**{sign: f" {text}" for sign, text in _VULGAR_FRACTIONS.items()}, "≈": "=", "％": "%"})
_THOUSANDS_SEPARATOR = re.compile(r"(?<=\d)[\u00a0\u2009\u202f'’](?=\d{3}(?!\d))")

_BELOW_TWENTY = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBER_WORDS: Mapping[str, int] = {
    **{word: value for value, word in enumerate(_BELOW_TWENTY)},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
}
_MULTIPLIERS = {word: int(SCALES[word]) for word in ("hundred", "thousand", "million", "billion")}
# Words that make the number words before them part of something other than a whole number.
_NOT_WHOLE = frozenset(
    (
        *("half", "halves", "third", "thirds", "quarter", "quarters", "fourth", "fourths", "fifth", "fifths", "tenth"),
        *("tenths", "point", "dozen", "percent", "or", "to", "of", "plus", "minus", "times", "divided", "more", "less"),
    )
)
_WORD = re.compile(r"[a-z]+")


@dataclasses.dataclass(frozen=True, slots=True)
class Number:
    """A number read from a text.

    Attributes:
      value: the number as written, not scaled by its unit.
      unit: the sign or word that scales it, a key of SCALES; "" for none.
    """

    value: Fraction
    unit: str = ""

    def possible_values(self, question: str) -> frozenset[Fraction]:
        """The values it can stand for: 50% is 50 or 0.5; 3 million is 3 only if the question mentions millions."""
        if not self.unit:
            return frozenset((self.value,))
        scaled = self.value * SCALES[self.unit]
        both = self.unit in ("%", "percent") or (self.unit != "k" and self.unit in question.lower())
        return frozenset((self.value, scaled) if both else (scaled,))

    def equals(self, other: "Number", question: str = "") -> bool:
        """Whether both can stand for the same value in an answer to the question."""
        if self.unit and other.unit:
            return self.value * SCALES[self.unit] == other.value * SCALES[other.unit]
        return not self.possible_values(question).isdisjoint(other.possible_values(question))


def plain(text: str) -> str:
    """Rewrites LaTeX and Unicode forms of numbers in plain characters."""
    if "\\" in text or "{" in text:
        for pattern, replacement in _LATEX_TO_PLAIN:
            text = pattern.sub(replacement, text)
    if not text.isascii():
        text = _THOUSANDS_SEPARATOR.sub(",", text).translate(_TO_ASCII)
    return text


def find_numbers(text: str) -> list[tuple[re.Match[str], Number]]:
    """The numbers of a plain text and their matches, in order."""
    numbers = ((match, _read_match(match)) for match in NUMBER.finditer(text))
    return [(match, number) for match, number in numbers if number is not None]


def parse_number_words(text: str) -> Number | None:
    """Reads number words at the start of a text: "Twenty-five apples" is 25; None for "one of them" and "one half"."""
    words = _WORD.findall(text[:MAX_NUMBER_CHARACTERS].lower())
    is_negative = words[:1] in (["negative"], ["minus"])
    total = group = index = 0
    words = words[is_negative:]
    for index, word in enumerate([*words, ""]):
        if word in _NUMBER_WORDS:
            if group % 10 or (group % 100 and _NUMBER_WORDS[word] > 9):  # "one two"
                return None
            group += _NUMBER_WORDS[word]
        elif word == "hundred" and index:
            group *= 100
        elif word in _MULTIPLIERS and index:
            total, group = total + group * _MULTIPLIERS[word], 0
        elif word != "and" or not index or words[index - 1] not in _MULTIPLIERS:
            break
    if index == 0 or (words[index : index + 1] and words[index] in _NOT_WHOLE):
        return None
    if words[index : index + 1] == ["and"] and set(words[index + 1 : index + 3]) & (_NOT_WHOLE | _NUMBER_WORDS.keys()):
        return None
    return Number(Fraction(-(total + group) if is_negative else total + group))


def canonical(value: Fraction) -> str:
    """The canonical spelling of a number: "18", "-0.5", "1/3"."""
    cofactor = value.denominator
    for factor in (2, 5):
        while cofactor % factor == 0:
            cofactor //= factor
    if value.denominator == 1 or cofactor != 1:  # whole, or not a finite decimal
        return str(value)
    decimals = 0
    while (value * 10**decimals).denominator != 1:
        decimals += 1
    digits = f"{abs(value.numerator) * 10**decimals // value.denominator:0{decimals + 1}}"
    return f"{'-' if value < 0 else ''}{digits[:-decimals]}.{digits[-decimals:]}"


def _read_match(match: re.Match[str]) -> Number | None:
    """Reads a match of NUMBER; None if it is too long or divides by zero."""
    if len(match.group()) > MAX_NUMBER_CHARACTERS:
        return None
    digits, numerator, denominator = match["digits"], match["numerator"], match["denominator"]
    is_decimal_comma = digits.count(",") == 1 and len(digits) - digits.index(",") <= 3
    value = Fraction(digits.replace(",", "." if is_decimal_comma else ""))
    power = match["exponent"] or match["power"]
    if power is not None:
        value *= Fraction(10) ** int(power.replace("−", "-"))
    if denominator is not None:
        divisor = Fraction(denominator)
        if divisor == 0:
            return None
        value = value + Fraction(numerator) / divisor if numerator is not None else value / divisor
    is_negative = match["negative"] or match["sign"] or match["minus"]
    return Number(-value if is_negative else value, match["scale"] or match["percent"] or match["word"] or "")
