r"""Multiple choice: the letter that a trace decides on, as a letter, in a box or as the choice's whole text.

A letter counts only where the trace announces or affirms it as its answer, or names one choice alone. Announcements
that differ decide on nothing unless one takes the other back: a wrong trace taken for a right one is trained on.
"""

import re
import string
from collections.abc import Sequence

from tpt_jax.checks.answers.conclusion import conclusion, find_doubt
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
_NEGATION = re.compile(
    r"(?i)\b(?:not|cannot|no|never|wrong|false|incorrect|neither|except|eliminat\w+|exclud\w+|rul\w+ out|least|worst"
    r"|unlikely|unsure|if|whether|suppos\w+|assum\w+|thought(?! about)|tempting|might|had (?:it|the|asked|been))\b"
    r"|n't\b|\?"
)
# "Another plausible option is" announces nothing; "this means the answer is" does, as its article begins a new phrase.
_OTHER = re.compile(
    r"(?i)\b(?:another|other(?! words)|next|each|every|this|popular|common|distractor|remaining|first|second|third)"
    r"(?:\s+(?!the\b)[\w'-]+){0,2}\W*$"
)
_NO = re.compile(r"(?i)\bno[,.!]")  # takes back what stands before it: "No, the answer is B"
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed)\b\s*|\\[()\[\],;!]|[*_$`{}]|</?\w+>")
_FILLER = re.compile(
    r"(?i)^[\s:=\"'“\[]*(?:(?:the\s+)?(?:correct\s+|right\s+|final\s+)?(?:answer|option|choice|letter)\b\s*(?:is|:)?\s*)*"
    r"[\s:\"'“\[]*"
)
_LETTER = r"(?:\(([A-Za-z])\)|([A-Z])(?!\w|[-'’]\w|\+\+|#)|([a-z])(?=[).:]|\s*$))"  # not of "C++", "C-shaped", "C's"
_FIRST = re.compile(_LETTER)
_MORE = re.compile(
    r"(?i)\W{0,3}\s*(?:,|/|&|\bor\b|\band\b)\s*(?:(?:option|choice|maybe|perhaps|possibly)\s+)*" + _LETTER
)
# What follows the A of "A triangle" and the I of "I think".
_ARTICLE = re.compile(r"\s+(?!because\b|since\b|as\b|is\b|and\b|or\b|which\b)[a-z]")
_AFFIRMATION = re.compile(
    r"(?i)\b(?:answer|correct|right|true|best|must|so|thus|hence|therefore|choose|pick|select|go with|maybe)\b"
)
_NAME = rf"(?i:(?:option|choice|answer|letter)\s+)?{_LETTER}[).:]*(?P<text>[^.;,]*?)[\s)]*"
_SO = "so|thus|hence|therefore"
_AFFIRMED = (
    re.compile(  # "So C) Rome is the right choice"
        rf"(?:^\W*|[.,;:]\s*|\b(?i:{_SO}|only|(?:I think|I believe|conclude|find|see|means)(?: that)?)\s+){_NAME}"
        r"\b(?:is|must be|has to be)\s+(?:(?:the|only|most|clearly|indeed)\s+)*(?:correct|right|best|answer)\b"
    ),
    re.compile(  # "I would choose C because"
        r"\b(?i:(?:I|we|let's)(?:'\w+|\s\w+)?\s(?:choose|pick|select|go(?:ing)? with)|it(?:'s| is| must be| has to be)"
        rf"|{_SO})[,:]?\s+{_NAME}(?:$|[.;!](?=\s|$)|\b(?:because|since)\b)"
    ),
)
_SAYS_TEXT = re.compile(r"[\s).:,;–-]*(?:\b(?:which|that|it) is\b|\bi\.e\.,?|\bnamely\b)?[\s:]*", re.IGNORECASE)
_LATER = re.compile(r"(?<![\w'])(?!(?:A|I)\s+[a-z])([A-Z])(?![\w'])")
_NAMED = re.compile(r"\(([A-Z])\)|\b(?:[Oo]ption|[Cc]hoice|OPTION|CHOICE)\s+\(?([A-Z])\b")
_LABEL = re.compile(r"(?m)\W*(?:(?i:option|choice)\s+\W?([A-Z])\b|([A-Z])[^\w\n]*(?:$|(?<=[).:])))")  # of a line
_REJECTION = re.compile(r"(?i)\b(?:this|that|it)(?:'s| is) (?:wrong|incorrect|not (?:right|correct))\b")


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
    taken_back = find_doubt(_of_others_unrejected(after, found)) is not None and not _says_again(after, found)
    if taken_back:
        found = _last_line(text, choices, letters)
    elif not found:
        ways = (_last_line, _named, _first_line)
        found = next(filter(None, (way(text, choices, letters) for way in ways)), set())
    if not found:
        return Verdict.wrong("taken back" if taken_back else "no answer")
    if len(found) > 1:
        return Verdict.wrong("several answers")
    (letter,) = found
    strict = STRICT.findall(text)
    correct = letter == reference
    return Verdict(letter, strict=correct and strict[-1:] == [letter], correct=correct)


def _announced(text: str, choices: Sequence[str], letters: str) -> tuple[set[str], str]:
    """The letters announced last, with what earlier words announce and nothing takes back, and all that follows."""
    found = _affirmed(text.rstrip().rpartition("\n")[2], choices, letters)
    start, after = len(text), ""
    for mark in reversed(list(_MARK.finditer(text))[-MOST_MARKS:]):
        announced = _announced_at(mark, text, choices, letters)
        if not announced:
            continue
        between = text[mark.end() : start]
        if not found:
            found, after = announced, text[mark.end() :]
        elif find_doubt(between) or _NO.search(between):
            break
        elif not found <= announced:  # where it is a part, the answer has only been narrowed down
            found |= announced
        if mark["form"]:  # it outdoes the words before it
            break
        start = mark.start()
    return found, after


def _announced_at(mark: re.Match[str], text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters after a mark, if its clause neither denies them nor speaks of another choice."""
    before = _CLAUSE.split(text[max(0, mark.start() - LONGEST_ANSWER) : mark.start()])[-1]
    if mark["form"] is None and (_NEGATION.search(before) or _OTHER.search(before)):
        return set()
    after = text[mark.end() : mark.end() + LONGEST_ANSWER]
    line, _, rest = after.lstrip("* \t\n").partition("\n")
    if "\n" not in after[: after.find(line)]:
        return _read(line, choices, letters)
    # Below a mark may also begin a list of all choices, whose letters ascend: "To find the right option:\nA) Paris ..."
    return set() if "" < _label(line) < _label(rest) else _alone(line, choices, letters)


def _affirmed(line: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters that a line, or its last sentence, calls right or chooses where it denies and doubts nothing."""
    if len(line) > LONGEST_ANSWER or _NEGATION.search(line):
        line = re.split(r"[.!?]\s+", line)[-1]
    if len(line) > LONGEST_ANSWER or _NEGATION.search(line) or find_doubt(line):
        return set()
    matches = (match for pattern in _AFFIRMED for match in pattern.finditer(_MARKUP.sub("", line)))
    named = ((_letter(match), _spelling(match["text"])) for match in matches)
    return {letter for letter, said in named if not said or letter in _of_text(said, choices, letters)} & set(letters)


def _says_again(after: str, found: set[str]) -> bool:
    """Whether the last letter after a mark, but for the one that is announced there, is the announced one."""
    return [*found] == _LATER.findall(after)[1:][-1:]


def _of_others_unrejected(after: str, found: set[str]) -> str:
    """What follows an answer, without what it rejects on the lines of other choices: "A) Paris: this is wrong"."""
    lines = after.split("\n")
    return "\n".join(line if _label(line) in {"", *found} else _REJECTION.sub("", line) for line in lines)


def _last_line(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters of a last line that is an answer and nothing else, nor the end of a list of choices."""
    above, _, line = text.rstrip().rpartition("\n")
    labels = [*filter(None, map(_label, above.split("\n")))]
    return set() if labels and labels[-1] < _label(line) else _alone(line, choices, letters)


def _first_line(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letter of a first line that is an answer and nothing else, where no line is another choice's or doubts it."""
    line, _, rest = text.strip().partition("\n")
    has_others = any(_label(other) not in ("", _label(line)) for other in rest.split("\n"))
    return set() if not _label(line) or has_others or find_doubt(rest) else _alone(line, choices, letters)


def _alone(line: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters of a line that is an answer and nothing else: "C", "Paris", "C) Paris" where Paris is C's text."""
    plain = _FILLER.sub("", _MARKUP.sub("", line))
    first = _FIRST.match(plain)
    text = plain[first.end() :].lstrip(").:]'\" ") if first else ""
    if (first and not text) or _of_text(plain, choices, letters):
        return _read(line, choices, letters)
    return {_letter(first)} & _of_text(text, choices, letters) if first else set()


def _label(line: str) -> str:
    """The letter of the choice that a line begins with, or nothing."""
    label = _LABEL.match(line)
    return _letter(label) if label else ""


def _named(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters that stand in parentheses or after "option", where the last line affirms one."""
    last = text.rstrip().rpartition("\n")[2]
    named = _NAMED.search(last)
    if named is None or _NEGATION.search(last):
        return set()
    before = _spelling(last[: named.start()])
    is_text = any(before.endswith(f"is {_spelling(choice)}") for choice in choices)  # "It is Rome (C)"
    if not (is_text or _AFFIRMATION.search(last)):
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
    if re.match(r"[ )]*(?:\?|is(?:n't| not| wrong| incorrect)\b)", rest):
        return set()
    return (found | _beginning(_SAYS_TEXT.sub("", rest, count=1), choices, letters)) & set(letters)


def _beginning(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The choice with whose text another begins: "C) Paris" where Paris is B decides on nothing."""
    spelt = _spelling(text)
    spellings = ((_spelling(choice), letter) for letter, choice in zip(letters, choices, strict=False))
    begun = [(len(said), name) for said, name in spellings if said and re.match(rf"{re.escape(said)}(?!\w)", spelt)]
    return {max(begun)[1]} if begun else set()


def _letter(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).upper()


def _of_text(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The choices whose text this is."""
    spelt = _spelling(text)
    return {letter for letter, choice in zip(letters, choices, strict=False) if spelt and _spelling(choice) == spelt}


def _spelling(text: str) -> str:
    return re.sub(r"\s+", " ", _MARKUP.sub("", text)).strip(" .,;:\"'").casefold()
