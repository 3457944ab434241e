r"""Formulas in LaTeX, read and compared as mathematics by the math-verify library.

Only the library's LaTeX parser and its comparison are used, and neither evaluates text as Python. Its time limits are
not: they are signals, which a hanging C function ignores; a CheckerPool kills the process instead. Against the library:

  - a set in braces is no pair in parentheses;
  - 1/2004! is not 1/2006!, 3.1415926 is not \pi: it compares sizes after rounding to 6 places;
  - expressions whose value has thousands of digits are not worked out.
"""

import functools
import math
import re
from typing import Any

# Slow to import, and imported with this file all the same: a worker that is ready must not spend the first trace's
# seconds on it.
from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended import NormalizationConfig, normalize_latex
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy  # the parser itself: the function takes none
from math_verify.grader import should_treat_as_complex, sympy_expr_eq
from math_verify.parser import parse_latex_cached
from sympy import Expr, Interval, MatrixBase, Number, Pow, Rational, Set, Symbol, Tuple, factorial

DEEPEST = 12  # brackets within brackets; the parser's time doubles with every other one
LARGEST = 4_000.0  # digits of a value or of a power's parts, about; Python writes out no integer of more than 4,300
LARGEST_FACTORIAL = 5_000
TOLERANCE = 1e-5  # relative, where the reference is a decimal; the library's own is absolute, 6 places
DIGITS = 30  # that values are worked out to
EXACT = 1e-14  # relative, where it is none: 3.1415926 is not \pi; evalf's own noise is far below

NORMALISED = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)

_INDEXED_DIGITS = re.compile(r"\d\s*_\s*\{?\s*[A-Za-z]")  # 10_a, which the library reads as 10


def are_equal_formulas(reference: str, answer: str) -> bool:
    """Whether the library takes an answer for the reference; False where it can read one of them not at all."""
    if _is_set(reference) != _is_set(answer) and _is_pair(reference) != _is_pair(answer):
        return False
    tolerance = TOLERANCE if "." in reference else EXACT
    left, right = _parse(reference), _parse(answer)
    if left is None or right is None or _is_absurd(left) or _is_absurd(right):
        return False
    has_percent = "%" in reference + answer
    try:
        if not has_percent and _differ(left, right, tolerance):
            return False
        if sympy_expr_eq(left, right, float_rounding=6, numeric_precision=15, allow_set_relation_comp=True):
            return has_percent or _are_close(left, right, tolerance)
        return _is_value(left) and _is_value(right) and bool(left.doit() == right.doit())  # 4^1002 and 2^2004
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RecursionError, TypeError, ValueError):
        return False  # what sympy raises where it knows no comparison


def formula_spelling(text: str) -> str | None:
    """One spelling for most equal formulas; None where the library reads none, or one too large to write out."""
    parsed = _parse(text)
    return None if parsed is None or _is_absurd(parsed) else str(parsed)


def is_too_deep(text: str) -> bool:
    """Whether a text's brackets are nested too deeply for the parser."""
    deepest = depth = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest > DEEPEST


def _is_set(text: str) -> bool:
    return text.startswith(r"\{") and text.endswith(r"\}")


def _is_pair(text: str) -> bool:
    return text.startswith("(") and text.endswith(")") and "," in text


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> Any:
    """A sympy object that is not evaluated yet; None where the text is no formula."""
    if is_too_deep(text) or _INDEXED_DIGITS.search(text):
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


def _is_absurd(expression: Any) -> bool:
    """Whether a power or a factorial in it is too large to be worked out."""
    return _digits(expression) > LARGEST


def _digits(expression: Any) -> float:
    """An upper bound, about, for the decimal digits of the value and of each part's; variables count as 10."""
    if isinstance(expression, Rational):
        return math.log10(2) * (abs(expression.p).bit_length() + expression.q.bit_length() - 1)
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
    if isinstance(collection, Interval):
        return collection.start, collection.end
    if isinstance(collection, MatrixBase):
        return tuple(collection.flat())
    return collection.args if isinstance(collection, Set | Tuple) else ()
