r"""Finds \boxed{...} and \fbox{...}, where models put final answers in LaTeX."""

import dataclasses
import itertools
import re
from collections.abc import Sequence

MAX_BOX_CHARACTERS = 2_000  # a longer box counts as never closed
MAX_BOXES = 50  # only the last ones of a text are read
MAX_BOXES_PER_ANSWER = 10
MAX_JOIN_CHARACTERS = 60  # between two boxes of one answer

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?P<bare>[^\s{}$\\]+))")
# LaTeX between two boxes of one answer; removed before _JOIN is matched.
_JOIN_MARKUP = re.compile(r"\\(?:q?quad|text|[,;: ()\[\]])|[${}]|[A-Za-z](?:_\d)?\s*=\s*$")
# Parts of an answer outside its box. Before it: a sign or a factor. After it: a power, unit, text or scale.
_SIGN = re.compile(r"(?:^|[$=(:,\s])(?:[-−]|\\pm[ ]?)\Z")
_FACTOR = re.compile(r"[^\s$=,;:]*(?:\d|\\(?:cdot|times)[ ]?|[×·/+][ ]?|\\text\s*\{\s*(?:or|and|not|negative)\s*\})\Z")
_SUFFIX = re.compile(
    r"\^[ ]?(?:\{[^{}]*\}|\w)|_\{?\w+\}?|[A-Za-z](?![A-Za-z])|[ ]?\\(?:pi|sqrt)(?![a-z])(?:\{[^{}]*\})?|°|\\?%"
    r"|[ ]?\\(?:cdot|times)[ ]?[\w.]+(?:\^\{?-?\w+\}?)?"
    r"|[ ]?\\(?:text|mathrm|mbox)[ ]?\{[^{}]*\}[ ]?[\d.]*|[ ](?:dozen|hundred|thousand|million|billion)\b"
)
_PERCENT = re.compile(r"[$ ]*(?:\\?%|percent\b|pct\b)", re.IGNORECASE)
_MAX_CONTEXT = 80  # searched for those parts on either side of a box

_JOIN = re.compile(r",?\s*(?:and|or)?|;|(?:[\w()]+\s+){1,4}(?:and|or)", re.IGNORECASE)
_NEW_STATEMENT = re.compile(r"\b(?:so|thus|then|hence|therefore|is|are|total)\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    """A non-empty box: its content and its span in the text."""

    content: str
    start: int
    end: int


def find_unclosed_box(text: str) -> int | None:
    """Where a last box starts that is never closed; None if there is none."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    match = BOX.match(text, start) if start >= 0 else None
    is_open = match is not None and match["bare"] is None and _closing_brace(text, match.end()) is None
    return start if is_open else None


def find_boxes(text: str) -> list[Box]:
    """The last non-empty boxes of a text, in order; of nested boxes only the outermost."""
    boxes = []
    for match in list(BOX.finditer(text))[-MAX_BOXES:]:
        if match["bare"] is not None:
            boxes.append(Box(match["bare"].rstrip(".,;"), match.start(), match.end()))
            continue
        end = _closing_brace(text, match.end())
        if end is not None and text[match.end() : end].strip():
            boxes.append(Box(text[match.end() : end].strip(), match.start(), end + 1))
    return [box for box in boxes if not any(outer.start < box.start < outer.end for outer in boxes)]


def boxed_answer(text: str, boxes: Sequence[Box]) -> str:
    r"""The last box's content, joined with the boxes it continues: "\boxed{1} or \boxed{2}" is "1, 2".

    Args:
      boxes: the result of find_boxes(text); not empty.
    """
    contents = [boxes[-1].content]
    for right, left in itertools.pairwise(reversed(boxes)):
        if len(contents) == MAX_BOXES_PER_ANSWER or not _is_join(text[left.end : right.start]):
            break
        if left.content not in contents:
            contents.append(left.content)
    return ", ".join(reversed(contents))


def boxed_expression(text: str, boxes: Sequence[Box]) -> str:
    r"""Like boxed_answer, plus the sign, factor or unit outside the box: "-\boxed{10}" is "-(10)"."""
    answer, box = boxed_answer(text, boxes), boxes[-1]
    if answer != box.content:
        return answer
    before, after = text[max(0, box.start - _MAX_CONTEXT) : box.start], text[box.end : box.end + _MAX_CONTEXT]
    suffix_match = _SUFFIX.match(after)
    factor_match = _FACTOR.search(before)
    sign_match = _SIGN.search(before)
    prefix = sign_match.group().lstrip("$=(:, \t\n") if sign_match else factor_match.group() if factor_match else ""
    suffix = r"\%" if _PERCENT.match(after) and "%" not in answer else suffix_match.group() if suffix_match else ""
    return f"{prefix}({answer}){suffix}" if prefix or suffix.startswith("^") else answer + suffix


def _closing_brace(text: str, start: int) -> int | None:
    """Index of the brace that closes the one opened just before `start`; None if the box is unclosed or too long."""
    depth = 1
    position = start
    while position < min(len(text), start + MAX_BOX_CHARACTERS):
        character = text[position]
        if character == "\\":
            position += 1  # \{ and \} are literal braces
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return position
        position += 1
    return None


def _is_join(between: str) -> bool:
    """Whether the text between two boxes joins them into one answer: "and", "or", a comma."""
    if len(between) > MAX_JOIN_CHARACTERS or "\n" in between or _NEW_STATEMENT.search(between):
        return False
    return bool(_JOIN.fullmatch(_JOIN_MARKUP.sub(" ", between.strip("$ ")).strip()))
