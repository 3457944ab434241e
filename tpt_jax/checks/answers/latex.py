r"""The math checker: normalises final answers in LaTeX and compares them as mathematics.

These cases are decided here, before the math-verify library, each for one reason:
  - Equal spellings and plain numbers are most answers, and take microseconds; a parse takes milliseconds.
  - Units: the library takes the t of 4t for a unit and drops every unit. Here m differs from cm, and million scales.
  - Words of four letters or more: the library reads \text{listen} as a symbol and "silent" as a product of six.
  - Digits in a base: the library reads 101_2 and 101_3 as 101.
"""

import functools
import re
from fractions import Fraction

from tpt_jax.checks.answers.final_answer import MAX_ANSWER_CHARACTERS, final_answer, without_delimiters
from tpt_jax.checks.answers.numbers import SCALES, canonical
from tpt_jax.checks.answers.numeric import parse_number
from tpt_jax.checks.answers.symbolic import are_equal_formulas, formula_spelling, is_too_deep
from tpt_jax.records import Question, Verdict

MIN_WORD_LETTERS = 4  # letters outside \text; fewer may be a product of variables
MAX_SPELLING_CHARACTERS = 200  # of an answer in a verdict

_SCALES = "dozen|hundred|thousand|million|billion"
_UNIT_ABBREVIATIONS = "cm|mm|km|kg|mg|ml|mL|ft|in|lbs?|mph|sec|min|hrs?"  # outside \text; longer words need no list
_SIMPLIFICATIONS = tuple(
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
            rf"(?<![\d.,/])(\d+(?:,\d{{3}})*(?:\.\d+)?)(\s*\\text\s*\{{)?\s*\b((?i:{_SCALES}))s?\b",
            lambda match: _apply_scale(match),
        ),
        (r"\\text\s*\{\s*,?\s*\}", ""),
        (r"\\text\s*\{\s*(?:[Nn]egative|[Mm]inus)\s*\}\s*|\b(?:negative|minus)\s+(?=[\d\\.])", "-"),
        (r"^\s*(?:\\approx(?![a-z])|≈)\s*|(?<=\S)\s*(?:\\approx(?![a-z])|≈).*$", ""),  # 1/3 \approx 0.33 is 1/3
        (r"^\s*(?:\\text\s*\{(?![^{}]*\bnot\b)[^{}]*\b(?:is|are|equals):?\s*\}|=)\s*(?=\S)", ""),
        (r"^\*\*(.*)\*\*$|^\{([^{}\\]*)\}$", r"\1\2"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-z])|°", ""),
        (r"\\\$|(?<!\\)\$", ""),
        (r"(?<!\\)\\(?:q?quad(?![a-z])|[,;: ])|~", " "),
        (r"(?<=\d)(?<![_^]\d)\s+(?=\d+(?!\d*/))", ";"),  # 5 6 is two numbers; 5 1/2 is one, and so is \log_2 8
        (r",\s*,", ","),
        (r"[\s.,;]+$", ""),
    )
)
_NOT_UNIT = (
    rf"(?![^{{}}]*\b(?i:is|are|was|not|no|wrong|incorrect|times|less|more|least|most|half|{_SCALES}|trillion)\b)"
)
_UNIT = re.compile(
    rf"(?<=\S)\s*\\text\s*\{{{_NOT_UNIT}[^{{}}\d]*\}}(?:\s*\^\s*\{{?\d\}}?)?$"
    rf"|(?<=\d)\s*(?:{_UNIT_ABBREVIATIONS})(?:\s*\^\s*\{{?\d\}}?)?$|(?<=[\d}}]){_NOT_UNIT}(?:\s+[A-Za-z]{{4,}})+$"
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
_REPEATING_DECIMAL = re.compile(r"(-?)(\d*)\.(\d*)\\overline\{(\d+)\}")
_WORDS = re.compile(
    r"\\text\s*\{\s*\(?([A-Za-z][A-Za-z\s'-]*?)\)?\s*\}|\(?([A-Za-z])\)?|([A-Za-z]{3,}(?:[ -][A-Za-z]+)*)"
)
_DIGITS_IN_BASE = re.compile(r"([0-9A-Fa-f]+)_\{?(\d{1,2})\}?")


def check_math(question: Question, completion: str) -> Verdict:
    r"""Compares final answers as mathematics: \frac12, 0.5 and 2/4 are equal. Strict if the answer is in \boxed{}."""
    reference, reference_unit = _reference(question.answer)
    if not reference:
        return Verdict.unreadable()
    final = final_answer(completion)
    if final is None:
        return Verdict.wrong("no answer")
    if len(final.text) > MAX_ANSWER_CHARACTERS or is_too_deep(final.text):
        return Verdict.wrong("absurd answer")
    answer, answer_unit = _simplify(final.text)
    if not answer:
        return Verdict.wrong("no answer")
    if final.taken_back and (
        len(final.later) > MAX_ANSWER_CHARACTERS or not are_equal(answer, _simplify(final.later)[0])
    ):
        return Verdict.wrong("taken back")
    if not (reference_unit <= answer_unit or answer_unit <= reference_unit) or not are_equal(reference, answer):
        return Verdict.wrong("", spelling(answer))
    return Verdict(spelling(reference), strict=final.boxed, correct=True)


def are_equal(reference: str, answer: str) -> bool:
    """Whether an answer equals the reference, both as simplified LaTeX. Not symmetric: the reference sets the form.

    Bare digits match a reference in base 2, and 5 matches x = 5; a pair does not match a set.
    """
    if _compact(reference) == _compact(answer):
        return True
    reference_value, answer_value = _parse_number(reference), _parse_number(answer)
    if reference_value is not None and answer_value is not None:
        if reference_value == answer_value:
            return True
        if "." not in reference:
            return False
    reference_values, answer_values = _parse_numbers(reference), _parse_numbers(answer)
    if reference_values is not None and answer_values is not None and "." not in reference:
        return reference_values == answer_values  # the library takes 1, 1, 2 and 1, 2 for the same set
    if ("%" in reference) != ("%" in answer):
        bare_reference, bare_answer = reference.replace(r"\%", ""), answer.replace(r"\%", "")
        if are_equal(bare_reference, bare_answer):
            return True
        reference_share, answer_share = _parse_number(bare_reference), _parse_number(bare_answer)
        if reference_share is not None and answer_share is not None:
            return reference_share == 100 * answer_share if "%" in reference else answer_share == 100 * reference_share
    in_base = _parse_based(reference), _parse_based(answer)
    if any(in_base):
        return _are_equal_in_bases(*in_base, reference_value, answer_value)
    words = _parse_words(reference)
    if words is not None and (reference.startswith(r"\text") or len(words) >= MIN_WORD_LETTERS):
        return words == _parse_words(answer)
    return are_equal_formulas(reference, answer)


def _parse_numbers(text: str) -> list[Fraction] | None:
    """The sorted values of two or more plain numbers separated by commas; None for anything else."""
    values = [_parse_number(item.strip()) for item in text.split(",")]
    known = [value for value in values if value is not None]
    return sorted(known) if len(known) == len(values) > 1 else None


def spelling(answer: str) -> str:
    """A short spelling that most equal answers share, for majority votes."""
    value = _parse_number(answer)
    if value is not None:
        return canonical(value)
    return (formula_spelling(answer) or _compact(answer))[:MAX_SPELLING_CHARACTERS]


@functools.lru_cache(maxsize=256)
def _reference(text: str) -> tuple[str, frozenset[str]]:
    """Simplifies a reference answer; of a whole solution only its final answer counts."""
    if len(text) > MAX_ANSWER_CHARACTERS or r"\boxed" in text:
        final = final_answer(text)
        text = final.text if final is not None and len(final.text) <= MAX_ANSWER_CHARACTERS else ""
    return _simplify(text)


def _simplify(text: str) -> tuple[str, frozenset[str]]:
    """Removes markup that does not change the value, and the unit; returns the rest and the known units after it."""
    text = without_delimiters(text.strip())
    for pattern, replacement in _SIMPLIFICATIONS:
        text = pattern.sub(replacement, text)
    unit = _UNIT.search(text)
    if unit is None:
        return text.strip(), frozenset()
    words = (word.casefold() for word in _UNIT_WORD.findall(unit.group().replace(".", "")))
    names = (_UNIT_NAMES.get(word) or _UNIT_NAMES.get(word.removesuffix("s")) for word in words)
    power = re.findall(r"\^\s*\{?(\d)", unit.group())
    return text[: unit.start()].strip(" .,;"), frozenset(filter(None, (*names, *power)))


def _apply_scale(match: re.Match[str]) -> str:
    r"""Spells "10 million" as 10000000, and keeps a \text{ opened between the two words."""
    return canonical(Fraction(match[1].replace(",", "")) * SCALES[match[3].lower()]) + (match[2] or " ")


def _compact(text: str) -> str:
    """Normalises spaces, case and fractions, to compare spellings."""
    return re.sub(r"\s+", "", _FRACTION.sub(_as_fraction, text)).casefold()


def _as_fraction(match: re.Match[str]) -> str:
    r"""Spells a _FRACTION match with braces: \frac12 as \frac{1}{2}."""
    return rf"{match[1]}\frac{{{match[2] or match[4]}}}{{{match[3] or match[5]}}}"


def _parse_number(text: str) -> Fraction | None:
    """The value of a text that is one plain number; None for anything else."""
    if len(text) > MAX_SPELLING_CHARACTERS:
        return None
    if fraction := _FRACTION.fullmatch(text):
        numerator, denominator = Fraction(fraction[2] or fraction[4]), Fraction(fraction[3] or fraction[5])
        return None if denominator == 0 else (-1 if fraction[1] else 1) * numerator / denominator
    if repeating := _REPEATING_DECIMAL.fullmatch(text):
        sign, integer, fixed, period = repeating.groups()
        value = Fraction(f"{integer or 0}.{fixed or 0}") + Fraction(
            int(period), (10 ** len(period) - 1) * 10 ** len(fixed)
        )
        return -value if sign else value
    number = parse_number(text) if _NUMBER.fullmatch(text) else None
    return None if number is None else number.value


def _parse_words(text: str) -> str | None:
    r"""Normalises an answer in words, such as \text{Evelyn}, Evelyn or (C); None if it is not only words."""
    match = _WORDS.fullmatch(text)
    return re.sub(r"[\s'-]+", " ", next(filter(None, match.groups()))).strip().casefold() if match else None


def _parse_based(text: str) -> tuple[str, int] | None:
    """Digits without leading zeros, and their base; None if there is no base."""
    match = _DIGITS_IN_BASE.fullmatch(text.replace(" ", "").replace(r"_{\text{two}}", "_2"))
    return (match[1].lstrip("0") or "0", int(match[2])) if match else None


def _are_equal_in_bases(
    reference: tuple[str, int] | None,
    answer: tuple[str, int] | None,
    reference_value: Fraction | None,
    answer_value: Fraction | None,
) -> bool:
    """Compares digits and bases. The answer may omit the reference's base; without one, values are compared.

    Args:
      reference_value: the reference as a plain number; None if it is not one.
      answer_value: the answer as a plain number; None if it is not one.
    """
    if reference is None:
        return answer is not None and reference_value is not None and _value_in_base(*answer) == reference_value
    if answer is not None:
        return reference == answer
    return answer_value is not None and str(answer_value) == reference[0]


def _value_in_base(digits: str, base: int) -> int | None:
    """The value of digits in a base; None if they are invalid."""
    try:
        return int(digits, base)
    except ValueError:  # a digit outside the base, or a base of 1
        return None
