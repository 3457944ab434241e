r"""Parses LaTeX formulas and compares them as mathematics, with the math-verify library.

Uses only the library's LaTeX parser and comparison; neither evaluates text as Python. Its time limits are not used:
they rely on signals, which a hanging C function ignores. A CheckerPool kills the process instead.

Differences from the library:
  - A set in braces is not equal to a pair in parentheses.
  - 1/2004! is not equal to 1/2006!, nor 3.1415926 to \pi: the library rounds to 6 decimal places before it compares.
  - Expressions whose value has thousands of digits are not evaluated.
"""

import functools
import math
import re
from typing import Any

# Slow imports, at the top on purpose: a worker that is ready must not spend its first trace's time limit on them.
from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended import NormalizationConfig, normalize_latex
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy  # the public function takes no subclass
from math_verify.grader import should_treat_as_complex, sympy_expr_eq
from math_verify.parser import parse_latex_cached
from sympy import Expr, Interval, MatrixBase, Number, Pow, Rational, Set, Symbol, Tuple, factorial

MAX_BRACKET_DEPTH = 12  # parse time doubles every two levels
MAX_DIGITS = 4_000.0  # of a value, roughly; Python refuses to print integers of over 4,300 digits
MAX_FACTORIAL = 5_000
DECIMAL_TOLERANCE = 1e-5  # relative, for a decimal reference; the library's is absolute, 6 decimal places
EVALUATION_DIGITS = 30  # precision that values are evaluated to
EXACT_TOLERANCE = 1e-14  # relative, for any other reference: 3.1415926 is not \pi; evalf's error is far smaller

NORMALISATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)

_INDEXED_NUMBER = re.compile(r"\d\s*_\s*\{?\s*[A-Za-z]")  # 10_a: the library reads it as 10


def are_equal_formulas(reference: str, answer: str) -> bool:
    """Whether an answer equals the reference as mathematics; False if either of them cannot be parsed."""
    if _is_set(reference) != _is_set(answer) and _is_pair(reference) != _is_pair(answer):
        return False
    tolerance = DECIMAL_TOLERANCE if "." in reference else EXACT_TOLERANCE
    left, right = _parse(reference), _parse(answer)
    if left is None or right is None or _is_too_large(left) or _is_too_large(right):
        return False
    has_percent = "%" in reference + answer
    try:
        if not has_percent and _differ(left, right, tolerance):
            return False
        if sympy_expr_eq(left, right, float_rounding=6, numeric_precision=15, allow_set_relation_comp=True):
            return has_percent or _are_close(left, right, tolerance)
        return _is_value(left) and _is_value(right) and bool(left.doit() == right.doit())  # 4^1002 and 2^2004
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RecursionError, TypeError, ValueError):
        return False  # sympy raises these if it cannot compare the two


def formula_spelling(text: str) -> str | None:
    """A spelling that most equal formulas share; None if the text is no formula, or one too large to evaluate."""
    parsed = _parse(text)
    return None if parsed is None or _is_too_large(parsed) else str(parsed)


def is_too_deep(text: str) -> bool:
    """Whether the brackets of a text are nested too deeply for the parser."""
    deepest = depth = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest > MAX_BRACKET_DEPTH


def _is_set(text: str) -> bool:
    """Whether a text is a set in braces."""
    return text.startswith(r"\{") and text.endswith(r"\}")


def _is_pair(text: str) -> bool:
    """Whether a text is a tuple in parentheses."""
    return text.startswith("(") and text.endswith(")") and "," in text


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> Any:
    """Parses a formula into an unevaluated sympy object; None if the text is no formula."""
    if is_too_deep(text) or _INDEXED_NUMBER.search(text):
        return None
    normalised = normalize_latex(text, NORMALISATION)
    try:
        return _FastParser(is_real=not should_treat_as_complex(normalised)).parse(normalised)
    except MemoryError:
        raise
    except Exception:  # the parser raises bare Exceptions
        return _parse_with_full_context(normalised)


def _parse_with_full_context(normalised: str) -> Any:
    """Parses with the library's own parser; None if it fails too."""
    try:
        return parse_latex_cached(normalised)
    except MemoryError:
        raise
    except Exception:
        return None


class _FastParser(_Latex2Sympy):
    """The library's parser in ANTLR's SLL mode: three times as fast, since it looks ahead without the calling context.

    If it succeeds, the result equals the full-context parse; if it fails, the full-context parse may still succeed.
    https://github.com/antlr/antlr4/blob/4.13.2/runtime/Java/src/org/antlr/v4/runtime/atn/PredictionMode.java
    """

    def create_parser(self, latex_str: str) -> Any:
        parser = super().create_parser(latex_str)
        parser._interp.predictionMode = PredictionMode.SLL  # set as in ANTLR's documentation
        return parser


def _is_too_large(expression: Any) -> bool:
    """Whether an expression is too large to evaluate, or contains a power or factorial that is."""
    return _digit_bound(expression) > MAX_DIGITS


def _digit_bound(expression: Any) -> float:
    """A rough upper bound on the decimal digits of a value and its subexpressions; a variable counts as one digit."""
    if isinstance(expression, Rational):
        return math.log10(2) * (abs(expression.p).bit_length() + expression.q.bit_length() - 1)
    if isinstance(expression, Number):
        return float(len(str(expression)))
    bounds = [_digit_bound(argument) for argument in getattr(expression, "args", ())]
    if max(bounds, default=0.0) <= MAX_DIGITS:  # otherwise the arguments are too large to evaluate as well
        if isinstance(expression, Pow):
            return max(*bounds, bounds[0] * _magnitude(expression.exp))
        if isinstance(expression, factorial):
            return bounds[0] if _magnitude(expression.args[0]) <= MAX_FACTORIAL else float("inf")
    return sum(bounds) if bounds else 1.0


def _magnitude(expression: Any) -> float:
    """The absolute value of a number; 1 for any other expression."""
    if not _is_value(expression):
        return 1.0
    try:
        return abs(complex(expression.evalf(5)))
    except (OverflowError, TypeError, ValueError):
        return float("inf")


def _differ(left: Any, right: Any, tolerance: float) -> bool:
    """Whether two expressions differ at a sample point: much faster than the library, which simplifies first."""
    if any(not isinstance(side, Expr) or isinstance(side, Symbol) for side in (left, right)):
        return False  # sets and relations have no value; a symbol may stand for a word
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    point = {symbol: Rational(37 + 10 * index, 53) for index, symbol in enumerate(symbols)}
    values = [side.evalf(EVALUATION_DIGITS, subs=point) for side in (left, right)]
    if not all(value.is_number and value.is_finite for value in values):
        return False
    return bool(abs(values[0] - values[1]) > tolerance * max(1, *map(abs, values)))


def _is_value(expression: Any) -> bool:
    """Whether an expression is a number, without variables."""
    return getattr(expression, "is_number", False)


def _are_close(left: Any, right: Any, tolerance: float) -> bool:
    """False if both are numbers, or contain numbers, that differ but round to the same."""
    if left == right:
        return True
    elements = _elements(left), _elements(right)
    if elements[0] and elements[1]:
        return all(any(_are_close(one, other, tolerance) for other in elements[1]) for one in elements[0])
    if hasattr(left, "rhs") != hasattr(right, "rhs"):  # x = 5 against 5
        left, right = (getattr(side, "rhs", side) for side in (left, right))
    if not _is_value(left) or not _is_value(right):  # sets or variables: no number to compare
        return True
    values = [side.evalf(EVALUATION_DIGITS).doit() for side in (left, right)]  # evalf leaves \gcd unevaluated
    return bool(abs(values[0] - values[1]) <= tolerance * max(map(abs, values)))


def _elements(collection: Any) -> tuple[Any, ...]:
    """The elements of a set, interval, tuple or matrix; empty for an expression or a relation."""
    if isinstance(collection, Interval):
        return collection.start, collection.end
    if isinstance(collection, MatrixBase):
        return tuple(collection.flat())
    return collection.args if isinstance(collection, Set | Tuple) else ()
