r"""Decides which announcement of a trace is its answer. One rule for every kind of answer.

A reader (number.py, latex.py, choice.py, tagged.py) turns the text of an announcement into a value and compares values.
What stands is decided here alone:

  - The last announcement counts. In words it must agree with an earlier one in a format (####, box, tag, key), unless
    a doubt lies between them, or it says "final".
  - One that stands but holds no readable value means no answer: an earlier number is never taken instead.
  - "Not 18", "if the answer is 18" and "the wrong answer is 18" announce nothing, and cancel an earlier 18.
  - A doubt after the answer ("Wait, ...") takes it back, unless the trace reaches the same value again.
  - Hidden reasoning is not read, nor what follows an invented turn or another problem.
  - Where nothing is announced, the end of the text is read, unless the trace was cut, or ends in the middle of
    something: reasoning, a code fence, a traceback, a formula.
"""

import abc
import dataclasses
import enum
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from tpt_jax.checks.answers.announce import ANSWER, Announcement, Kind, find_announcements
from tpt_jax.checks.answers.doubt import find_doubt
from tpt_jax.checks.answers.turns import end_of_turn, is_open, visible_text

V = TypeVar("V")

FORMATS = frozenset({Kind.HASHES, Kind.BOX, Kind.TAG, Kind.KEY})  # outrank words


class Missing(enum.Enum):
    """Why a trace has no final answer to compare."""

    NONE = "no answer"
    SEVERAL = "several answers"
    TAKEN_BACK = "taken back"
    UNFINISHED = "unfinished calculation"


@dataclasses.dataclass(frozen=True, slots=True)
class Answer(Generic[V]):
    """A trace's final answer; `announcement` is None if it was only read at the end of the text."""

    value: V
    announcement: Announcement | None


class Reader(abc.ABC, Generic[V]):
    """Reads values of one kind.

    Attributes:
      nouns: what announces an answer, in lower case.
      is_exclusive: announcements in words contradict each other too; otherwise the last one counts.
    """

    nouns: ClassVar[re.Pattern[str]] = ANSWER
    is_exclusive: ClassVar[bool] = False

    @abc.abstractmethod
    def read(self, announcement: Announcement) -> V | Missing:
        """Reads a statement, which begins with the value, or a passage; never empty."""

    @abc.abstractmethod
    def read_last(self, text: str) -> V | Missing:
        """Reads the last value of a text."""

    @abc.abstractmethod
    def read_conclusion(self, text: str) -> tuple[V | Missing, str]:
        """Reads the value at the end of a text that announces none; also returns the text after it."""

    @abc.abstractmethod
    def are_same(self, left: V, right: V) -> bool:
        """Whether two values of one trace are the same."""

    def closing(self, text: str) -> str:
        """The answer that the last line of a text announces in a form of its own; "" for none."""
        return ""


# "The answer is the sum of the two", "is as follows": says what the answer is, but not its value.
_DESCRIPTION = re.compile(
    r"(?:the|a|an|as|in|below|above|given|found|obtained|correct|right|wrong|incorrect|clear|that|this|what|how|we|to|by"
    r"|let|our|also|always|usually|based|indeed)\b[^\d$\\]*$",
    re.IGNORECASE,
)

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
    while not is_finished and announcements and not announcements[-1].text:
        del announcements[-1]  # the cut was in it
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


def _is_description(announcement: Announcement) -> bool:
    return announcement.kind is Kind.WORDS and _DESCRIPTION.match(announcement.text) is not None


def _read(announcement: Announcement, reader: Reader[V]) -> V | Missing:
    return reader.read(announcement) if announcement.text else Missing.NONE


def _first_turn(text: str, reader: Reader[Any]) -> tuple[str, list[Announcement]]:
    """A text up to the turn or problem that follows its answer, and its announcements.

    A question before the first announcement may restate the original one.
    """
    announcements = _find_all(text, reader)
    if not announcements:
        return text, announcements
    end = _end_of_problem(text, announcements)
    return (text, announcements) if end == len(text) else (text[:end], _find_all(text[:end], reader))


def _find_all(text: str, reader: Reader[Any]) -> list[Announcement]:
    """The announcements of a text, with the reader's own at its end."""
    announcements = find_announcements(text, reader.nouns)
    closing = reader.closing(text)
    return (
        [*announcements, Announcement(Kind.WORDS, closing, len(text.rstrip()), len(text))] if closing else announcements
    )


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
