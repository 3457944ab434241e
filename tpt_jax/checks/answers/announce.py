r"""Finds where a trace announces its answer. One grammar for every kind of answer.

Announcements are "#### 18", \boxed{18}, <answer>18</answer>, "answer": 18, "A: 18", a heading "## Answer", and phrases
such as "the answer is 18", "answer: 18" and "18 is the answer". extract.py decides which one stands.
"""

import dataclasses
import enum
import re
import string
from collections.abc import Iterator

from tpt_jax.checks.answers.boxes import boxed_expression, find_boxes, find_unclosed_box

MAX_ANSWER_CHARACTERS = 500
MAX_ANNOUNCEMENTS = 50  # only the last ones of a trace are read
MAX_NOUNS = 100  # that may announce one; only the last ones are looked at
MAX_CLAUSE_CHARACTERS = 100  # before an announcement
MAX_PASSAGE_CHARACTERS = 5_000  # of a solution under a heading


class Kind(enum.Enum):
    """How an answer is announced."""

    HASHES = "####"
    BOX = r"\boxed{}"
    TAG = "<answer>"
    KEY = '"answer":'
    HEADING = "heading"
    LABEL = "A:"
    WORDS = "words"


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


ANSWER = re.compile(r"answer")
_TO_LOWER_CASE = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)  # lower() would change lengths

_HASHES = re.compile(r"####+(?!#)")
_NUMBERED_HEADING = re.compile(  # "#### Step 3: Divide", "#### Day 2"
    r"\**\s*(?:step|part)?\s*\d{1,2}[.:)]\**\s+\**[A-Za-z]|\**\s*(?:step|part|day|case|week|month|year)\s+\d{1,2}\W*$",
    re.IGNORECASE,
)
_LABEL = re.compile(r"a ?:(?![^\n]*\n\W*b ?:)")  # unless a line "B: ..." follows
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
_BEFORE_NOUN = re.compile(r"\b(?:is|be)\s+(?:the|our|my)\b")  # cheap, and rules most texts out
_AFTERWARDS = re.compile(
    r"(?P<value>[^;:\n]{1,80})(?<!which)(?<!that)(?<!this)(?<!This)\s+(?:is|would be|must be)\s+(?:the|our|my)\s+"
    r"(?:(?:correct|right|final|best)\s+)?$"
)
_CLAUSE_START = re.compile(
    r"[.!?;:,](?=\s)|\n|\b(?:so|thus|hence|then|therefore|and|but|because|since|means)\b", re.IGNORECASE
)
# In a clause that denies an answer, or only supposes it.
NEGATING_WORDS = (
    r"not|cannot|never|wrong|false|incorrect|neither|except|eliminat\w+|exclud\w+|rul\w+ out|least|worst|unlikely"
    r"|unsure|if|whether|suppos\w+|assum\w+|thought(?! about)|tempting|might|had (?:it|the|asked|been)"
)
_NEGATION = re.compile(rf"\b(?:{NEGATING_WORDS}|possible)\b|n't\b", re.IGNORECASE)
# "Another plausible answer is" announces nothing; "this means the answer is" does: its article starts a new phrase.
_OTHER = re.compile(
    r"\b(?:another|other(?! words)|next|each|every|this|popular|common|distractor|remaining|first|second|third)"
    r"(?:\s+(?!the\b)[\w'-]+){0,2}\W*$"
)
_DENIED = re.compile(r"\W*(?:definitely |certainly |clearly )?not\b", re.IGNORECASE)
_CONTRAST = re.compile(r"[,(]?\s+(?:and not|not|rather than|instead of|as opposed to)\s+(?!only\b)")
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Za-z])(?<!\b(?:Mr|Dr|St|vs|No))(?<!Mrs|e\.g|i\.e)(?<!prox)[.!](?=\s|$)|</|I hope it is"
)
_BLANK = re.compile(r"[\n*:= \t]*(?:(?:_{2,}[.,]?|\.)(?=\s)[\n*:= \t]*)?")  # may hold a line to write on: "is ____."
_DISPLAY = re.compile(r"\$\$.{1,800}?\$\$|\\\[.{1,800}?\\\]", re.DOTALL)
_ONE_WORD = re.compile(r"[A-Za-z]{3,}\W*")
_PROSE = re.compile(r"[\"'(*]*[A-Za-z][a-z']*[^\n\d$\\]*\s[A-Za-z]{2,}")


def find_announcements(text: str, nouns: re.Pattern[str] = ANSWER) -> list[Announcement]:
    """The announcements of a text, in order.

    Args:
      nouns: what announces an answer in words, in lower case.
    """
    lower = text.lower() if text.isascii() else text.translate(_TO_LOWER_CASE)
    boxes = [*_boxes(text)] if "\\" in text else []
    found = [
        each
        for each in _words(text, lower, nouns)
        if not any(box.start < each.start < box.end for box in boxes)  # a box may hold a sentence
    ]
    found += boxes
    if "####" in text:
        found += _hashes(text)
    if "<answer>" in lower:
        found += _tags(text, lower)
    found += _labels(text, lower)
    found.sort(key=lambda each: each.start)
    return found[-MAX_ANNOUNCEMENTS:]


def _hashes(text: str) -> Iterator[Announcement]:
    for match in list(_HASHES.finditer(text))[-MAX_ANNOUNCEMENTS:]:
        statement = _statement(text, match.end())
        if _NUMBERED_HEADING.match(statement):
            continue
        if not statement[:1].isdigit() and (_PROSE.match(statement) or _ONE_WORD.fullmatch(statement)):
            # "#### No solution", or a heading: the answer can only follow it
            rest = text[match.end() :].lstrip("\n*:= \t")[len(statement) :]
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
    for match in _LABEL.finditer(lower):
        start = lower.rfind("\n", 0, match.start()) + 1
        if not lower[start : match.start()].strip(" \t*"):
            yield _announced(Kind.LABEL, text, start, match.end())


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
            yield from _announced_before(text, noun.start())
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
        yield _announced(
            Kind.WORDS, text, noun.start(), link.end(), is_denied=denied, is_final=is_final, is_weak=is_weak
        )


def _announced_before(text: str, end: int) -> Iterator[Announcement]:
    """The announcement of a value before the noun: "so 18 is the answer"."""
    start = max(0, end - MAX_CLAUSE_CHARACTERS)
    match = _AFTERWARDS.search(text, start, end) if _BEFORE_NOUN.search(text, start, end) else None
    if match and not _NEGATION.search(match.group()):
        value = _CLAUSE_START.split(match["value"])[-1]
        yield Announcement(Kind.WORDS, value.strip(), match.end("value") - len(value), end)


def _announced(
    kind: Kind,
    text: str,
    start: int,
    end: int,
    *,
    is_denied: bool = False,
    is_final: bool = False,
    is_weak: bool = False,
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
    return Announcement(kind, statement, start, end, denied, is_passage, is_final, is_weak)


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
