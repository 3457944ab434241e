r"""The multiple-choice checker: reads the choice a trace picks, as a letter, in a box or as the choice's full text.

A letter counts only if the trace announces or affirms it, or names no other choice. Different announcements count as
no answer unless one takes the other back: a wrong trace judged correct would be trained on.
"""

import dataclasses
import functools
import re
import string
from collections.abc import Mapping

from tpt_jax.checks.answers.announce import MAX_ANSWER_CHARACTERS, NEGATING_WORDS, Announcement, Kind
from tpt_jax.checks.answers.doubt import find_doubt, is_undecided
from tpt_jax.checks.answers.extract import Missing, Reader, extract_answer
from tpt_jax.checks.answers.turns import visible_text
from tpt_jax.records import Question, Verdict

STRICT = re.compile(r"^#### ([A-Z])[ \t]*$", re.MULTILINE)
_NOUNS = re.compile(r"answer|\bans\b|\boption|\bchoice|\b(?:correct|right) one\b")
_NEGATION = re.compile(rf"\b(?:{NEGATING_WORDS}|no)\b|n't\b|\?", re.IGNORECASE)
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed)\b\s*|\\[()\[\],;!]|[*_$`{}]|</?\w+>")
_FILLER = re.compile(
    r"(?i)^[\s:=\"'“\[]*(?:(?:the\s+)?(?:correct\s+|right\s+|final\s+)?(?:answer|option|choice|letter)\b\s*(?:is|:)?\s*)*"
    r"[\s:\"'“\[]*"
)
_LETTER = r"(?:\(([A-Za-z])\)|([A-Z])(?!\w|[-'’]\w|\+\+|#)|([a-z])(?=[).:]|\s*$))"  # but not "C++", "C-shaped", "C's"
_LETTER_PATTERN = re.compile(_LETTER)
_NEXT_LETTER = re.compile(
    r"\W{0,3}\s*(?:,|/|&|\b(?i:or|and)\b)\s*(?:(?i:option|choice|maybe|perhaps|possibly)\s+)*" + _LETTER
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
    re.compile(  # "only B remains"
        rf"\b(?i:only)\s+(?:(?i:option|choice)\s+)?{_LETTER}(?P<text>)\s+(?:remains|is left|fits|works)\b"
    ),
    re.compile(  # "it is most likely C, because"
        rf"\b(?i:most likely|probably)\s+(?:(?i:option|choice)\s+)?{_LETTER}(?P<text>)(?=\s*(?:[.,;:]|$))"
    ),
    re.compile(  # "I would choose C because"
        r"\b(?i:(?:I|we|let's)(?:'\w+|\s\w+)?\s(?:choose|pick|select|go(?:ing)? with)|it(?:'s| is| must be| has to be)"
        rf"|{_THUS})[,:]?\s+{_CHOICE}(?:$|[.;!](?=\s|$)|\b(?:because|since)\b)"
    ),
)
_EXPLANATION_START = re.compile(r"[\s).:,;–-]*(?:\b(?:which|that|it) is\b|\bi\.e\.,?|\bnamely\b)?[\s:]*", re.IGNORECASE)
_SINGLE_LETTER = re.compile(r"(?<![\w'])(?!(?:A|I)\s+[a-z])([A-Z])(?![\w'])")
_NAMED_LETTER = re.compile(r"\(([A-Z])\)|\b(?:[Oo]ption|[Cc]hoice|OPTION|CHOICE)\s+\(?([A-Z])\b")
_NO_CHOICE = re.compile(r"n/a\b|none of", re.IGNORECASE)
_REJECTED = re.compile(r"[ )]*(?:\?|is(?:n't| not| wrong| incorrect)\b)")  # "C is wrong", "C?"
_WITH_TEXT = re.compile(r"(?<![\w'])([A-Z])[).:]\s*")
_LINE_LABEL = re.compile(
    r"(?m)\W*(?:(?i:option|choice)\s+\W?([A-Z])\b|([A-Z])[^\w\n]*(?:$|(?<=[).:])))"
)  # starts a line


def check_choice(question: Question, completion: str, *, is_finished: bool = True) -> Verdict:
    """Compares letters: question.answer is the correct choice's letter, question.data["choices"] all choices' texts.

    Strict if the answer is correct and the last line of the form "#### C" names it.
    """
    reader = _reader(tuple(map(str, question.data.get("choices", ()))))
    reference = question.answer.strip()
    if reference not in reader.choices.letters:
        return Verdict.unreadable()
    answer = extract_answer(completion, reader, is_finished=is_finished)
    if isinstance(answer, Missing):
        return Verdict.wrong(answer.value)
    correct = answer.value == reference
    strict = STRICT.findall(visible_text(completion))
    return Verdict(answer.value, strict=correct and strict[-1:] == [reference], correct=correct)


@dataclasses.dataclass(frozen=True)
class Choices:
    """The choices of a question.

    Attributes:
      texts: by letter, as written; empty if unknown.
      normalised: the same for comparison; without empty ones.
      letters: those that a choice can have.
    """

    texts: Mapping[str, str]
    normalised: Mapping[str, str]
    letters: frozenset[str]


@functools.lru_cache(maxsize=1_024)  # every sample of a question has the same choices
def _reader(texts: tuple[str, ...]) -> "ChoiceReader":
    by_letter = dict(zip(string.ascii_uppercase, texts, strict=False))
    normalised = {letter: text for letter, choice in by_letter.items() if (text := _normalise(choice))}
    return ChoiceReader(Choices(by_letter, normalised, frozenset(by_letter or string.ascii_uppercase)))


@dataclasses.dataclass(frozen=True)
class ChoiceReader(Reader[str]):
    """Reads the letters of choices."""

    choices: Choices
    nouns = _NOUNS
    is_exclusive = True

    def read(self, announcement: Announcement) -> str | Missing:
        """Reads the letters that the announcement begins with, or the choice whose text it is."""
        text = announcement.text
        if announcement.kind is Kind.HASHES or not announcement.is_passage:
            return _single(_read_letters(text.partition("\n")[0], self.choices))
        # A list of all choices, in ascending order, is no answer: "To find the right option:\nA) Paris ..."
        line, _, rest = text.partition("\n")
        if "" < _line_label(line) < _line_label(rest):
            return Missing.NONE
        bare = _read_bare_answer(line, self.choices)
        return _single(bare) if bare else self.read_conclusion(text)[0]

    def read_last(self, text: str) -> str | Missing:
        """The last letter of a text."""
        return next(
            (letter for letter in reversed(_SINGLE_LETTER.findall(text)) if letter in self.choices.letters),
            Missing.NONE,
        )

    def read_conclusion(self, text: str) -> tuple[str | Missing, str]:
        """Reads the last line, else the letters named in the text, else the first line, whatever names a choice."""
        for read in (_read_last_line, _find_named, _read_first_line):
            if picked := read(text, self.choices):
                return _single(picked), ""
        return Missing.NONE, ""

    def closing(self, text: str) -> str:
        """The last line if it affirms one choice, or is a bare answer."""
        picked = _find_affirmed(text.rstrip().rpartition("\n")[2], self.choices)
        picked = picked or _read_last_line(text, self.choices)
        return " or ".join(sorted(picked))

    def are_same(self, left: str, right: str) -> bool:
        return left == right


def _single(picked: set[str]) -> str | Missing:
    """The only letter of a set."""
    return (Missing.SEVERAL if len(picked) > 1 else next(iter(picked))) if picked else Missing.NONE


def _find_affirmed(line: str, choices: Choices) -> set[str]:
    """The letters that a line, or its last sentence, calls correct or picks, without negation or doubt."""
    if len(line) > MAX_ANSWER_CHARACTERS or _NEGATION.search(line):
        line = re.split(r"[.!?]\s+", line)[-1]
    if len(line) > MAX_ANSWER_CHARACTERS or _NEGATION.search(line) or find_doubt(line):
        return set()
    matches = (match for pattern in _AFFIRMATIONS for match in pattern.finditer(_MARKUP.sub("", line)))
    named = ((_letter_of(match), _normalise(match["text"])) for match in matches)
    return {
        letter for letter, choice_text in named if not choice_text or letter in _choices_with_text(choice_text, choices)
    } & choices.letters


def _read_last_line(text: str, choices: Choices) -> set[str]:
    """The letters of a last line that is a bare answer and not the end of a list of choices."""
    above, _, line = text.rstrip().rpartition("\n")
    labels = [*filter(None, map(_line_label, above.split("\n")))]
    return set() if labels and labels[-1] < _line_label(line) else _read_bare_answer(line, choices)


def _read_first_line(text: str, choices: Choices) -> set[str]:
    """The letter of a first line that is a bare answer, if no later line starts with another choice or doubts it."""
    line, _, rest = text.strip().partition("\n")
    has_others = any(_line_label(other) not in ("", _line_label(line)) for other in rest.split("\n"))
    return set() if not _line_label(line) or has_others or find_doubt(rest) else _read_bare_answer(line, choices)


def _read_bare_answer(line: str, choices: Choices) -> set[str]:
    """The letters of a line that is a bare answer: "C", "Paris", or "C) Paris" if Paris is the text of C."""
    plain = _FILLER.sub("", _MARKUP.sub("", line))
    first = _LETTER_PATTERN.match(plain)
    text = plain[first.end() :].lstrip(").:]'\" ") if first else ""
    if (first and not text) or _choices_with_text(plain, choices):
        return _read_letters(line, choices)
    return {_letter_of(first)} & _choices_with_text(text, choices) if first else set()


def _line_label(line: str) -> str:
    """The letter of the choice a line starts with; "" for none."""
    label = _LINE_LABEL.match(line)
    return _letter_of(label) if label else ""


def _find_named(text: str, choices: Choices) -> set[str]:
    """The letters in parentheses or after "option" anywhere in a text, if its last line affirms one."""
    last_line = text.rstrip().rpartition("\n")[2]
    with_text = {
        match[1]
        for match in _WITH_TEXT.finditer(last_line)
        if match[1] in _choice_at_start(last_line[match.end() :], choices)
    }
    if len(with_text) == 1 and not _NEGATION.search(last_line) and not _LINE_LABEL.match(last_line):
        return with_text  # "This is known as C. Rome"
    named = _NAMED_LETTER.search(last_line)
    if named is None or _NEGATION.search(last_line):
        return set()
    before = _normalise(last_line[: named.start()])
    is_text = any(before.endswith(f"is {choice}") for choice in choices.normalised.values())  # "It is Rome (C)"
    if not (is_text or _AFFIRMING_WORD.search(last_line)):
        return set()
    return {first or second for first, second in _NAMED_LETTER.findall(text)} & choices.letters


def _read_letters(line: str, choices: Choices) -> set[str]:
    """The letters that an announced answer begins with, and the choice whose text it is."""
    plain = _FILLER.sub("", _MARKUP.sub("", line))
    by_text = _choices_with_text(plain, choices)
    if by_text and plain.strip(" .()") not in choices.letters:
        return by_text
    if _NO_CHOICE.match(plain) or (is_undecided(plain) and not _LETTER_PATTERN.match(plain)):
        return set()
    first = _LETTER_PATTERN.match(plain)
    if first is None or (first.group() in ("A", "I") and _WORD_FOLLOWS.match(plain, first.end())):
        return set()
    picked = {_letter_of(first)}
    position = _end_of_choice(plain, first, choices)
    while following := _NEXT_LETTER.match(plain, position):
        picked.add(_letter_of(following))
        position = _end_of_choice(plain, following, choices)
    rest = plain[position:]
    if _REJECTED.match(rest):
        return set()
    return (picked | _choice_at_start(_EXPLANATION_START.sub("", rest, count=1), choices)) & choices.letters


def _end_of_choice(text: str, letter: re.Match[str], choices: Choices) -> int:
    """Where a letter ends, with the text of its choice if that follows."""
    own = choices.texts.get(_letter_of(letter), "").casefold()
    start = len(text) - len(text[letter.end() :].lstrip(").: \t"))
    end = start + len(own)
    follows = own and text[start:end].casefold() == own and not text[end : end + 1].isalnum()
    return end if follows else letter.end()


def _choice_at_start(text: str, choices: Choices) -> set[str]:
    """The letter of the choice whose text starts this one, to catch contradictions: "C) Paris" if Paris is B."""
    normalised = _normalise(text)
    matches = [
        (len(choice), letter)
        for letter, choice in choices.normalised.items()
        if normalised.startswith(choice) and not normalised[len(choice) : len(choice) + 1].isalnum()
    ]
    return {max(matches)[1]} if matches else set()


def _letter_of(match: re.Match[str]) -> str:
    """The letter of a match, in upper case."""
    return next(group for group in match.groups() if group is not None).upper()


def _choices_with_text(text: str, choices: Choices) -> set[str]:
    """The letters of the choices with this text."""
    normalised = _normalise(text)
    return {letter for letter, choice in choices.normalised.items() if choice == normalised}


def _normalise(text: str) -> str:
    """Normalises a text for comparison: no markup, case, outer punctuation or repeated spaces."""
    return " ".join(_MARKUP.sub("", text).split()).strip(" .,;:\"'").casefold()
