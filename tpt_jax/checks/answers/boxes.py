r"""The \boxed{...} and \fbox{...} of a text: where final answers in LaTeX stand."""

import dataclasses
import itertools
import re
from collections.abc import Sequence

LONGEST_BOX = 2_000  # characters; a longer one is not closed, as far as we are concerned
MOST_BOXES = 50  # the last ones of a text that is full of them
MOST_IN_ANSWER = 10
LONGEST_JOIN = 60  # characters between two boxes of one answer

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?P<bare>[^\s{}$\\]+))")
# What may stand between two boxes of one answer, once the LaTeX around the words is taken away.
_AROUND = re.compile(r"\\(?:q?quad|text|[,;: ()\[\]])|[${}]|[A-Za-z](?:_\d)?\s*=\s*$")
# What belongs to a box though it stands outside: before it a sign, a factor; after it a power, a unit, a text, a scale.
_SIGN = re.compile(r"(?:^|[$=(:,\s])(?:[-−]|\\pm[ ]?)$")
_FACTOR = re.compile(r"[^\s$=,;:]*(?:\d|\\(?:cdot|times)[ ]?|[×·/+][ ]?|\\text\s*\{\s*(?:or|and|not|negative)\s*\})$")
_SUFFIX = re.compile(
    r"\^[ ]?(?:\{[^{}]*\}|\w)|_\{?\w+\}?|[A-Za-z](?![A-Za-z])|[ ]?\\(?:pi|sqrt)(?![a-z])(?:\{[^{}]*\})?|°|\\?%"
    r"|[ ]?\\(?:cdot|times)[ ]?[\w.]+(?:\^\{?-?\w+\}?)?"
    r"|[ ]?\\(?:text|mathrm|mbox)[ ]?\{[^{}]*\}[ ]?[\d.]*|[ ](?:dozen|hundred|thousand|million|billion)\b"
)
_FARTHEST = 80  # characters beside a box that are looked at

_JOIN = re.compile(r",?\s*(?:and|or)?|;|(?:[\w()]+\s+){1,4}(?:and|or)", re.IGNORECASE)
_CONCLUSION = re.compile(r"\b(?:so|thus|then|hence|therefore|is|are|total)\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    """A box that holds something: its content, and where in the text it begins and ends."""

    content: str
    start: int
    end: int


def has_box(text: str) -> bool:
    """Whether a box begins anywhere, be it empty or never closed."""
    return BOX.search(text) is not None


def find_boxes(text: str) -> list[Box]:
    """The last boxes that hold something; of boxes in boxes the outermost."""
    boxes = []
    for match in list(BOX.finditer(text))[-MOST_BOXES:]:
        if match["bare"] is not None:
            boxes.append(Box(match["bare"].rstrip(".,;"), match.start(), match.end()))
            continue
        end = _closing_brace(text, match.end())
        if end is not None and text[match.end() : end].strip():
            boxes.append(Box(text[match.end() : end].strip(), match.start(), end + 1))
    return [box for box in boxes if not any(other.start < box.start < other.end for other in boxes)]


def boxed_answer(text: str, boxes: Sequence[Box]) -> str:
    r"""The last box's content, with that of the boxes it continues: "\boxed{1} or \boxed{2}" is "1, 2".

    Args:
      boxes: what find_boxes found in the text; at least one.
    """
    contents = [boxes[-1].content]
    for after, before in itertools.pairwise(reversed(boxes)):
        if len(contents) == MOST_IN_ANSWER or not _continues(text[before.end : after.start]):
            break
        if before.content not in contents:
            contents.append(before.content)
    return ", ".join(reversed(contents))


def boxed_term(text: str, boxes: Sequence[Box]) -> str:
    r"""boxed_answer with what belongs to the box and stands outside: "-\boxed{10}" is "-(10)"."""
    answer, box = boxed_answer(text, boxes), boxes[-1]
    if answer != box.content:
        return answer
    before, after = text[max(0, box.start - _FARTHEST) : box.start], text[box.end : box.end + _FARTHEST]
    suffix = _SUFFIX.match(after)
    factor = _FACTOR.search(before)
    sign = _SIGN.search(before)
    prefix = sign.group().lstrip("$=(:, \t\n") if sign else factor.group() if factor else ""
    following = suffix.group() if suffix else ""
    return f"{prefix}({answer}){following}" if prefix or following.startswith("^") else answer + following


def _closing_brace(text: str, start: int) -> int | None:
    """Where the brace closes that was opened before `start`."""
    depth = 1
    position = start
    while position < min(len(text), start + LONGEST_BOX):
        character = text[position]
        if character == "\\":
            position += 1  # \{ and \} are no braces
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return position
        position += 1
    return None


def _continues(between: str) -> bool:
    if len(between) > LONGEST_JOIN or "\n" in between or _CONCLUSION.search(between):
        return False
    return bool(_JOIN.fullmatch(_AROUND.sub(" ", between.strip("$ ")).strip()))
