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

from tpt_jax.checks.answers.announce import MAX_ANSWER_CHARACTERS, Announcement, Kind
from tpt_jax.checks.answers.doubt import is_undecided
from tpt_jax.checks.answers.extract import Missing, Reader, extract_answer
from tpt_jax.checks.answers.number import SCALES, canonical, parse_number
from tpt_jax.checks.answers.symbolic import are_equal_formulas, formula_spelling, is_too_deep
from tpt_jax.checks.answers.turns import last_output
from tpt_jax.records import Question, Verdict

MAX_LINE_CHARACTERS = 100  # of a line that can be a bare answer
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
        (r"_\s*\{(\w)\}", r"_\1"),
        (r"(?<=\d)\s*\((?=\d+\))|(?<=\d\))\((?=\d+\))", r"\\cdot("),  # 1000(26): the library reads 1026
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
_NUMBER = re.compile(
    r"-?(?:\d+(?:\.\d+)?[eE][-+]?\d{1,2}|\d+|\d{1,3}(?:,\d{3})+|\d+ \d+/\d+|\d+/\d+|(?:\d+|\d{1,3}(?:,\d{3})+)?\.\d+)"
)
_REPEATING_DECIMAL = re.compile(r"(-?)(\d*)\.(\d*)\\overline\{(\d+)\}")
_WORDS = re.compile(
    r"\\text\s*\{\s*\(?([A-Za-z][A-Za-z\s'-]*?)\)?\s*\}|\(?([A-Za-z])\)?|([A-Za-z]{3,}(?:[ -][A-Za-z]+)*)"
)
_NO_VARIABLE = re.compile(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]{4,}|\([A-Z]\)")
_DIGITS_IN_BASE = re.compile(r"([0-9A-Fa-f]+)_\{?(\d{1,2})\}?")


# Reading an answer in a statement or passage.
_APPROXIMATION = re.compile(r"(?:about|approximately|around|roughly|exactly)\s+", re.IGNORECASE)
_FORMULA = re.compile(
    r"(?<!\\)\$\$((?:[^$\\]|\\.){1,600}?)\$\$"
    r"|(?<!\\)\$((?:[^$\n\\]|\\[^\n]){1,600}?)\$"
    r"|\\\[((?:[^\\]|\\(?!\])){1,600}?)\\\]"
    r"|\\\(((?:[^\\\n]|\\(?!\))){1,600}?)\\\)",
    re.DOTALL,
)
_PERCENT = re.compile(r"\s*(?:\\?%|percent\b|pct\b)", re.IGNORECASE)
_NUMBER_IN_TEXT = re.compile(
    r"-?\\[dt]?frac\{-?\d{1,30}\}\{\d{1,30}\}"
    r"|(?<![\w.,])-?[$£€]?-?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+)?"
    r"(?:\s*(?:\\?%|percent\b|pct\b))?"
)
_JOIN = re.compile(r"[ \t]*,?[ \t]*(?:and|or)?[ \t]*")  # between two formulas of one answer
_WORD = re.compile(r"[A-Za-z]{2}")
_CHOICE_LETTER = re.compile(r"\(?[A-J]\)?")  # names a choice; a box holds its text
_EQUALS = re.compile(r"(?<![<>!])=")
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_UNSOLVED_SIDE = re.compile(r"[-+*/]|\d\s*[A-Za-z]|[A-Za-z]\s*\^|\\(?:frac|sqrt|cdot|times)(?![a-z])")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}(?!\s*\})")
# In the question: which variable is asked for, and that the order of several values counts.
_ASKED = re.compile(
    r"(?i:\b(?:find|value of|what is|determine|compute|calculate|solve for|what does))\s+(?:the value of\s+)?"
    r"\$?([A-Za-z])\$?(?![\w^_+*/(-])|\bfor\s+\$?([A-Za-z])\$?\s*[.?]?\s*$"
)
_LISTED = re.compile(r"\b(?:list|factors|divisors)\b", re.IGNORECASE)
_LABELLED = re.compile(r"\(a\).*\(b\)", re.IGNORECASE | re.DOTALL)  # a question with labelled choices
_CHOICE_LABEL = re.compile(r"(?:\\text\s*\{\s*)?\(?\s*[A-Za-z]\s*\)[\s}]*(?=.*\d)")
_ORDERED = re.compile(
    r"\b(?:(?:in|de)creasing|(?:a|de)scending|in order|ordered|smallest to|largest to|least to|greatest to)\b",
    re.IGNORECASE,
)


def check_math(question: Question, completion: str, *, is_finished: bool = True) -> Verdict:
    r"""Compares final answers as mathematics: \frac12, 0.5 and 2/4 are equal. Strict if the answer is in \boxed{}."""
    reference, reference_unit = _reference(question.answer)
    if not reference:
        return Verdict.unreadable()
    final = extract_answer(completion, LATEX_READER, is_finished=is_finished)
    if isinstance(final, Missing):
        return Verdict.wrong(final.value)
    if len(final.value) > MAX_ANSWER_CHARACTERS or is_too_deep(final.value):
        return Verdict.wrong("absurd answer")
    answer, answer_unit = _simplify(_asked_value(final.value, question.question, reference))
    if not answer:
        return Verdict.wrong("no answer")
    if _LISTED.search(question.question) and reference.startswith("[") and "[" not in answer:
        answer = f"[{answer}]"
    if not (reference_unit <= answer_unit or answer_unit <= reference_unit) or not is_equivalent(
        reference, answer, is_ordered=_ORDERED.search(question.question) is not None
    ):
        return Verdict.wrong("", spelling(answer))
    is_boxed = final.announcement is not None and final.announcement.kind is Kind.BOX
    return Verdict(spelling(reference), strict=is_boxed, correct=True)


class LatexReader(Reader[str]):
    """Reads LaTeX without delimiters in announcements; commas separate several answers."""

    def read(self, announcement: Announcement) -> str | Missing:
        """Reads a box or key whole, and a formula, a number or a few words at the start of any other statement."""
        text = announcement.text
        if announcement.is_passage:
            return self.read_last(text)
        if announcement.kind in (Kind.BOX, Kind.KEY) or is_undecided(text):
            return text or Missing.NONE
        answer = (
            _last_in_prose(text) if announcement.kind is Kind.TAG and _PROSE.search(text) else _leading_answer(text)
        )
        return answer if re.search(r"\w", answer) else Missing.NONE

    def read_last(self, text: str) -> str | Missing:
        """Reads the last formula or number."""
        return _last_in_prose(text) or Missing.NONE

    def read_conclusion(self, text: str) -> tuple[str | Missing, str]:
        """Reads the last formula or number; nothing of an unsolved equation, such as 2x = 10."""
        if is_undecided(text.rstrip().rpartition("\n")[2]):
            return Missing.NONE, ""
        answer = _last_in_prose(last_output(text) or text)
        if len(solved := _solved_equations(answer)) == 1:  # "5x = 30, x = 6"
            return solved[0][1], ""
        left, *right = _EQUALS.split(answer, maxsplit=1)
        if not answer or (right and len(set(_VARIABLE.findall(left))) == 1 and _UNSOLVED_SIDE.search(left)):
            return Missing.NONE, ""
        return answer, "\n".join(text.rsplit(answer, 1)[1:])

    def are_same(self, left: str, right: str) -> bool:
        """Compares values; words, or a choice's letter, beside a formula do not contradict it."""
        if (_WORD.match(right) or _CHOICE_LETTER.fullmatch(right)) and not _WORD.match(left):
            return True
        short = max(len(left), len(right)) <= MAX_ANSWER_CHARACTERS and not (is_too_deep(left) or is_too_deep(right))
        return left == right or (short and is_equivalent(_simplify(left)[0], _simplify(right)[0]))


LATEX_READER = LatexReader()


def without_delimiters(text: str) -> str:
    r"""Removes the $...$, \(...\) or \[...\] around a whole text."""
    match = _FORMULA.fullmatch(text) if text[:1] in ("$", "\\") else None
    return _formula_content(match).strip() if match else text


def _leading_answer(rest: str) -> str:
    """The answer at the start of a statement: a formula, a number or a few words."""
    approximation = _APPROXIMATION.match(rest)
    rest = rest[approximation.end() :] if approximation else rest
    formula = _FORMULA.match(rest)
    if formula:
        return _join_formulas(rest, formula)
    words = rest.strip("*_ \t")
    number = _NUMBER_IN_TEXT.match(words)
    if number and re.fullmatch(r"\s+(?!and\b|or\b|to\b|x\b)[A-Za-z].*", words[number.end() :]):
        return number.group()
    if _PROSE.search(words) or (_WORD.match(words) and _FORMULA.search(words)):
        return _last_in_prose(words)
    return words


def _last_in_prose(text: str) -> str:
    """The last formula or number of a text; one short line without prose is returned whole."""
    formulas = list(_FORMULA.finditer(text))
    stripped = text.strip().rstrip(".")
    if not formulas and len(stripped) <= MAX_LINE_CHARACTERS and "\n" not in stripped and not _PROSE.search(stripped):
        return stripped
    numbers = list(_NUMBER_IN_TEXT.finditer(text))
    if formulas and (not numbers or numbers[-1].start() < formulas[-1].end()):
        first = len(formulas) - 1
        while first and _JOIN.fullmatch(text, formulas[first - 1].end(), formulas[first].start()):
            first -= 1
        return _join_formulas(text, formulas[first])
    return numbers[-1].group() if numbers else ""


def _join_formulas(text: str, formula: re.Match[str]) -> str:
    """A formula and those joined to it by "and", "or" or a comma: "$x = 1$ or $x = 2$" is "x = 1, x = 2"."""
    formulas = [_with_percent(text, _formula_content(formula), formula.end())]
    for next_formula in _FORMULA.finditer(text, formula.end()):
        if not _JOIN.fullmatch(text, formula.end(), next_formula.start()):
            break
        formula = next_formula
        formulas.append(_with_percent(text, _formula_content(formula), formula.end()))
    return ", ".join(formulas)


def _formula_content(match: re.Match[str]) -> str:
    """The content of a _FORMULA match, without its delimiters."""
    return next(group for group in match.groups() if group is not None)


def _with_percent(text: str, answer: str, end: int) -> str:
    r"""Appends the percent sign that follows the answer, as in $28$%."""
    following = text[end : end + 20].lstrip("$ ")
    return answer + r"\%" if _PERCENT.match(following) and "%" not in answer else answer


def _asked_value(answer: str, question: str, reference: str) -> str:
    """The part of an answer that the question asks for.

    "p = -4, r = 3" is -4 where p is asked, and "(b) 5" is 5 where the question labels its choices.
    """
    if _LABELLED.search(question) and (label := _CHOICE_LABEL.match(answer)):
        rest = answer[label.end() :]
        answer = rest.removesuffix("}") if rest.count("}") > rest.count("{") else rest
    values = dict(_solved_equations(answer))
    asked = _ASKED.search(question)
    name = (asked[1] or asked[2]) if asked else ""
    return values.get(name, answer) if len(values) > 1 and "," not in reference else answer


def _solved_equations(answer: str) -> list[tuple[str, str]]:
    """Of several equations those with a variable on their left: the variables and the right sides."""
    parts = re.sub(r"\\q?quad(?![a-z])|\\[,;: ]|~|\\text\s*\{[^{}]*\}", " ", answer.strip("()")).split(",")
    sides = [[side.strip(" $") for side in _EQUALS.split(part)] for part in parts if part.strip()]
    if not all(len(side) == 2 for side in sides):
        return []
    return [(left, right) for left, right in sides if _VARIABLE.fullmatch(left)] if len(sides) > 1 else []


def is_equivalent(reference: str, answer: str, *, is_ordered: bool = False) -> bool:
    """Whether an answer equals the reference, both as simplified LaTeX. Not symmetric: the reference sets the form.

    Bare digits match a reference in base 2, and 5 matches x = 5; a pair does not match a set.

    Args:
      is_ordered: the order of several values counts.
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
        # the library takes 1, 1, 2 and 1, 2 for the same set
        return reference_values == answer_values if is_ordered else sorted(reference_values) == sorted(answer_values)
    if ("%" in reference) != ("%" in answer):
        bare_reference, bare_answer = reference.replace(r"\%", ""), answer.replace(r"\%", "")
        if is_equivalent(bare_reference, bare_answer):
            return True
        reference_share, answer_share = _parse_number(bare_reference), _parse_number(bare_answer)
        if reference_share is not None and answer_share is not None:
            percent, share = (reference_share, answer_share) if "%" in reference else (answer_share, reference_share)
            return percent == 100 * share and (share.denominator > 1 or abs(share) <= 1)  # 1200% is not 12
    in_base = _parse_based(reference), _parse_based(answer)
    if any(in_base):
        return _are_equal_in_bases(*in_base, reference_value, answer_value)
    if _differ_in_case(reference, answer):
        return False
    words = _parse_words(reference)
    if words is not None and (reference.startswith(r"\text") or len(words) >= MIN_WORD_LETTERS):
        return words == _parse_words(answer)
    return are_equal_formulas(reference, answer)


def _differ_in_case(reference: str, answer: str) -> bool:
    """Whether a letter of two formulas is a capital in one of them only: M is not m, and Rr is not r^2."""
    left, right = (
        {letter for letter in _NO_VARIABLE.sub("", text) if letter.isalpha()} for text in (reference, answer)
    )
    return any(
        letter.swapcase() in right and letter not in right and letter.swapcase() not in left for letter in left
    ) or (left != right and {letter.lower() for letter in left} == {letter.lower() for letter in right})


def _parse_numbers(text: str) -> list[Fraction] | None:
    """The values of two or more plain numbers separated by commas or semicolons; None for anything else."""
    values = [_parse_number(item.strip()) for item in re.split("[,;]", text)]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) > 1 else None


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
        final = extract_answer(text, LATEX_READER)
        text = "" if isinstance(final, Missing) or len(final.value) > MAX_ANSWER_CHARACTERS else final.value
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
    """Normalises spaces and fractions, to compare spellings."""
    return re.sub(r"\s+", "", _FRACTION.sub(_as_fraction, text))


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
