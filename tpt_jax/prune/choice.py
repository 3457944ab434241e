r"""Multiple choice: the letter that a trace decides on, as a letter, in a box or as the choice's whole text.

A letter counts only where the trace announces its answer, or where it names one choice alone: a wrong trace that is
taken for a right one is trained on.
"""

import re
import string
from collections.abc import Sequence

from tpt_jax.prune.conclusion import conclusion, find_doubt
from tpt_jax.records import Question, Verdict

LONGEST_TEXT = 20_000  # characters; a final answer stands at the end, so only the end of a longer trace is read
LONGEST_ANSWER = 500  # characters after a mark
MOST_MARKS = 50  # the last ones of a trace that is full of them

STRICT = re.compile(r"^#### ([A-Z])[ \t]*$", re.MULTILINE)
_MARK = re.compile(
    r"(?P<form>####|<answer>|\\boxed\s*\{)|\b(?:answer|ans|option|choice|(?:correct|right)\s+one)\**"
    r"(?:\s+(?:is|equals|(?:would|must|should|will|has\s+to)\s+be)\b|\s*[=:]|\s+[-–—](?=\s))",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[.!?;:,\n]|\b(?:so|thus|hence|then|therefore)\b", re.IGNORECASE)  # begins after one of these
_DOUBT = re.compile(
    r"\b(?:wrong|incorrect|false|if|suppos\w+|assum\w+|thought(?! about)|tempting|worst|unlikely)\b", re.IGNORECASE
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
_ARTICLE = re.compile(  # what follows the A of "A triangle" and the I of "I think"
    r"\s+(?!because\b|since\b|as\b|is\b|and\b|or\b|which\b)[a-z]"
)
_NEGATION = re.compile(
    r"\b(?:not|no|never|wrong|false|incorrect|neither|except|eliminate\w*|exclud\w+|rul\w+ out|least|unlikely|unsure"
    r"|if|suppos\w+|thought|tempting)\b|n't\b|\?",
    re.IGNORECASE,
)
_AFFIRMATION = re.compile(
    r"\b(?:answer|correct|right|true|best|must|so|thus|hence|therefore|choose|pick|select|go with|maybe)\b",
    re.IGNORECASE,
)
_SAYS_TEXT = re.compile(r"[\s).:,;–-]*(?:\b(?:which|that|it) is\b|\bi\.e\.,?|\bnamely\b)?[\s:]*", re.IGNORECASE)
_LATER = re.compile(r"(?<![\w'])(?!(?:A|I)\s+[a-z])([A-Z])(?![\w'])")
_NAMED = re.compile(r"\(([A-Z])\)|\b(?:[Oo]ption|[Cc]hoice|OPTION|CHOICE)\s+\(?([A-Z])\b")


def check_choice(question: Question, completion: str) -> Verdict:
    """Compares letters; question.data["choices"] holds the choices' texts, question.answer the right one's letter.

    Strict where the last announcement is a line such as "#### C".
    """
    choices = [str(choice) for choice in question.data.get("choices", ())]
    letters = string.ascii_uppercase[: len(choices) or None]
    reference = question.answer.strip()
    if len(reference) != 1 or reference not in letters:
        return Verdict.unreadable()
    text = conclusion(completion, _MARK)[-LONGEST_TEXT:]
    found, after = _announced(text, choices, letters)
    taken_back = find_doubt(after) is not None and not _says_again(after, found)
    if taken_back:
        found = _last_line(text, choices, letters)
    elif not found:
        found = _last_line(text, choices, letters) or _named(text, choices, letters)
    if not found:
        return Verdict.wrong("taken back" if taken_back else "no answer")
    if len(found) > 1:
        return Verdict.wrong("several answers")
    (letter,) = found
    strict = STRICT.findall(text)
    correct = letter == reference
    return Verdict(letter, strict=correct and strict[-1:] == [letter], correct=correct)


def _announced(text: str, choices: Sequence[str], letters: str) -> tuple[set[str], str]:
    """The letters after the last mark that has some, and all that follows it."""
    for mark in reversed(list(_MARK.finditer(text))[-MOST_MARKS:]):
        before = _CLAUSE.split(text[max(0, mark.start() - LONGEST_ANSWER) : mark.start()])[-1]
        if mark["form"] is None and _DOUBT.search(before):
            continue
        after = text[mark.end() :]
        found = _read(after[:LONGEST_ANSWER].lstrip().partition("\n")[0], choices, letters)
        if found:
            return found, after
    return set(), ""


def _says_again(after: str, found: set[str]) -> bool:
    """Whether the last letter after a mark, but for the one that is announced there, is the announced one."""
    return [*found] == _LATER.findall(after)[1:][-1:]


def _last_line(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters of a last line that is an answer and nothing else."""
    line = text.rstrip().rpartition("\n")[2]
    if len(line) > LONGEST_ANSWER:
        return set()
    plain = _FILLER.sub("", _MARKUP.sub("", line))
    if re.fullmatch(rf"{_LETTER}[).:\s]*", plain) or _of_text(plain, choices, letters):
        return _read(line, choices, letters)
    return _labelled(plain, choices, letters)


def _labelled(plain: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letter of "C) Paris", where Paris is C's text."""
    label = re.match(r"\(?([A-Z])[).:]\s*", plain)
    return {label[1]} & _of_text(plain[label.end() :], choices, letters) if label else set()


def _named(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters that stand in parentheses or after "option", where the last line affirms one."""
    last = text.rstrip().rpartition("\n")[2]
    named = _NAMED.search(last)
    if named is None or _NEGATION.search(last):
        return set()
    before, alone = _spelling(last[: named.start()]), not re.search(r"\w", last.replace(named.group(), ""))
    is_text = any(before.endswith(f"is {_spelling(choice)}") for choice in choices)  # "It is Rome (C)"
    if not (alone or is_text or _AFFIRMATION.search(last)):
        return set()
    return {first or second for first, second in _NAMED.findall(text)} & set(letters)


def _read(line: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters that an announced answer begins with, and the choice whose text it is."""
    plain = _FILLER.sub("", _MARKUP.sub("", line))
    by_text = _of_text(plain, choices, letters)
    if by_text:
        return by_text
    first = _FIRST.match(plain)
    if first is None or (first.group() in ("A", "I") and _ARTICLE.match(plain, first.end())):
        return set()
    found = {_letter(first)}
    position = first.end()
    while more := _MORE.match(plain, position):
        found.add(_letter(more))
        position = more.end()
    rest = plain[position:]
    if rest.lstrip(" )").startswith("?"):
        return set()
    return (found | _beginning(_SAYS_TEXT.sub("", rest, count=1), choices, letters)) & set(letters)


def _beginning(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The choice with whose text another begins: "C) Paris" where Paris is B decides on nothing."""
    spelt = _spelling(text)
    spellings = [(_spelling(choice), letter) for letter, choice in zip(letters, choices, strict=False)]
    begun = [
        (len(choice), letter)
        for choice, letter in spellings
        if choice and re.match(rf"{re.escape(choice)}(?!\w)", spelt)
    ]
    return {max(begun)[1]} if begun else set()


def _letter(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).upper()


def _of_text(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The choices whose text this is."""
    spelt = _spelling(text)
    return {letter for letter, choice in zip(letters, choices, strict=False) if spelt and _spelling(choice) == spelt}


def _spelling(text: str) -> str:
    return re.sub(r"\s+", " ", _MARKUP.sub("", text)).strip(" .,;:\"'").casefold()
