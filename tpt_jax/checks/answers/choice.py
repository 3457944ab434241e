r"""The multiple-choice checker: reads the choice a trace picks, as a letter, in a box or as the choice's full text.

A letter counts only if the trace announces or affirms it, or names no other choice. Different announcements count as
no answer unless one takes the other back: a wrong trace judged correct would be trained on.
"""

import re
import string
from collections.abc import Sequence

from tpt_jax.checks.answers.conclusion import conclusion, find_doubt
from tpt_jax.records import Question, Verdict

MAX_TEXT_CHARACTERS = 20_000  # final answers come last, so only the end of a longer trace is read
MAX_ANSWER_CHARACTERS = 500  # read before and after a marker
MAX_MARKERS = 50  # only the last ones of a trace are read

STRICT = re.compile(r"^#### ([A-Z])[ \t]*$", re.MULTILINE)
_MARKER = re.compile(  # "form": an answer format, which outranks words
    r"(?P<form>####|<answer>|\\boxed\s*\{)|\b(?:answer|ans|option|choice|(?:correct|right)\s+one)\**"
    r"(?:\s+(?:is|equals|(?:would|must|should|will|has\s+to)\s+be)\b|\s*[=:]|\s+[-–—](?=\s))",
    re.IGNORECASE,
)
_CLAUSE_START = re.compile(r"[.!?;:,\n]|\b(?:so|thus|hence|then|therefore)\b", re.IGNORECASE)  # starts a new clause
_NEGATION = re.compile(
    r"(?i)\b(?:not|cannot|no|never|wrong|false|incorrect|neither|except|eliminat\w+|exclud\w+|rul\w+ out|least|worst"
    r"|unlikely|unsure|if|whether|suppos\w+|assum\w+|thought(?! about)|tempting|might|had (?:it|the|asked|been))\b"
    r"|n't\b|\?"
)
# "Another plausible option is" announces nothing; "this means the answer is" does: its article starts a new phrase.
_OTHER_CHOICE = re.compile(
    r"(?i)\b(?:another|other(?! words)|next|each|every|this|popular|common|distractor|remaining|first|second|third)"
    r"(?:\s+(?!the\b)[\w'-]+){0,2}\W*$"
)
_RETRACTING_NO = re.compile(r"(?i)\bno[,.!]")  # takes back what precedes it: "No, the answer is B"
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed)\b\s*|\\[()\[\],;!]|[*_$`{}]|</?\w+>")
_FILLER = re.compile(
    r"(?i)^[\s:=\"'“\[]*(?:(?:the\s+)?(?:correct\s+|right\s+|final\s+)?(?:answer|option|choice|letter)\b\s*(?:is|:)?\s*)*"
    r"[\s:\"'“\[]*"
)
_LETTER = r"(?:\(([A-Za-z])\)|([A-Z])(?!\w|[-'’]\w|\+\+|#)|([a-z])(?=[).:]|\s*$))"  # but not "C++", "C-shaped", "C's"
_LETTER_PATTERN = re.compile(_LETTER)
_NEXT_LETTER = re.compile(
    r"(?i)\W{0,3}\s*(?:,|/|&|\bor\b|\band\b)\s*(?:(?:option|choice|maybe|perhaps|possibly)\s+)*" + _LETTER
)
# After A or I: the letter is a word, as in "A triangle" and "I think".
_WORD_FOLLOWS = re.compile(r"\s+(?!because\b|since\b|as\b|is\b|and\b|or\b|which\b)[a-z]")
_AFFIRMING_WORD = re.compile(
    r"(?i)\b(?:answer|correct|right|true|best|must|so|thus|hence|therefore|choose|pick|select|go with|maybe)\b"
)
_CHOICE = rf"(?i:(?:option|choice|answer|letter)\s+)?{_LETTER}[).:]*(?P<text>[^.;,]*?)[\s)]*"
_THUS = "so|thus|hence|therefore"
_AFFIRMATIONS = (
    re.compile(  # "So C) Rome is the right choice"
        rf"(?:^\W*|[.,;:]\s*|\b(?i:{_THUS}|only|(?:I think|I believe|conclude|find|see|means)(?: that)?)\s+){_CHOICE}"
        r"\b(?:is|must be|has to be)\s+(?:(?:the|only|most|clearly|indeed)\s+)*(?:correct|right|best|answer)\b"
    ),
    re.compile(  # "I would choose C because"
        r"\b(?i:(?:I|we|let's)(?:'\w+|\s\w+)?\s(?:choose|pick|select|go(?:ing)? with)|it(?:'s| is| must be| has to be)"
        rf"|{_THUS})[,:]?\s+{_CHOICE}(?:$|[.;!](?=\s|$)|\b(?:because|since)\b)"
    ),
)
_EXPLANATION_START = re.compile(r"[\s).:,;–-]*(?:\b(?:which|that|it) is\b|\bi\.e\.,?|\bnamely\b)?[\s:]*", re.IGNORECASE)
_SINGLE_LETTER = re.compile(r"(?<![\w'])(?!(?:A|I)\s+[a-z])([A-Z])(?![\w'])")
_NAMED_LETTER = re.compile(r"\(([A-Z])\)|\b(?:[Oo]ption|[Cc]hoice|OPTION|CHOICE)\s+\(?([A-Z])\b")
_LINE_LABEL = re.compile(
    r"(?m)\W*(?:(?i:option|choice)\s+\W?([A-Z])\b|([A-Z])[^\w\n]*(?:$|(?<=[).:])))"
)  # starts a line
_REJECTION = re.compile(r"(?i)\b(?:this|that|it)(?:'s| is) (?:wrong|incorrect|not (?:right|correct))\b")


def check_choice(question: Question, completion: str) -> Verdict:
    """Compares letters: question.answer is the correct choice's letter, question.data["choices"] all choices' texts.

    Strict if the answer is correct and the last line of the form "#### C" names it.
    """
    choices = [str(choice) for choice in question.data.get("choices", ())]
    letters = string.ascii_uppercase[: len(choices) or None]
    reference = question.answer.strip()
    if len(reference) != 1 or reference not in letters:
        return Verdict.unreadable()
    text = conclusion(completion, _MARKER)[-MAX_TEXT_CHARACTERS:]
    picked, after = _find_announced(text, choices, letters)
    is_taken_back = find_doubt(_without_rejections(after, picked)) is not None and not _is_repeated(after, picked)
    if is_taken_back:
        picked = _read_last_line(text, choices, letters)
    elif not picked:
        readers = (_read_last_line, _find_named, _read_first_line)
        picked = next(filter(None, (read(text, choices, letters) for read in readers)), set())
    if not picked:
        return Verdict.wrong("taken back" if is_taken_back else "no answer")
    if len(picked) > 1:
        return Verdict.wrong("several answers")
    (letter,) = picked
    strict = STRICT.findall(text)
    correct = letter == reference
    return Verdict(letter, strict=correct and strict[-1:] == [letter], correct=correct)


def _find_announced(text: str, choices: Sequence[str], letters: str) -> tuple[set[str], str]:
    """The letters announced and not taken back, and the text after them: "" if the last line affirms them."""
    picked = _find_affirmed(text.rstrip().rpartition("\n")[2], choices, letters)
    start, after = len(text), ""
    for marker in reversed(list(_MARKER.finditer(text))[-MAX_MARKERS:]):
        announced = _announced_at(marker, text, choices, letters)
        if not announced:
            continue
        between = text[marker.end() : start]
        if not picked:
            picked, after = announced, text[marker.end() :]
        elif find_doubt(between) or _RETRACTING_NO.search(between):
            break
        elif not picked <= announced:  # a subset: the trace has only narrowed its answer down
            picked |= announced
        if marker["form"]:  # outranks announcements in words before it
            break
        start = marker.start()
    return picked, after


def _announced_at(marker: re.Match[str], text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters after a marker, unless its clause negates them or is about another choice."""
    before = _CLAUSE_START.split(text[max(0, marker.start() - MAX_ANSWER_CHARACTERS) : marker.start()])[-1]
    if marker["form"] is None and (_NEGATION.search(before) or _OTHER_CHOICE.search(before)):
        return set()
    after = text[marker.end() : marker.end() + MAX_ANSWER_CHARACTERS]
    line, _, rest = after.lstrip("* \t\n").partition("\n")
    if "\n" not in after[: after.find(line)]:
        return _read_letters(line, choices, letters)
    # A list of all choices, in ascending order, is no answer: "To find the right option:\nA) Paris ..."
    return set() if "" < _line_label(line) < _line_label(rest) else _read_bare_answer(line, choices, letters)


def _find_affirmed(line: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters that a line, or its last sentence, calls correct or picks, without negation or doubt."""
    if len(line) > MAX_ANSWER_CHARACTERS or _NEGATION.search(line):
        line = re.split(r"[.!?]\s+", line)[-1]
    if len(line) > MAX_ANSWER_CHARACTERS or _NEGATION.search(line) or find_doubt(line):
        return set()
    matches = (match for pattern in _AFFIRMATIONS for match in pattern.finditer(_MARKUP.sub("", line)))
    named = ((_letter_of(match), _normalise(match["text"])) for match in matches)
    return {
        letter
        for letter, choice_text in named
        if not choice_text or letter in _choices_with_text(choice_text, choices, letters)
    } & set(letters)


def _is_repeated(after: str, announced: set[str]) -> bool:
    """Whether the last letter named after an announcement is the announced one again."""
    return [*announced] == _SINGLE_LETTER.findall(after)[1:][-1:]


def _without_rejections(after: str, announced: set[str]) -> str:
    """The text after an answer, without rejections on the lines of other choices: "A) Paris: this is wrong"."""
    lines = after.split("\n")
    return "\n".join(line if _line_label(line) in {"", *announced} else _REJECTION.sub("", line) for line in lines)


def _read_last_line(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters of a last line that is a bare answer and not the end of a list of choices."""
    above, _, line = text.rstrip().rpartition("\n")
    labels = [*filter(None, map(_line_label, above.split("\n")))]
    return set() if labels and labels[-1] < _line_label(line) else _read_bare_answer(line, choices, letters)


def _read_first_line(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letter of a first line that is a bare answer, if no later line starts with another choice or doubts it."""
    line, _, rest = text.strip().partition("\n")
    has_others = any(_line_label(other) not in ("", _line_label(line)) for other in rest.split("\n"))
    return (
        set() if not _line_label(line) or has_others or find_doubt(rest) else _read_bare_answer(line, choices, letters)
    )


def _read_bare_answer(line: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters of a line that is a bare answer: "C", "Paris", or "C) Paris" if Paris is the text of C."""
    plain = _FILLER.sub("", _MARKUP.sub("", line))
    first = _LETTER_PATTERN.match(plain)
    text = plain[first.end() :].lstrip(").:]'\" ") if first else ""
    if (first and not text) or _choices_with_text(plain, choices, letters):
        return _read_letters(line, choices, letters)
    return {_letter_of(first)} & _choices_with_text(text, choices, letters) if first else set()


def _line_label(line: str) -> str:
    """The letter of the choice a line starts with; "" for none."""
    label = _LINE_LABEL.match(line)
    return _letter_of(label) if label else ""


def _find_named(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters in parentheses or after "option" anywhere in a text, if its last line affirms one."""
    last_line = text.rstrip().rpartition("\n")[2]
    named = _NAMED_LETTER.search(last_line)
    if named is None or _NEGATION.search(last_line):
        return set()
    before = _normalise(last_line[: named.start()])
    is_text = any(before.endswith(f"is {_normalise(choice)}") for choice in choices)  # "It is Rome (C)"
    if not (is_text or _AFFIRMING_WORD.search(last_line)):
        return set()
    return {first or second for first, second in _NAMED_LETTER.findall(text)} & set(letters)


def _read_letters(line: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters that an announced answer begins with, and the choice whose text it is."""
    plain = _FILLER.sub("", _MARKUP.sub("", line))
    by_text = _choices_with_text(plain, choices, letters)
    if by_text:
        return by_text
    first = _LETTER_PATTERN.match(plain)
    if first is None or (first.group() in ("A", "I") and _WORD_FOLLOWS.match(plain, first.end())):
        return set()
    picked = {_letter_of(first)}
    position = first.end()
    while following := _NEXT_LETTER.match(plain, position):
        picked.add(_letter_of(following))
        position = following.end()
    rest = plain[position:]
    if re.match(r"[ )]*(?:\?|is(?:n't| not| wrong| incorrect)\b)", rest):
        return set()
    return (picked | _choice_at_start(_EXPLANATION_START.sub("", rest, count=1), choices, letters)) & set(letters)


def _choice_at_start(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letter of the choice whose text starts this one, to catch contradictions: "C) Paris" if Paris is B."""
    normalised = _normalise(text)
    texts = ((_normalise(choice), letter) for letter, choice in zip(letters, choices, strict=False))
    matches = [
        (len(choice_text), letter)
        for choice_text, letter in texts
        if choice_text and re.match(rf"{re.escape(choice_text)}(?!\w)", normalised)
    ]
    return {max(matches)[1]} if matches else set()


def _letter_of(match: re.Match[str]) -> str:
    """The letter of a match, in upper case."""
    return next(group for group in match.groups() if group is not None).upper()


def _choices_with_text(text: str, choices: Sequence[str], letters: str) -> set[str]:
    """The letters of the choices with this text."""
    normalised = _normalise(text)
    return {
        letter
        for letter, choice in zip(letters, choices, strict=False)
        if normalised and _normalise(choice) == normalised
    }


def _normalise(text: str) -> str:
    """Normalises a text for comparison: no markup, case, outer punctuation or repeated spaces."""
    return re.sub(r"\s+", " ", _MARKUP.sub("", text)).strip(" .,;:\"'").casefold()
