r"""Final answers in LaTeX: found in a trace, compared as mathematics by the math-verify library.

Only the library's LaTeX parser and its comparison are used, and neither evaluates text as Python. Its time limits are
not: they are signals, which a hanging C function ignores; a CheckerPool kills the process instead.

What is decided before the library is asked, or against it, has one reason each:
  - equal spellings and plain numbers, which are most answers: they cost microseconds, a parse costs milliseconds;
  - units: it takes the t of 4t for one, and drops all: m is not cm where the reference has one, a million is no unit;
  - words of four letters or more: the library calls \text{listen} a symbol and "silent" a product of six;
  - digits in a base: it reads 101_2 and 101_3 as 101;
  - a set in braces is no pair in parentheses;
  - 1/2004! is not 1/2006!, 3.1415926 is not \pi: it compares sizes after rounding to 6 places;
  - expressions whose value has millions of digits.
"""

import functools
import re
from fractions import Fraction
from typing import Any

# Slow to import, and imported with this file all the same: a worker that is ready must not spend the first trace's
# seconds on it.
from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended import NormalizationConfig, normalize_latex
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy  # the parser itself: the function takes none
from math_verify.grader import should_treat_as_complex, sympy_expr_eq
from math_verify.parser import parse_latex_cached

from tpt_jax.prune.answers import parse_number
from tpt_jax.prune.final_answer import LONGEST_ANSWER, final_answer, without_delimiters
from tpt_jax.prune.numbers import SCALES, canonical
from tpt_jax.records import Question, Verdict

DEEPEST = 12  # brackets within brackets; the parser's time doubles with every other one
LARGEST = 10_000.0  # digits of a value or of a power's parts, about
LARGEST_FACTORIAL = 5_000
SHORTEST_WORD = 4  # letters with no \text around them; fewer may be variables that are multiplied
LONGEST_SPELLING = 200  # characters of an answer as a verdict names it
TOLERANCE = 1e-5  # relative, where the reference is a decimal; the library's own is absolute, 6 places
DIGITS = 30  # that values are worked out to
EXACT = 1e-14  # relative, where it is none: 3.1415926 is not \pi; evalf's own noise is far below

NORMALISED = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)

_SCALE = "dozen|hundred|thousand|million|billion"
_UNITS = "cm|mm|km|kg|mg|ml|mL|ft|in|lbs?|mph|sec|min|hrs?"  # with no \\text around them; longer words need no list
_SIMPLER = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[−–]", "-"),
        (r"</?[A-Za-z]+\s*/?>|\\(?:scriptsize|small|large|Large|bf|underline|color\s*\{\w+\})(?![A-Za-z])", ""),
        (r"\\!\s*|\{,\}(?=\d{3})\s*|\\displaystyle(?![a-z])", ""),
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
_NO_UNIT = rf"(?![^{{}}]*\b(?i:is|are|was|not|no|wrong|incorrect|{_SCALE}|trillion)\b)"
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
_INDEXED_DIGITS = re.compile(r"\d\s*_\s*\{?\s*[A-Za-z]")  # 10_a, which the library reads as 10
_BASED = re.compile(r"([0-9A-Fa-f]+)_\{?(\d{1,2})\}?")


def check_math(question: Question, completion: str) -> Verdict:
    r"""Compares final answers as mathematics: \frac12, 0.5 and 2/4 are one; strict where the answer is in \boxed{}."""
    reference, unit = _reference(question.answer)
    if not reference:
        return Verdict.not_known("unreadable reference answer")
    found = final_answer(completion)
    if found is None:
        return Verdict.wrong("no answer")
    if len(found.text) > LONGEST_ANSWER or _depth(found.text) > DEEPEST:
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
    numbers = _number(reference), _number(answer)
    if numbers[0] is not None and numbers[1] is not None:
        if numbers[0] == numbers[1]:
            return True
        if "." not in reference:
            return False
    if ("%" in reference) != ("%" in answer):
        bare, other = reference.replace(r"\%", ""), answer.replace(r"\%", "")
        if are_equal(bare, other):
            return True
        values = _number(bare), _number(other)
        if values[0] is not None and values[1] is not None:
            return values[0] == 100 * values[1] if "%" in reference else values[1] == 100 * values[0]
    based = _based(reference), _based(answer)
    if based[0] or based[1]:
        return _are_equal_in_bases(based[0], based[1], numbers)
    words = _words(reference)
    if words is not None and (reference.startswith(r"\text") or len(words) >= SHORTEST_WORD):
        return words == _words(answer)
    return _are_equal_to_sympy(reference, answer)


def spelling(answer: str) -> str:
    """A short name for an answer, the same for most equal ones: votes count it."""
    value = _number(answer)
    if value is not None:
        return canonical(value)
    parsed = _parse(answer)
    text = _compact(answer) if parsed is None or _is_absurd(parsed) else str(parsed)
    return text[:LONGEST_SPELLING]


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
    return text[: unit.start()].strip(" .,;"), frozenset(filter(None, names))


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
    reference: tuple[str, int] | None, answer: tuple[str, int] | None, numbers: tuple[Fraction | None, Fraction | None]
) -> bool:
    """The same digits in the same base; the base may be left out of an answer, not put into one that has none."""
    if reference is None:
        return answer is not None and numbers[0] is not None and _value(*answer) == numbers[0]
    if answer is not None:
        return reference == answer
    return numbers[1] is not None and str(numbers[1]) == reference[0]


def _value(digits: str, base: int) -> int | None:
    try:
        return int(digits, base)
    except ValueError:  # a digit that the base lacks, a base of 1
        return None


def _are_equal_to_sympy(reference: str, answer: str) -> bool:
    if _is_set(reference) != _is_set(answer) and _is_pair(reference) != _is_pair(answer):
        return False
    tolerance = TOLERANCE if "." in reference else EXACT
    left, right = _parse(reference), _parse(answer)
    if left is None or right is None or _is_absurd(left) or _is_absurd(right):
        return False
    try:
        if "%" not in reference + answer and _differ(left, right, tolerance):
            return False
        if sympy_expr_eq(left, right, float_rounding=6, numeric_precision=15, allow_set_relation_comp=True):
            return "%" in reference + answer or _are_close(left, right, tolerance)
        return _is_value(left) and _is_value(right) and bool(left.doit() == right.doit())  # 4^1002 and 2^2004
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RecursionError, TypeError, ValueError):
        return False  # what sympy raises where it knows no comparison


def _is_set(text: str) -> bool:
    return text.startswith(r"\{") and text.endswith(r"\}")


def _is_pair(text: str) -> bool:
    return text.startswith("(") and text.endswith(")") and "," in text


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> Any:
    """A sympy object that is not evaluated yet; None where the text is no formula."""
    if _depth(text) > DEEPEST or _INDEXED_DIGITS.search(text):
        return None
    normalised = normalize_latex(text, NORMALISED)
    try:
        return _QuickParser(is_real=not should_treat_as_complex(normalised)).parse(normalised)
    except MemoryError:
        raise
    except Exception:  # the parser raises bare Exceptions
        return _parse_slowly(normalised)


def _parse_slowly(normalised: str) -> Any:
    try:
        return parse_latex_cached(normalised)
    except MemoryError:
        raise
    except Exception:
        return None


class _QuickParser(_Latex2Sympy):
    """The library's, three times as fast: it looks ahead without the context of the rules that called.

    What it reads so is what it reads with the context; what it cannot read so, it may read with it.
    https://github.com/antlr/antlr4/blob/4.13.2/runtime/Java/src/org/antlr/v4/runtime/atn/PredictionMode.java
    """

    def create_parser(self, latex_str: str) -> Any:
        parser = super().create_parser(latex_str)
        parser._interp.predictionMode = PredictionMode.SLL  # as ANTLR's documentation sets it
        return parser


def _depth(text: str) -> int:
    """Of brackets."""
    deepest = depth = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest


def _is_absurd(expression: Any) -> bool:
    """Whether a power or a factorial in it is too large to be worked out."""
    return _digits(expression) > LARGEST


def _digits(expression: Any) -> float:
    """An upper bound, about, for the decimal digits of the value and of each part's; variables count as 10."""
    from sympy import Number, Pow, factorial

    if isinstance(expression, Number):
        return float(len(str(expression)))
    parts = [_digits(part) for part in getattr(expression, "args", ())]
    if max(parts, default=0.0) <= LARGEST:  # or what is inside must not be worked out either
        if isinstance(expression, Pow):
            return max(*parts, parts[0] * _size(expression.exp))
        if isinstance(expression, factorial):
            return parts[0] if _size(expression.args[0]) <= LARGEST_FACTORIAL else float("inf")
    return sum(parts) if parts else 1.0


def _size(expression: Any) -> float:
    """The absolute value where it is a number; 1 where it is none."""
    if not _is_value(expression):
        return 1.0
    try:
        return abs(complex(expression.evalf(5)))
    except (OverflowError, TypeError, ValueError):
        return float("inf")


def _differ(left: Any, right: Any, tolerance: float) -> bool:
    """Whether two expressions have different values at a point; to find that out the library simplifies for long."""
    from sympy import Expr, Rational, Symbol

    if any(not isinstance(side, Expr) or isinstance(side, Symbol) for side in (left, right)):
        return False  # sets and relations; a symbol may be a word
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    point = {symbol: Rational(37 + 10 * index, 53) for index, symbol in enumerate(symbols)}
    values = [side.evalf(DIGITS, subs=point) for side in (left, right)]
    if not all(value.is_number and value.is_finite for value in values):
        return False
    return bool(abs(values[0] - values[1]) > tolerance * max(1, *map(abs, values)))


def _is_value(expression: Any) -> bool:
    return getattr(expression, "is_number", False)


def _are_close(left: Any, right: Any, tolerance: float) -> bool:
    """False where they are numbers, or hold numbers, that differ though they round alike."""
    if left == right:
        return True
    parts = _parts(left), _parts(right)
    if parts[0] and parts[1]:
        return all(any(_are_close(one, other, tolerance) for other in parts[1]) for one in parts[0])
    if hasattr(left, "rhs") != hasattr(right, "rhs"):  # x = 5 and 5
        left, right = (getattr(side, "rhs", side) for side in (left, right))
    if not _is_value(left) or not _is_value(right):  # sets, variables: nothing to measure
        return True
    values = [side.evalf(DIGITS).doit() for side in (left, right)]  # \gcd is left to be done
    return bool(abs(values[0] - values[1]) <= tolerance * max(map(abs, values)))


def _parts(collection: Any) -> tuple[Any, ...]:
    """Of a set, an interval, a tuple or a matrix; nothing of an expression or a relation."""
    from sympy import Interval, MatrixBase, Set, Tuple

    if isinstance(collection, Interval):
        return collection.start, collection.end
    if isinstance(collection, MatrixBase):
        return tuple(collection.flat())
    return collection.args if isinstance(collection, Set | Tuple) else ()
