r"""The math checker: final answers in LaTeX, without what changes their look alone, compared as mathematics.

What is decided here, before the math-verify library is asked, has one reason each:
  - equal spellings and plain numbers, which are most answers: they cost microseconds, a parse costs milliseconds;
  - units: it takes the t of 4t for one, and drops all: m is not cm where the reference has one, a million is no unit;
  - words of four letters or more: the library calls \text{listen} a symbol and "silent" a product of six;
  - digits in a base: it reads 101_2 and 101_3 as 101.
"""

import functools
import re
from fractions import Fraction

from tpt_jax.checks.answers.final_answer import LONGEST_ANSWER, final_answer, without_delimiters
from tpt_jax.checks.answers.numbers import SCALES, canonical
from tpt_jax.checks.answers.numeric import parse_number
from tpt_jax.checks.answers.symbolic import are_equal_formulas, formula_spelling, is_too_deep
from tpt_jax.records import Question, Verdict

SHORTEST_WORD = 4  # letters with no \text around them; fewer may be variables that are multiplied
LONGEST_SPELLING = 200  # characters of an answer as a verdict names it

_SCALE = "dozen|hundred|thousand|million|billion"
_UNITS = "cm|mm|km|kg|mg|ml|mL|ft|in|lbs?|mph|sec|min|hrs?"  # with no \\text around them; longer words need no list
_SIMPLER = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[−–]", "-"),
        (r"</?[A-Za-z]+\s*/?>|\\(?:scriptsize|small|large|Large|bf|underline|color\s*\{\w+\})(?![A-Za-z])", ""),
        (r"(?<=\d),\s*\\!\s*(?=\d{3})|\\!\s*|\{,\}(?=\d{3})\s*|\\displaystyle(?![a-z])", ""),
        (r"√\s*(?:(\d+|[a-z])|\(([^()]*)\))", r"\\sqrt{\1\2}"),
        (r"∞", r"\\infty "),
        (r"²", "^2"),
        (r"³", "^3"),
        (r"½", r"\\frac{1}{2}"),
        (r"¼", r"\\frac{1}{4}"),
        (r"¾", r"\\frac{3}{4}"),
        (
            r"(?<![\d.,_^])\d{1,3}(?:(?:\\,|\\ |\s)\d{3})+(?![\d,]|\s+\d)",
            lambda match: re.sub(r"\D", "", match.group()),
        ),
        (r"\s*(?:\\?%|\b(?:percent|pct)\b)", r"\\%"),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-z])\.?", ""),
        (r"\\[dtc]frac(?![a-z])", r"\\frac"),
        (r"\\math(?:rm|it|bf)\s*\{(\w)\}", r"\1"),
        (r"\\(?:mbox|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit)(?=\s*\{)", r"\\text"),
        (r"\\text\s*\{([^{}]*?)\b(?:or|and)\b([^{}]*)\}", r"\\text{\1},\2"),
        (
            rf"(?<![\d.,/])(\d+(?:,\d{{3}})*(?:\.\d+)?)(\s*\\text\s*\{{)?\s*\b((?i:{_SCALE}))s?\b",
            lambda match: _scaled(match),
        ),
        (r"\\text\s*\{\s*,?\s*\}", ""),
        (r"\\text\s*\{\s*(?:[Nn]egative|[Mm]inus)\s*\}\s*|\b(?:negative|minus)\s+(?=[\d\\.])", "-"),
        (r"^\s*(?:\\approx(?![a-z])|≈)\s*|(?<=\S)\s*(?:\\approx(?![a-z])|≈).*$", ""),  # 1/3, of 1/3 and about 0.33
        (r"^\s*(?:\\text\s*\{(?![^{}]*\bnot\b)[^{}]*\b(?:is|are|equals):?\s*\}|=)\s*(?=\S)", ""),
        (r"^\*\*(.*)\*\*$|^\{([^{}\\]*)\}$", r"\1\2"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-z])|°", ""),
        (r"\\\$|(?<!\\)\$", ""),
        (r"(?<!\\)\\(?:q?quad(?![a-z])|[,;: ])|~", " "),
        (r"(?<=\d)(?<![_^]\d)\s+(?=\d+(?!\d*/))", ";"),  # 5 6 are two numbers; 5 1/2 is one, and so is \log_2 8
        (r",\s*,", ","),
        (r"[\s.,;]+$", ""),
    )
)
_NO_UNIT = rf"(?![^{{}}]*\b(?i:is|are|was|not|no|wrong|incorrect|times|less|more|least|most|half|{_SCALE}|trillion)\b)"
_UNIT = re.compile(
    rf"(?<=\S)\s*\\text\s*\{{{_NO_UNIT}[^{{}}\d]*\}}(?:\s*\^\s*\{{?\d\}}?)?$"
    rf"|(?<=\d)\s*(?:{_UNITS})(?:\s*\^\s*\{{?\d\}}?)?$|(?<=[\d}}]){_NO_UNIT}(?:\s+[A-Za-z]{{4,}})+$"
)
_UNIT_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]+")
_UNIT_NAMES = {
    name: names.split()[0]
    for names in (
        *("mm millimeter millimetre", "cm centimeter centimetre", "m meter metre", "km kilometer kilometre"),
        *("in inch inche", "ft foot feet", "yd yard", "mi mile", "mg milligram", "g gram", "kg kilogram", "lb pound"),
        *("oz ounce", "s sec second", "min minute", "h hr hour", "day", "week", "month", "year", "l liter litre"),
        *("ml milliliter millilitre", "cent", "dollar", "am", "pm"),
    )
    for name in names.split()
}
_FRACTION = re.compile(r"(-?)\\frac(?:\{(-?\d+)\}\{(-?\d+)\}|(\d)(\d))")
_NUMBER = re.compile(r"-?(?:\d+|\d{1,3}(?:,\d{3})+|\d+ \d+/\d+|\d+/\d+|(?:\d+|\d{1,3}(?:,\d{3})+)?\.\d+)")
_REPEATING = re.compile(r"(-?)(\d*)\.(\d*)\\overline\{(\d+)\}")
_WORDS = re.compile(
    r"\\text\s*\{\s*\(?([A-Za-z][A-Za-z\s'-]*?)\)?\s*\}|\(?([A-Za-z])\)?|([A-Za-z]{3,}(?:[ -][A-Za-z]+)*)"
)
_BASED = re.compile(r"([0-9A-Fa-f]+)_\{?(\d{1,2})\}?")


def check_math(question: Question, completion: str) -> Verdict:
    r"""Compares final answers as mathematics: \frac12, 0.5 and 2/4 are one; strict where the answer is in \boxed{}."""
    reference, unit = _reference(question.answer)
    if not reference:
        return Verdict.unreadable()
    found = final_answer(completion)
    if found is None:
        return Verdict.wrong("no answer")
    if len(found.text) > LONGEST_ANSWER or is_too_deep(found.text):
        return Verdict.wrong("absurd answer")
    answer, its_unit = _simple(found.text)
    if not answer:
        return Verdict.wrong("no answer")
    if found.taken_back and (len(found.later) > LONGEST_ANSWER or not are_equal(answer, _simple(found.later)[0])):
        return Verdict.wrong("taken back")
    if not (unit <= its_unit or its_unit <= unit) or not are_equal(reference, answer):
        return Verdict.wrong("", spelling(answer))
    return Verdict(spelling(reference), strict=found.boxed, correct=True)


def are_equal(reference: str, answer: str) -> bool:
    """Whether an answer is the reference, both simplified LaTeX; not symmetric: the reference's form counts.

    A reference in base 2 may be met by its bare digits, and x = 5 by 5; a set is not met by a pair.
    """
    if _compact(reference) == _compact(answer):
        return True
    wanted, given = _number(reference), _number(answer)
    if wanted is not None and given is not None:
        if wanted == given:
            return True
        if "." not in reference:
            return False
    several, others = _numbers(reference), _numbers(answer)
    if several is not None and others is not None and "." not in reference:
        return several == others  # to the library 1, 1, 2 and 1, 2 are the same set
    if ("%" in reference) != ("%" in answer):
        bare, other = reference.replace(r"\%", ""), answer.replace(r"\%", "")
        if are_equal(bare, other):
            return True
        share, other_share = _number(bare), _number(other)
        if share is not None and other_share is not None:
            return share == 100 * other_share if "%" in reference else other_share == 100 * share
    in_base = _based(reference), _based(answer)
    if any(in_base):
        return _are_equal_in_bases(*in_base, wanted, given)
    words = _words(reference)
    if words is not None and (reference.startswith(r"\text") or len(words) >= SHORTEST_WORD):
        return words == _words(answer)
    return are_equal_formulas(reference, answer)


def _numbers(text: str) -> list[Fraction] | None:
    """The values of several plain numbers with commas between them, sorted; None for anything else."""
    values = [_number(part.strip()) for part in text.split(",")]
    known = [value for value in values if value is not None]
    return sorted(known) if len(known) == len(values) > 1 else None


def spelling(answer: str) -> str:
    """A short name for an answer, the same for most equal ones: votes count it."""
    value = _number(answer)
    if value is not None:
        return canonical(value)
    return (formula_spelling(answer) or _compact(answer))[:LONGEST_SPELLING]


@functools.lru_cache(maxsize=256)
def _reference(text: str) -> tuple[str, frozenset[str]]:
    if len(text) > LONGEST_ANSWER or r"\boxed" in text:
        found = final_answer(text)
        text = found.text if found is not None and len(found.text) <= LONGEST_ANSWER else ""
    return _simple(text)


def _simple(text: str) -> tuple[str, frozenset[str]]:
    """Without what changes the look and not the value; and the known units of measurement that stood after it."""
    text = without_delimiters(text.strip())
    for pattern, replacement in _SIMPLER:
        text = pattern.sub(replacement, text)
    unit = _UNIT.search(text)
    if unit is None:
        return text.strip(), frozenset()
    words = (word.casefold() for word in _UNIT_WORD.findall(unit.group().replace(".", "")))
    names = (_UNIT_NAMES.get(word) or _UNIT_NAMES.get(word.removesuffix("s")) for word in words)
    power = re.findall(r"\^\s*\{?(\d)", unit.group())
    return text[: unit.start()].strip(" .,;"), frozenset(filter(None, (*names, *power)))


def _scaled(match: re.Match[str]) -> str:
    """10000000 for 10 million, and what was opened between the two."""
    return canonical(Fraction(match[1].replace(",", "")) * SCALES[match[3].lower()]) + (match[2] or " ")


def _compact(text: str) -> str:
    """For comparing spellings."""
    return re.sub(r"\s+", "", _FRACTION.sub(_as_fraction, text)).casefold()


def _as_fraction(match: re.Match[str]) -> str:
    return rf"{match[1]}\frac{{{match[2] or match[4]}}}{{{match[3] or match[5]}}}"


def _number(text: str) -> Fraction | None:
    """The value of what is a number and nothing else."""
    if len(text) > LONGEST_SPELLING:
        return None
    if fraction := _FRACTION.fullmatch(text):
        upper, under = Fraction(fraction[2] or fraction[4]), Fraction(fraction[3] or fraction[5])
        return None if under == 0 else (-1 if fraction[1] else 1) * upper / under
    if repeating := _REPEATING.fullmatch(text):
        sign, whole, fixed, period = repeating.groups()
        value = Fraction(f"{whole or 0}.{fixed or 0}") + Fraction(
            int(period), (10 ** len(period) - 1) * 10 ** len(fixed)
        )
        return -value if sign else value
    number = parse_number(text) if _NUMBER.fullmatch(text) else None
    return None if number is None else number.value


def _words(text: str) -> str | None:
    r"""\text{Evelyn}, Evelyn, (C) as bare letters; None where there is more than words."""
    match = _WORDS.fullmatch(text)
    return re.sub(r"[\s'-]+", " ", next(filter(None, match.groups()))).strip().casefold() if match else None


def _based(text: str) -> tuple[str, int] | None:
    """Digits and their base."""
    match = _BASED.fullmatch(text.replace(" ", "").replace(r"_{\text{two}}", "_2"))
    return (match[1].lstrip("0") or "0", int(match[2])) if match else None


def _are_equal_in_bases(
    reference: tuple[str, int] | None, answer: tuple[str, int] | None, wanted: Fraction | None, given: Fraction | None
) -> bool:
    """The same digits in the same base; the base may be left out of an answer, not put into one that has none.

    Args:
      wanted, given: the two as plain numbers, where they are such.
    """
    if reference is None:
        return answer is not None and wanted is not None and _value(*answer) == wanted
    if answer is not None:
        return reference == answer
    return given is not None and str(given) == reference[0]


def _value(digits: str, base: int) -> int | None:
    try:
        return int(digits, base)
    except ValueError:  # a digit that the base lacks, a base of 1
        return None
