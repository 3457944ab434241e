r"""Finds where a trace announces its answer, and which announcement stands. One grammar for every kind of answer.

A reader (number.py, latex.py, choice.py, tagged.py) turns the text of an announcement into a value and compares values.
What counts as an announcement, and whether it stands, is decided here alone:

  - Announcements are "#### 18", \boxed{18}, <answer>18</answer>, "answer": 18, "A: 18", a heading "## Answer" and
    phrases such as "the answer is 18", "answer: 18", "18 is the answer".
  - The last one counts. In words it must agree with an earlier one in a format (####, box, tag, key), unless a doubt
    lies between them, or it says "final".
  - One that stands but holds no readable value means no answer: an earlier number is never taken instead.
  - "Not 18", "if the answer is 18" and "the wrong answer is 18" announce nothing, and cancel an earlier 18.
  - A doubt after the answer ("Wait, ...") takes it back, unless the trace reaches the same value again.
  - Hidden reasoning is not read, nor what follows an invented turn or another problem.
  - Where nothing is announced, the end of the text is read, unless the trace was cut, or ends in the middle of
    something: reasoning, a code fence, a traceback, a formula.
"""

import dataclasses
import enum
import itertools
import re
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from tpt_jax.checks.answers.boxes import boxed_expression, find_boxes, find_unclosed_box
from tpt_jax.checks.answers.doubt import find_doubt
from tpt_jax.checks.answers.turns import end_of_turn, is_open, visible_text

MAX_ANSWER_CHARACTERS = 500
MAX_ANNOUNCEMENTS = 50  # only the last ones of a trace are read
MAX_NOUNS = 100  # that may announce one; only the last ones are looked at
MAX_CLAUSE_CHARACTERS = 100  # before an announcement
MAX_PASSAGE_CHARACTERS = 5_000  # of a solution under a heading

V = TypeVar("V")


class Kind(enum.Enum):
    """How an answer is announced."""

    HASHES = "####"
    BOX = r"\boxed{}"
    TAG = "<answer>"
    KEY = '"answer":'
    HEADING = "heading"
    LABEL = "A:"
    WORDS = "words"


FORMATS = frozenset({Kind.HASHES, Kind.BOX, Kind.TAG, Kind.KEY})  # outrank words


class Missing(enum.Enum):
    """Why a trace has no final answer to compare."""

    NONE = "no answer"
    SEVERAL = "several answers"
    TAKEN_BACK = "taken back"
    UNFINISHED = "unfinished calculation"


@dataclasses.dataclass(frozen=True, slots=True)
class Announcement:
    """An announced answer.

    Attributes:
      text: the answer as written, without what announces it; "" if the trace ends there.
      start: where the announcement begins.
      end: where the text that can doubt it begins.
      is_denied: its clause negates it, or only supposes it.
      is_passage: the text is a solution, whose last value counts, and not a statement, whose first one does.
      is_final: it is called final.
      is_weak: the noun often announces nothing, as in "the first option is to wait".
    """

    kind: Kind
    text: str
    start: int
    end: int
    is_denied: bool = False
    is_passage: bool = False
    is_final: bool = False
    is_weak: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Answer(Generic[V]):
    """A trace's final answer; `announcement` is None if it was only read at the end of the text."""

    value: V
    announcement: Announcement | None


class Reader(Protocol[V]):
    """Reads values of one kind.

    Attributes:
      nouns: what announces an answer, in lower case; ANSWER, or more.
      is_exclusive: announcements in words contradict each other too; otherwise the last one counts.
    """

    nouns: re.Pattern[str]
    is_exclusive: bool

    def read(self, announcement: Announcement) -> V | Missing:
        """Reads a statement, which begins with the value, or a passage; never empty."""
        ...

    def read_last(self, text: str) -> V | Missing:
        """Reads the last value of a text."""
        ...

    def read_conclusion(self, text: str) -> tuple[V | Missing, str]:
        """Reads the value at the end of a text that announces none; also returns the text after it."""
        ...

    def closing(self, text: str) -> str:
        """The answer that the last line of a text announces in a form of its own; "" for none."""
        ...

    def are_same(self, left: V, right: V) -> bool:
        """Whether two values of one trace are the same."""
        ...


ANSWER = re.compile(r"answer")
_TO_LOWER_CASE = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)  # lower() would change lengths

_HASHES = re.compile(r"####+(?!#)")
_NUMBERED_HEADING = re.compile(  # "#### Step 3: Divide", "#### Day 2"
    r"\**\s*(?:step|part)?\s*\d{1,2}[.:)]\**\s+\**[A-Za-z]|\**\s*(?:step|part|day|case|week|month|year)\s+\d{1,2}\W*$",
    re.IGNORECASE,
)
_LABEL = re.compile(r"^[ \t]*\**a[ \t]*:(?![^\n]*\n\W*b[ \t]*:)", re.MULTILINE)  # unless a line "B: ..." follows
_KEY = re.compile(r"""["']?\s*:\s*(?:"((?:[^"\\\n]|\\.)*)"|'((?:[^'\\\n]|\\.)*)'|(\[[^\]\n]*\]|[^,}\n]*))""")
_BEFORE_KEY = re.compile(r"""(?:(?<!\w)["'](?:\w+[ _])*|\{\s*(?:\w+_)*)$""")
_HEADING = re.compile(r"s?\**[ \t]*:?\**[ \t]*$", re.MULTILINE)
_BEFORE_HEADING = re.compile(r"(?:^|\n)[ \t]*(?:#{1,6}[ \t]*)?\**(?:(?:the|final|correct|short|my|your)[ \t]+)*$")
# Between the noun and the value.
_LINK = re.compile(
    r"\**(?P<gap>[^.\n:=?!]{0,40}?)"
    r"(?:\b(?:is|are|equals|(?:would|will|should|must|has to|have to|ought to) be"
    r"|(?:comes|turns|works) (?:out )?to(?: be)?)\b"
    r"|(?=\b(?:cannot|can't|can not|could not|couldn't)\b)|(?P<sign>[=:]|(?<=\s)[-–—](?=\s)))"
    r"(?:\s+(?:also|thus|therefore|then|simply|just|actually|indeed|now|(?:most |very )?likely(?: to be)?|probably)\b)?"
)
_NOT_THE_ANSWER = re.compile(r"\b(?:choices|options|words)\b")  # "the answer choices are", "the answer in words is"
_PURPOSE = re.compile(
    r"\b(?:to|can|could|we|i|verify|check(?:ing)?|explain|justify)\s+(?:(?:my|our|the|this|your)\s+)?$"
)
_AFTERWARDS = re.compile(
    r"(?P<value>[^;:\n]{1,80})(?<!which)(?<!that)(?<!this)(?<!This)\s+(?:is|would be|must be)\s+(?:the|our|my)\s+"
    r"(?:(?:correct|right|final|best)\s+)?$"
)
_CLAUSE_START = re.compile(
    r"[.!?;:,\n]|\b(?:so|thus|hence|then|therefore|and|but|because|since|means)\b", re.IGNORECASE
)
_NEGATION = re.compile(
    r"(?i)\b(?:not|cannot|never|wrong|false|incorrect|neither|except|eliminat\w+|exclud\w+|rul\w+ out|least|worst"
    r"|unlikely|unsure|if|whether|suppos\w+|assum\w+|thought(?! about)|tempting|might|had (?:it|the|asked|been))\b"
    r"|n't\b"
)
# "Another plausible answer is" announces nothing; "this means the answer is" does: its article starts a new phrase.
_OTHER = re.compile(
    r"\b(?:another|other(?! words)|next|each|every|this|popular|common|distractor|remaining|first|second|third)"
    r"(?:\s+(?!the\b)[\w'-]+){0,2}\W*$"
)
_DENIED = re.compile(r"\W*(?:definitely |certainly |clearly )?not\b", re.IGNORECASE)
_CONTRAST = re.compile(r"[,(]?\s+(?:and not|not|rather than|instead of|as opposed to)\s+(?!only\b)")
# "The answer is the sum of the two", "is as follows": says what the answer is, but not its value.
_DESCRIPTION = re.compile(
    r"(?:the|a|an|as|in|below|above|given|found|obtained|correct|right|wrong|incorrect|clear|that|this|what|how|we|to|by"
    r"|let|our|also|always|usually|based|indeed)\b[^\d$\\]*$",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Za-z])(?<!\b(?:Mr|Dr|St|vs|No))(?<!Mrs|e\.g|i\.e)(?<!prox)[.!](?=\s|$)|</|I hope it is"
)
_BLANK = re.compile(r"[\n*:= \t]*(?:(?:_{2,}[.,]?|\.)(?=\s)[\n*:= \t]*)?")  # may hold a line to write on: "is ____."
_DISPLAY = re.compile(r"\$\$.{1,800}?\$\$|\\\[.{1,800}?\\\]", re.DOTALL)
_PROSE = re.compile(r"[\"'(*]*[A-Za-z][a-z']*[^\n\d$\\]*\s[A-Za-z]{2,}")

_NEXT_QUESTION = re.compile(r"\n[ \t]*\n([^\n]{20,}\?)[ \t]*\n")  # a paragraph that ends in a question mark
# A problem between two "####": it asks or commands, and is no continuation of the solution.
_PROBLEM = re.compile(
    r"\?|(?:^|[.\n]\s*)(?:Calculate|Find|Determine|Compute|What|How|Solve|Evaluate|Simplify|Estimate)\b"
)
_CONTINUES = re.compile(
    r"\W*(?:now|then|so|next|wait|let|but|no|or|and|also|therefore|thus|hence|since)\b", re.IGNORECASE
)


def extract_answer(completion: str, reader: Reader[V], *, is_finished: bool = True) -> Answer[V] | Missing:
    """The answer of a trace, as its last announcement or its end gives it.

    Args:
      is_finished: the model ended the trace; a trace that was cut must announce its answer.
    """
    text, announcements = _first_turn(visible_text(completion), reader)
    denied: list[V] = []
    for index, announcement in reversed(list(enumerate(announcements))):
        value = _read(announcement, reader)
        if announcement.is_denied:
            denied += [] if isinstance(value, Missing) else [value]
        elif value is Missing.NONE and (announcement.is_weak or _is_description(announcement)):
            continue
        elif isinstance(value, Missing):
            return value
        elif any(reader.are_same(value, other) for other in denied):
            return Missing.NONE
        else:
            return _unless_contradicted(text, announcements[: index + 1], value, reader)
    if denied or any(each.is_denied for each in announcements) or not is_finished or is_open(text):
        return Missing.NONE
    value, after = reader.read_conclusion(text)
    return (
        value if isinstance(value, Missing) else _unless_taken_back(Answer(value, None), after, reader, lambda: False)
    )


def find_announcements(text: str, reader: Reader[Any]) -> list[Announcement]:
    """The announcements of a text, in order."""
    lower = text.translate(_TO_LOWER_CASE)
    boxes = [*_boxes(text)] if "\\" in text else []
    found = [
        each
        for each in _words(text, lower, reader.nouns)
        if not any(box.start < each.start < box.end for box in boxes)  # a box may hold a sentence
    ]
    found += boxes
    if "####" in text:
        found += _hashes(text)
    if "<answer>" in lower:
        found += _tags(text, lower)
    found += _labels(text, lower)
    if closing := reader.closing(text):
        found.append(Announcement(Kind.WORDS, closing, len(text.rstrip()), len(text)))
    found.sort(key=lambda each: each.start)
    return found[-MAX_ANNOUNCEMENTS:]


def _hashes(text: str) -> Iterator[Announcement]:
    for match in list(_HASHES.finditer(text))[-MAX_ANNOUNCEMENTS:]:
        statement = _statement(text, match.end())
        if _NUMBERED_HEADING.match(statement):
            continue
        rest = text[match.end() :].lstrip("\n*:= \t")[len(statement) :]
        if _PROSE.match(statement) or re.fullmatch(r"[A-Za-z]{3,}\W*", statement):
            # "#### No solution", or a heading: the answer can only follow it
            yield Announcement(Kind.HASHES, f"{statement}\n{rest}", match.start(), match.end(), is_passage=True)
        else:
            yield Announcement(
                Kind.HASHES, _without_contrast(statement), match.start(), match.end(), bool(_DENIED.match(statement))
            )


def _boxes(text: str) -> Iterator[Announcement]:
    boxes = find_boxes(text)
    for index, box in enumerate(boxes):
        yield Announcement(Kind.BOX, boxed_expression(text, boxes[: index + 1]), box.start, box.end)
    start = find_unclosed_box(text)
    if start is not None:
        yield Announcement(Kind.BOX, "", start, len(text))


def _tags(text: str, lower: str) -> Iterator[Announcement]:
    for match in list(re.finditer("<answer>", lower))[-MAX_ANNOUNCEMENTS:]:
        content, closed, _ = text[match.end() :].partition("</")
        end = match.end() + len(content) + len(closed)
        passage = "\n" in content.strip()
        yield Announcement(Kind.TAG, content.strip(), match.start(), end, is_passage=passage)


def _labels(text: str, lower: str) -> Iterator[Announcement]:
    for match in _LABEL.finditer(lower) if "a:" in lower or "a :" in lower else ():
        yield _announced(Kind.LABEL, text, match.start(), match.end())


def _words(text: str, lower: str, nouns: re.Pattern[str]) -> Iterator[Announcement]:
    for noun in list(nouns.finditer(lower))[-MAX_NOUNS:]:
        before = lower[max(0, noun.start() - MAX_CLAUSE_CHARACTERS) : noun.start()]
        if before.endswith(("<", "</")):
            continue  # a tag
        key = _KEY.match(text, noun.end())
        if key and _BEFORE_KEY.search(before):
            value = next((group for group in key.groups() if group is not None), "")
            yield Announcement(Kind.KEY, _unescaped(value.strip()), noun.start(), key.end())
            continue
        if _BEFORE_HEADING.search(before) and _HEADING.match(text, noun.end()):
            yield _announced(Kind.HEADING, text, noun.start(), noun.end(), is_final="final" in before[-12:])
            continue
        link = _LINK.match(lower, noun.end())
        if link is None:
            yield from _announced_before(text, lower, noun.start())
            continue
        if _PURPOSE.search(before) and (link["sign"] or before.rstrip().endswith("to")):
            continue
        is_weak = noun.group() != "answer"
        if (
            _NOT_THE_ANSWER.search(link["gap"])
            or (link["sign"] and "," in link["gap"])
            or (is_weak and link["gap"].strip(" *"))
            or _OTHER.search(before)
        ):
            continue
        clause = _CLAUSE_START.split(before)[-1]
        denied = bool(_NEGATION.search(clause) or _NEGATION.search(link["gap"]))
        is_final = clause.rstrip(" *").endswith("final")
        announcement = _announced(Kind.WORDS, text, noun.start(), link.end(), is_denied=denied, is_final=is_final)
        yield dataclasses.replace(announcement, is_weak=is_weak)


def _announced_before(text: str, lower: str, end: int) -> Iterator[Announcement]:
    """The announcement of a value before the noun: "so 18 is the answer"."""
    match = _AFTERWARDS.search(text, max(0, end - MAX_CLAUSE_CHARACTERS), end)
    if match and not _NEGATION.search(match.group()):
        start = match.start() + len(match.group()) - len(_CLAUSE_START.split(match["value"])[-1])
        value = _CLAUSE_START.split(match["value"])[-1].strip()
        yield Announcement(Kind.WORDS, value, start, end)


def _announced(
    kind: Kind, text: str, start: int, end: int, *, is_denied: bool = False, is_final: bool = False
) -> Announcement:
    """The announcement whose value follows `end`."""
    rest = text[end : end + MAX_PASSAGE_CHARACTERS]
    is_next_line = "\n" in rest[: len(rest) - len(rest.lstrip("*:= \t\n"))]
    statement = _statement(text, end)
    is_passage = (is_next_line or kind is Kind.LABEL) and _PROSE.match(statement) is not None
    if is_passage:
        passage = rest.strip("*:= \t\n")
        statement = passage.partition("\n\n")[0] if is_final else passage
    denial = _DENIED.match(statement)
    statement = statement[denial.end() :].lstrip() if denial else statement
    denied = is_denied or denial is not None
    statement = statement if is_passage else _without_contrast(_first_sentence(statement))
    return Announcement(kind, statement, start, end, denied, is_passage, is_final)


def _statement(text: str, start: int) -> str:
    """The first line with content after a marker, or the display formula there."""
    rest = _BLANK.sub("", text[start : start + 2 * MAX_ANSWER_CHARACTERS], count=1)
    display = _DISPLAY.match(rest)
    return display.group() if display else rest.partition("\n")[0]


def _first_sentence(line: str) -> str:
    end = _SENTENCE_END.search(line)
    return line[: end.start()] if end else line


def _without_contrast(statement: str) -> str:
    """A statement without the values it contrasts with its own: "12, not 21" is "12"."""
    contrast = _CONTRAST.search(statement)
    return statement[: contrast.start()] if contrast and contrast.start() else statement


def _unescaped(value: str) -> str:
    r"""A JSON string's text: "\\frac{1}{2}" is \frac{1}{2}."""
    return value.replace("\\\\", "\\").replace('\\"', '"')


def _is_description(announcement: Announcement) -> bool:
    return announcement.kind is Kind.WORDS and _DESCRIPTION.match(announcement.text) is not None


def _read(announcement: Announcement, reader: Reader[V]) -> V | Missing:
    return reader.read(announcement) if announcement.text else Missing.NONE


def _first_turn(text: str, reader: Reader[Any]) -> tuple[str, list[Announcement]]:
    """A text up to the turn or problem that follows its answer, and its announcements.

    A question before the first announcement may restate the original one.
    """
    announcements = find_announcements(text, reader)
    if not announcements:
        return text, announcements
    end = _end_of_problem(text, announcements)
    return (text, announcements) if end == len(text) else (text[:end], find_announcements(text[:end], reader))


def _end_of_problem(text: str, announcements: Sequence[Announcement]) -> int:
    """Where the turn or problem that holds the first announcement ends."""
    end = end_of_turn(text, announcements[0].end)
    for question in _NEXT_QUESTION.finditer(text, announcements[0].end, end) if "?" in text else ():
        # Models also ask themselves or the user a question; only an invented one is followed by an announced answer.
        if announcements[-1].start >= question.end() - 1 and find_doubt(question[1]) is None:
            return question.start()
    hashes = [each.start for each in announcements if each.kind is Kind.HASHES and each.start < end]
    for left, right in itertools.pairwise(hashes):
        end_of_line = text.find("\n", left)
        between = text[max(left, end_of_line) : right]
        if end_of_line != -1 and _PROBLEM.search(between) and not _CONTINUES.match(between) and not find_doubt(between):
            return end_of_line
    return end


def _unless_contradicted(
    text: str, announcements: Sequence[Announcement], value: V, reader: Reader[V]
) -> Answer[V] | Missing:
    """The value of the last announcement, unless an earlier one that outranks it differs, or a doubt follows."""
    *earlier, last = announcements
    for other in () if last.kind in FORMATS or last.is_final else reversed(earlier):
        is_same_line = other.kind is Kind.HASHES and "\n" not in text[other.start : last.start]  # "#### Answer: 18"
        if other.is_denied or is_same_line or not (other.kind in FORMATS or reader.is_exclusive):
            continue
        if find_doubt(text[other.end : last.start]):
            break
        other_value = _read(other, reader)
        if isinstance(other_value, Missing):
            continue
        if not reader.are_same(other_value, value):
            return Missing.SEVERAL
        if other.kind in FORMATS:
            last, value = other, other_value
            break

    def was_doubted() -> bool:
        return any(find_doubt(text[other.end : last.start]) for other in earlier)

    return _unless_taken_back(Answer(value, last), text[last.end :], reader, was_doubted)


def _unless_taken_back(
    answer: Answer[V], after: str, reader: Reader[V], was_doubted: Callable[[], bool]
) -> Answer[V] | Missing:
    """The answer; TAKEN_BACK if the text after it reaches another one, or denies it and reaches none.

    Args:
      was_doubted: whether an earlier answer was doubted; an apology at the end is then for that one.
    """
    doubt = find_doubt(after)
    if doubt is None:
        return answer
    later = reader.read_last(doubt.rest)
    if isinstance(later, Missing):
        is_upheld = not doubt.is_denial or (doubt.is_apology and was_doubted())
    else:
        is_upheld = reader.are_same(answer.value, later)
    return answer if is_upheld else Missing.TAKEN_BACK
