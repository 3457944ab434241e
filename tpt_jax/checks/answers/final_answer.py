r"""Finds a trace's final answer, in LaTeX or words: \boxed{}, "the answer is", the last formula or number."""

import dataclasses
import re

from tpt_jax.checks.answers.boxes import BOX, boxed_expression, find_boxes, has_box
from tpt_jax.checks.answers.conclusion import conclusion, find_doubt, is_denied, is_undecided

MAX_TEXT_CHARACTERS = 20_000  # final answers come last, so only the end of a longer trace is read
MAX_ANSWER_CHARACTERS = 500
MAX_MARKERS = 50  # only the last ones of a trace are read
MAX_LINE_CHARACTERS = 100  # of a line that can be a bare answer

_MARKER = re.compile(
    r"####|<answer>|\banswer\s*(?:is|=|:|would be|will be|equals|comes to)|^[ \t]*\**A[ \t]*:"
    r"|\banswer\s*(?:should|must|has to) be(?=[\s:*]*[-\d$\\])",  # not "the answer must be a multiple of 3"
    re.IGNORECASE | re.MULTILINE,
)
_MARKER_OR_BOX = re.compile(f"{_MARKER.pattern}|{BOX.pattern}", re.IGNORECASE | re.MULTILINE)
_APPROXIMATION = re.compile(r"(?:about|approximately|around|roughly|exactly)\s+", re.IGNORECASE)
_FINAL_MARKER = re.compile(r"\bfinal answer\s*(?:is|:)|<answer>", re.IGNORECASE)  # outranks an earlier box
_FORMULA = re.compile(
    r"(?<!\\)\$\$((?:[^$\\]|\\.){1,600}?)\$\$"
    r"|(?<!\\)\$((?:[^$\n\\]|\\[^\n]){1,600}?)\$"
    r"|\\\[((?:[^\\]|\\(?!\])){1,600}?)\\\]"
    r"|\\\(((?:[^\\\n]|\\(?!\))){1,600}?)\\\)",
    re.DOTALL,
)
_PERCENT = re.compile(r"\s*(?:\\?%|percent\b|pct\b)", re.IGNORECASE)
_NUMBER = re.compile(
    r"-?\\[dt]?frac\{-?\d{1,30}\}\{\d{1,30}\}"
    r"|(?<![\w.,])-?[$£€]?-?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+)?"
    r"(?:\s*(?:\\?%|percent\b|pct\b))?"
)
_JOIN = re.compile(r"[ \t]*,?[ \t]*(?:and|or)?[ \t]*")  # between two formulas of one answer
_SENTENCE_END = re.compile(r"\.(?=\s|$)|</|I hope it is")
_WORD = re.compile(r"[A-Za-z]{2}")
_CHOICE_LETTER = re.compile(r"\(?[A-J]\)?")  # names a choice; the box holds its text
_EQUALS = re.compile(r"(?<![<>!])=")
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_UNSOLVED_SIDE = re.compile(r"[-+*/]|\d\s*[A-Za-z]|[A-Za-z]\s*\^|\\(?:frac|sqrt|cdot|times)(?![a-z])")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}(?!\s*\})")


@dataclasses.dataclass(frozen=True, slots=True)
class FinalAnswer:
    """A trace's final answer.

    Attributes:
      text: LaTeX without delimiters; commas separate several answers.
      boxed: it is in a box.
      taken_back: the trace doubts it afterwards; it stands only if `later` is equal to it.
      later: the last formula or number after the doubt; "" for none.
    """

    text: str
    boxed: bool
    taken_back: bool = False
    later: str = ""


def final_answer(completion: str) -> FinalAnswer | None:
    """Finds the answer in the last box, else after the last marker, else the last formula or number; None for none."""
    text = conclusion(completion, _MARKER_OR_BOX)[-MAX_TEXT_CHARACTERS:]
    boxes = find_boxes(text)
    if boxes:
        after = text[boxes[-1].end :]
        markers = list(_MARKER.finditer(text, boxes[-1].end))
        announced = _answer_after(markers[-1], text) if markers else ""
        boxed = _with_percent(text, boxed_expression(text, boxes), boxes[-1].end)
        if not announced or _WORD.match(announced) or _CHOICE_LETTER.fullmatch(announced):
            return _with_doubt(boxed, after, boxed=True)
        if find_doubt(after) or _FINAL_MARKER.search(after):
            return _with_doubt(announced, text[markers[-1].end() :])
        return FinalAnswer(boxed, boxed=True, taken_back=True, later=announced)
    if has_box(text):
        return None  # empty or cut off: the intended answer is unknown
    for marker in reversed(list(_MARKER.finditer(text))[-MAX_MARKERS:]):
        if is_denied(text[marker.end() : marker.end() + MAX_LINE_CHARACTERS]):
            return None
        announced = _answer_after(marker, text)
        if re.search(r"\w", announced):
            return _with_doubt(announced, text[marker.end() :])
    answer = _unmarked_answer(text)
    return _with_doubt(answer, "\n".join(text.rsplit(answer, 1)[1:])) if answer else None


def _unmarked_answer(text: str) -> str:
    """The last formula or number of a trace that announces no answer.

    Returns "" if the trace is cut off inside a code block, says that there is no answer, or ends in an unsolved
    equation such as 2x = 10.
    """
    last_line = text.rstrip().rpartition("\n")[2]
    if text.count("```") % 2 or is_undecided(last_line):
        return ""
    answer = _last_in_prose(text)
    left, *right = _EQUALS.split(answer, maxsplit=1)
    is_equation = right and len(set(_VARIABLE.findall(left))) == 1 and _UNSOLVED_SIDE.search(left)
    return "" if is_equation else answer


def _with_doubt(answer: str, rest: str, *, boxed: bool = False) -> FinalAnswer:
    """Builds the FinalAnswer and checks whether the rest of the trace, which may contain the answer, takes it back."""
    after = rest if boxed or answer not in rest else rest.partition(answer)[2]
    doubt = find_doubt(after)
    later = _last_in_prose(after) if doubt else ""
    if doubt is None or not (later or doubt.is_denial):  # "Let me double check. Yes."
        return FinalAnswer(answer, boxed)
    return FinalAnswer(answer, boxed, taken_back=True, later=later)


def without_delimiters(text: str) -> str:
    r"""Removes the $...$, \(...\) or \[...\] around a whole text."""
    match = _FORMULA.fullmatch(text) if text[:1] in ("$", "\\") else None
    return _formula_content(match).strip() if match else text


def _answer_after(marker: re.Match[str], text: str) -> str:
    """The answer that a marker in the text announces."""
    rest = text[marker.end() : marker.end() + 2 * MAX_ANSWER_CHARACTERS]
    if marker.group().startswith("<"):
        content = text[marker.end() :].partition("</")[0].strip()
        return _last_in_prose(content) if "\n" in content or _PROSE.search(content) else _leading_answer(content)
    return _leading_answer(rest)


def _leading_answer(rest: str) -> str:
    """The answer at the start of a text: a formula, a number or a few words."""
    rest = rest.lstrip("*:= \t\n")
    approximation = _APPROXIMATION.match(rest)
    rest = rest[approximation.end() :] if approximation else rest
    formula = _FORMULA.match(rest)
    if formula:
        return _join_formulas(rest, formula)
    line = rest.partition("\n")[0]
    end = _SENTENCE_END.search(line)
    words = (line[: end.start()] if end else line).strip("*_ \t")
    number = _NUMBER.match(words)
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
    numbers = list(_NUMBER.finditer(text))
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
    r"""Appends the percent sign that follows the answer, as in $28$% and \boxed{28} percent."""
    following = text[end : end + 20].lstrip("$ ")
    return answer + r"\%" if _PERCENT.match(following) and "%" not in answer else answer
