r"""Multiple choice: the letter that a trace decides on, as a letter, in a box or as the choice's whole text.

A letter counts only where the trace announces its answer, or where it names one choice alone: a wrong trace that is
taken for a right one is trained on.
"""

import re
import string
from collections.abc import Sequence

from tpt_jax.records import Question, Verdict

LONGEST_TEXT = 20_000  # characters; a final answer stands at the end, so only the end of a longer trace is read
LONGEST_ANSWER = 500  # characters after a mark
MOST_MARKS = 50  # the last ones of a trace that is full of them

STRICT = re.compile(r"^#### ([A-Z])[ \t]*$", re.MULTILINE)
_MARK = re.compile(
    r"####|<answer>|\\boxed\s*\{|\b(?:answer|option|choice)(?:\s+is|\s*=|\s*:|\s+would be|\s+must be)",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed)\b\s*|\\[()\[\],;!]|[*_$`{}]|</?\w+>")
_FILLER = re.compile(
    r"^[\s:=\"']*(?:(?:the\s+)?(?:correct\s+|right\s+|final\s+)?(?:answer|option|choice)\b\s*(?:is|:)?\s*)*[\s:\"']*",
    re.I,
)
_LETTER = r"(?:\(([A-Za-z])\)|([A-Z])(?![A-Za-z0-9'])|([a-z])(?=[).:]|\s*$))"
_FIRST = re.compile(_LETTER)
_MORE = re.compile(
    r"\W{0,3}\s*(?:,|/|&|\bor\b|\band\b)\s*(?:(?:option|choice|maybe|perhaps|possibly)\s+)*" + _LETTER, re.IGNORECASE
)
_ARTICLE = re.compile(
    r"\s+(?!because\b|since\b|as\b|is\b|and\b|or\b|which\b)[a-z]"
)  # what follows the A of "A triangle"
_NEGATION = re.compile(r"\b(?:not|no|never|wrong|false|incorrect|neither|except|eliminate\w*)\b|n't\b", re.IGNORECASE)
_NAMED = re.compile(r"\(([A-Z])\)|\b(?:[Oo]ption|[Cc]hoice|OPTION|CHOICE)\s+\(?([A-Z])\b")


def check_choice(question: Question, completion: str) -> Verdict:
    """Compares letters; question.data["choices"] holds the choices' texts, question.answer the right one's letter.

    Strict where the last announcement is a line such as "#### C".
    """
    choices = [str(choice) for choice in question.data.get("choices", ())]
    letters = string.ascii_uppercase[: len(choices) or None]
    reference = question.answer.strip()
    if len(reference) != 1 or reference not in letters:
        return Verdict.not_known("unreadable reference answer")
    text = completion[-LONGEST_TEXT:]
    found = _announced(text, choices, letters) or _last_line(text, choices, letters) or _named(text, letters)
    if not found:
        return Verdict.wrong("no answer")
    if len(found) > 1:
        return Verdict.wrong("several answers")
    (letter,) = found
    strict = STRICT.findall(text)
    correct = letter == reference
    return Verdict(letter, strict=correct and strict[-1:] == [letter], correct=correct)


def _announced(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters after the last mark that has some."""
    for mark in reversed(list(_MARK.finditer(text))[-MOST_MARKS:]):
        line = text[mark.end() : mark.end() + LONGEST_ANSWER].lstrip().partition("\n")[0]
        found = _read(line, choices, letters)
        if found:
            return found
    return set()


def _last_line(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters of a last line that is an answer and nothing else."""
    line = text.rstrip().rpartition("\n")[2]
    if len(line) > LONGEST_ANSWER:
        return set()
    plain = _FILLER.sub("", _MARKUP.sub("", line))
    alone = re.fullmatch(rf"{_LETTER}[).:\s]*", plain)
    return (
        _read(line, choices, letters)
        if alone or _of_text(plain, choices, letters)
        else _labelled(plain, choices, letters)
    )


def _labelled(plain: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letter of "C) Paris", where Paris is C's text."""
    label = re.match(r"\(?([A-Z])[).:]\s*", plain)
    return {label[1]} & _of_text(plain[label.end() :], choices, letters) if label else set()


def _named(text: str, letters: str) -> set[str]:
    """The letters that stand in parentheses or after "option", where the last line affirms one."""
    last = text.rstrip().rpartition("\n")[2]
    if _NEGATION.search(last) or not _NAMED.search(last):
        return set()
    return {first or second for first, second in _NAMED.findall(text)} & set(letters)


def _read(line: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters that an announced answer begins with, and the choice whose text it is."""
    plain = _FILLER.sub("", _MARKUP.sub("", line))
    by_text = _of_text(plain, choices, letters)
    if by_text:
        return by_text
    first = _FIRST.match(plain)
    if first is None or (first.group() == "A" and _ARTICLE.match(plain, first.end())):
        return set()
    found = {_letter(first)}
    position = first.end()
    while more := _MORE.match(plain, position):
        found.add(_letter(more))
        position = more.end()
    rest = plain[first.end() :].lstrip(").:,;- \t")
    if len(found) == 1:
        found |= _of_text(rest, choices, letters)  # "C) Paris" where Paris is B decides on nothing
    return found & set(letters)


def _letter(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).upper()


def _of_text(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The choices whose text this is."""
    spelt = _spelling(text)
    return {letter for letter, choice in zip(letters, choices, strict=False) if spelt and _spelling(choice) == spelt}


def _spelling(text: str) -> str:
    return re.sub(r"\s+", " ", _MARKUP.sub("", text)).strip(" .,;:\"'").casefold()
