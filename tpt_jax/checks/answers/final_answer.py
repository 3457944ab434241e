r"""Where a trace says its final answer, in LaTeX or in words: \boxed{}, "the answer is", the last formula or number."""

import dataclasses
import re

from tpt_jax.checks.answers.boxes import BOX, boxed_term, find_boxes, has_box
from tpt_jax.checks.answers.conclusion import conclusion, find_doubt, is_denied, is_undecided

LONGEST_TEXT = 20_000  # characters; a final answer stands at the end, so only the end of a longer trace is read
LONGEST_ANSWER = 500
MOST_MARKS = 50  # the last ones of a trace that is full of them
LONGEST_LINE = 100  # of a trace that is nothing but an answer

_MARK = re.compile(
    r"####|<answer>|\banswer\s*(?:is|=|:|would be|will be|equals|comes to)|^[ \t]*\**A[ \t]*:"
    r"|\banswer\s*(?:should|must|has to) be(?=[\s:*]*[-\d$\\])",  # not "the answer must be a multiple of 3"
    re.IGNORECASE | re.MULTILINE,
)
_ANNOUNCED = re.compile(f"{_MARK.pattern}|{BOX.pattern}", re.IGNORECASE | re.MULTILINE)
_ABOUT = re.compile(r"(?:about|approximately|around|roughly|exactly)\s+", re.IGNORECASE)
_FINAL = re.compile(r"\bfinal answer\s*(?:is|:)|<answer>", re.IGNORECASE)  # outdoes a box further up
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
_JOIN = re.compile(r"[ \t]*,?[ \t]*(?:and|or)?[ \t]*")  # ties two formulas
_SENTENCE_END = re.compile(r"\.(?=\s|$)|</|I hope it is")
_WORD = re.compile(r"[A-Za-z]{2}")
_LETTER = re.compile(r"\(?[A-J]\)?")  # of a choice, whose text the box holds
_EQUALS = re.compile(r"(?<![<>!])=")
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_UNSOLVED = re.compile(r"[-+*/]|\d\s*[A-Za-z]|[A-Za-z]\s*\^|\\(?:frac|sqrt|cdot|times)(?![a-z])")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}(?!\s*\})")


@dataclasses.dataclass(frozen=True, slots=True)
class FinalAnswer:
    """What a trace says in the end.

    Attributes:
      text: LaTeX without delimiters; several answers are separated by commas.
      boxed: it stands in a box.
      taken_back: what follows it says that it is wrong; the answer stands where the trace comes to the same again.
      later: the last formula or number after what is taken back; empty where there is none.
    """

    text: str
    boxed: bool
    taken_back: bool = False
    later: str = ""


def final_answer(completion: str) -> FinalAnswer | None:
    """The answer of the last box or, where there is none, of the last mark, else the last formula or number."""
    text = conclusion(completion, _ANNOUNCED)[-LONGEST_TEXT:]
    boxes = find_boxes(text)
    if boxes:
        after = text[boxes[-1].end :]
        marks = list(_MARK.finditer(text, boxes[-1].end))
        announced = _announced_by(marks[-1], text) if marks else ""
        boxed = _with_percent(text, boxed_term(text, boxes), boxes[-1].end)
        if not announced or _WORD.match(announced) or _LETTER.fullmatch(announced):
            return _stated(boxed, after, boxed=True)
        if find_doubt(after) or _FINAL.search(after):
            return _stated(announced, text[marks[-1].end() :])
        return FinalAnswer(boxed, boxed=True, taken_back=True, later=announced)
    if has_box(text):
        return None  # empty, or cut off in the middle: what was to stand there is not known
    for mark in reversed(list(_MARK.finditer(text))[-MOST_MARKS:]):
        if is_denied(text[mark.end() : mark.end() + LONGEST_LINE]):
            return None
        announced = _announced_by(mark, text)
        if re.search(r"\w", announced):
            return _stated(announced, text[mark.end() :])
    found = _unannounced(text)
    return _stated(found, "\n".join(text.rsplit(found, 1)[1:])) if found else None


def _unannounced(text: str) -> str:
    """The last formula or number of a trace that announces no answer, unless it breaks off or says that there is none.

    An equation that is still to be solved, such as 2x = 10, is no answer either.
    """
    last_line = text.rstrip().rpartition("\n")[2]
    if text.count("```") % 2 or is_undecided(last_line):
        return ""
    found = _in_prose(text)
    left, *right = _EQUALS.split(found, maxsplit=1)
    is_equation = right and len(set(_VARIABLE.findall(left))) == 1 and _UNSOLVED.search(left)
    return "" if is_equation else found


def _stated(answer: str, rest: str, *, boxed: bool = False) -> FinalAnswer:
    """An answer and whether the rest of its trace, which may begin with it, takes it back."""
    after = rest if boxed or answer not in rest else rest.partition(answer)[2]
    doubt = find_doubt(after)
    later = _in_prose(after) if doubt else ""
    if doubt is None or not (later or doubt.is_denial):  # "Let me double check. Yes."
        return FinalAnswer(answer, boxed)
    return FinalAnswer(answer, boxed, taken_back=True, later=later)


def without_delimiters(text: str) -> str:
    r"""Without the $...$, \(...\) or \[...\] around the whole."""
    match = _FORMULA.fullmatch(text) if text[:1] in ("$", "\\") else None
    return _inside(match).strip() if match else text


def _announced_by(mark: re.Match[str], text: str) -> str:
    """The answer that a mark of the text announces."""
    rest = text[mark.end() : mark.end() + 2 * LONGEST_ANSWER]
    if mark.group().startswith("<"):
        inside = text[mark.end() :].partition("</")[0].strip()
        return _in_prose(inside) if "\n" in inside or _PROSE.search(inside) else _leading_answer(inside)
    return _leading_answer(rest)


def _leading_answer(rest: str) -> str:
    """The answer at the start of a text."""
    rest = rest.lstrip("*:= \t\n")
    about = _ABOUT.match(rest)
    rest = rest[about.end() :] if about else rest
    formula = _FORMULA.match(rest)
    if formula:
        return _joined(rest, formula)
    line = rest.partition("\n")[0]
    end = _SENTENCE_END.search(line)
    words = (line[: end.start()] if end else line).strip("*_ \t")
    number = _NUMBER.match(words)
    if number and re.fullmatch(r"\s+(?!and\b|or\b|to\b|x\b)[A-Za-z].*", words[number.end() :]):
        return number.group()
    if _PROSE.search(words) or (_WORD.match(words) and _FORMULA.search(words)):
        return _in_prose(words)
    return words


def _in_prose(text: str) -> str:
    """The last formula or number; a line of few words is an answer as it stands."""
    formulas = list(_FORMULA.finditer(text))
    stripped = text.strip().rstrip(".")
    if not formulas and len(stripped) <= LONGEST_LINE and "\n" not in stripped and not _PROSE.search(stripped):
        return stripped
    numbers = list(_NUMBER.finditer(text))
    if formulas and (not numbers or numbers[-1].start() < formulas[-1].end()):
        first = len(formulas) - 1
        while first and _JOIN.fullmatch(text, formulas[first - 1].end(), formulas[first].start()):
            first -= 1
        return _joined(text, formulas[first])
    return numbers[-1].group() if numbers else ""


def _joined(text: str, formula: re.Match[str]) -> str:
    """A formula, and those that "and", "or" or a comma ties to it: "$x = 1$ or $x = 2$" is "x = 1, x = 2"."""
    parts = [_with_percent(text, _inside(formula), formula.end())]
    for following in _FORMULA.finditer(text, formula.end()):
        if not _JOIN.fullmatch(text, formula.end(), following.start()):
            break
        formula = following
        parts.append(_with_percent(text, _inside(formula), formula.end()))
    return ", ".join(parts)


def _inside(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None)


def _with_percent(text: str, answer: str, end: int) -> str:
    r"""With the percent sign that follows it, as in $28$% and \boxed{28} percent."""
    following = text[end : end + 20].lstrip("$ ")
    return answer + r"\%" if _PERCENT.match(following) and "%" not in answer else answer
