"""Numbers as people and models write them: found in a text, read exactly, compared exactly.

"$1,234.50", "1,30,000", "-3", "2 1/2", "½", "18.00", "50%", "1.5 million", "1e2", "4 × 10^3", "twenty-five"; of LaTeX
what stands for the same. Nothing is ever evaluated.
"""

import dataclasses
import re
from collections.abc import Mapping
from fractions import Fraction

LONGEST_NUMBER = 60  # characters; a longer one is no answer to any question, and big integers are slow

# What may follow a number and scale it.
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

# Possessive, so that what may not follow a number cannot be avoided by reading less of it: 12:43 is not 1 or 12.
_WHOLE = (
    r"\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)(?:\.\d++)?+"  # 1,234.50 and also 1,30,000
    r"|\d++,\d{1,2}(?![\d,])"  # a decimal comma
    r"|\d++(?:\.\d++)?+|\.\d++"
)
NUMBER = re.compile(
    rf"""
    (?<![\w.^])(?<!\d:)
    (?:(?<![\d)%]\ )\b(?P<negative>negative|minus)\ )?
    (?P<sign>[-−–])?(?:[$£€₹]\s?)?(?P<minus>[-−])?
    (?P<whole>{_WHOLE})(?::00)?(?!:\d|\d)
    (?:[eE](?P<exponent>[-+]?\d{{1,2}})(?!\d)
      |\s?(?:×|\*|x)\s?10\s?(?:\^|\*\*)\s?\{{?(?P<power>[-−]?\d{{1,2}})\}}?(?!\d))?
    (?:(?:\s(?:and\s)?(?P<mixed>\d++))?\s?/\s?(?P<under>\d++(?:\.\d++)?+)(?![\d/]))?
    (?:(?P<scale>k\b)|\s?(?P<percent>%|percent\b)|\s(?P<word>dozens?|hundred|thousand|million|billion|trillion)\b)?
    """,
    re.VERBOSE,
)

_LATEX = (
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
_VULGAR = {
    **{"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5"},
    **{"⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"},
}
_CHARACTERS = str.maketrans({**{sign: f" {text}" for sign, text in _VULGAR.items()}, "≈": "=", "％": "%"})
_THIN_SEPARATOR = re.compile(r"(?<=\d)[\u00a0\u2009\u202f'’](?=\d{3}(?!\d))")

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS: Mapping[str, int] = {
    **{word: value for value, word in enumerate(_UNITS)},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
}
_LARGE = {word: int(SCALES[word]) for word in ("hundred", "thousand", "million", "billion")}
# After number words: they are part of more than a whole number.
_MORE = frozenset(
    (
        *("half", "halves", "third", "thirds", "quarter", "quarters", "fourth", "fourths", "fifth", "fifths", "tenth"),
        *("tenths", "point", "dozen", "percent", "or", "to", "of", "plus", "minus", "times", "divided", "more", "less"),
    )
)
_WORD = re.compile(r"[a-z]+")


@dataclasses.dataclass(frozen=True, slots=True)
class Number:
    """A number that was read.

    Attributes:
      unit: the word or sign after it that scales it, a key of SCALES; "" for none.
    """

    value: Fraction
    unit: str = ""

    def readings(self, question: str) -> frozenset[Fraction]:
        """What it can mean: 50% is 0.5, and is 50; 3 million is 3 only where a question is about millions."""
        if not self.unit:
            return frozenset((self.value,))
        scaled = self.value * SCALES[self.unit]
        both = self.unit in ("%", "percent") or (self.unit != "k" and self.unit in question.lower())
        return frozenset((self.value, scaled) if both else (scaled,))

    def equals(self, other: "Number", question: str = "") -> bool:
        """Whether the two can mean the same in an answer to the question."""
        if self.unit and other.unit:
            return self.value * SCALES[self.unit] == other.value * SCALES[other.unit]
        return not self.readings(question).isdisjoint(other.readings(question))


def plain(text: str) -> str:
    """The text with LaTeX and Unicode forms of numbers in plain characters."""
    if "\\" in text or "{" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    if not text.isascii():
        text = _THIN_SEPARATOR.sub(",", text).translate(_CHARACTERS)
    return text


def find_numbers(text: str) -> list[tuple[re.Match[str], Number]]:
    """The numbers of a plain text, in order, and where they stand."""
    found = ((match, _value(match)) for match in NUMBER.finditer(text))
    return [(match, number) for match, number in found if number is not None]


def in_words(text: str) -> Number | None:
    """The whole number that a text begins with, in words: "Twenty-five apples"; None for "one of them", "one half"."""
    words = _WORD.findall(text[:LONGEST_NUMBER].lower())
    is_negative = words[:1] in (["negative"], ["minus"])
    whole = part = place = 0
    words = words[is_negative:]
    for place, word in enumerate([*words, ""]):
        if word in _WORDS:
            if part % 10 or (part % 100 and _WORDS[word] > 9):  # "one two"
                return None
            part += _WORDS[word]
        elif word == "hundred" and place:
            part *= 100
        elif word in _LARGE and place:
            whole, part = whole + part * _LARGE[word], 0
        elif word != "and" or not place or words[place - 1] not in _LARGE:
            break
    if place == 0 or (words[place : place + 1] and words[place] in _MORE):
        return None
    if words[place : place + 1] == ["and"] and set(words[place + 1 : place + 3]) & (_MORE | _WORDS.keys()):
        return None
    return Number(Fraction(-(whole + part) if is_negative else whole + part))


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


def _value(match: re.Match[str]) -> Number | None:
    if len(match.group()) > LONGEST_NUMBER:
        return None
    whole, mixed, under = match["whole"], match["mixed"], match["under"]
    is_decimal_comma = whole.count(",") == 1 and len(whole) - whole.index(",") <= 3
    value = Fraction(whole.replace(",", "." if is_decimal_comma else ""))
    power = match["exponent"] or match["power"]
    if power is not None:
        value *= Fraction(10) ** int(power.replace("−", "-"))
    if under is not None:
        divisor = Fraction(under)
        if divisor == 0:
            return None
        value = value + Fraction(mixed) / divisor if mixed is not None else value / divisor
    is_negative = match["negative"] or match["sign"] or match["minus"]
    return Number(-value if is_negative else value, match["scale"] or match["percent"] or match["word"] or "")
