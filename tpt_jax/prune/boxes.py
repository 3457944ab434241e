r"""The \boxed{...} and \fbox{...} of a text: where final answers in LaTeX stand."""

import dataclasses
import re
from collections.abc import Sequence

LONGESTBOX = 2_000  # characters; a longer one is not closed, as far as we are concerned
MOSTBOXES = 50  # the last ones of a text that is full of them
MOST_IN_ANSWER = 10
LONGEST_JOIN = 60  # characters between two boxes of one answer

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?P<bare>[^\s{}$\\]+))")
# What may stand between two boxes of one answer, once the LaTeX around the words is taken away.
_AROUND = re.compile(r"\\(?:q?quad|text|[,;: ()\[\]])|[${}]|[A-Za-z](?:_\d)?\s*=\s*$")
_FARTHEST = 80  # characters beside a box that may belong to it
_LOOK = re.compile(
    r"\\(?:q?quad|left|right|displaystyle|[lL]arge|LARGE|[hH]uge|bf|color\s*\{\w+\})(?![A-Za-z])|\\[,;:! $]|~|\*\*"
)
_BETWEEN = re.compile(  # a box and what has nothing to do with it
    r"(?P<text>\\(?:text\w*|mathrm|mbox)\s*\{[^{}]*\})"
    r"|(?<!\\)\$|\\[()\[\]]|\\\\|[-=]*=>|-+>|[=≈&,;:?!\"\n]|\.(?!\d)|[^\x00-\x7f−×÷·°]|</?[\w|]+>"
    r"|\\(?:begin|end|tag)\s*\{[^{}]*\}|\\(?:text\w*|math\w+|mbox)\s*\{"
    r"|(?<![\\A-Za-z])(?!(?:dozen|hundred|thousand|million|billion)\b)[A-Za-z]{2,}"
    r"|\\(?:therefore|because|approx|equiv|to|implies|iff|\w*[rR]ightarrow|[bB]ox|\w*square|checkmark)(?![a-z])"
)
_TIED = re.compile(r"\b(?:or|and|not|negative|minus)\b", re.IGNORECASE)  # a text before a box that changes its meaning
_APART = re.compile(r"\b(?:(?:is|are) the|for|when|because|since|as|so)\b")  # a text after a box that does not
_BULLET = re.compile(r"(?:^|(?<=[.:*])|(?<=[A-Za-z]{2}))[ \t]*[-*+>][ \t]+$", re.MULTILINE)
_OPERATOR = r"(?:[-+/^_|<>−×÷·]|\\(?:cdot|times|div|pm|mp|neq?|[lg]eq?|[lg]t)(?![a-z]))"
_OPERATOR_LAST = re.compile(rf"{_OPERATOR}\s*$")
_BELONGS = re.compile(rf"\S|\s*(?:{_OPERATOR}|\\(?:text|mathrm|mbox)|(?:dozen|hundred|thousand|million|billion)\b)")
_EMPTY = re.compile(r"[\s()\[\]{}*#'`_]*|\s+-+\s*")
_SUFFIX = re.compile(r"\s*(?:\\(?:text|mathrm|mbox)|\^\s*\{?\s*\\circ|°|\\?%|_|dozen|hundred|thousand|million|billion)")
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
    for match in list(BOX.finditer(text))[-MOSTBOXES:]:
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
    for before, after in zip(reversed(boxes[:-1]), reversed(boxes), strict=False):
        if len(contents) == MOST_IN_ANSWER or not _continues(text[before.end : after.start]):
            break
        if before.content not in contents:
            contents.append(before.content)
    return ", ".join(reversed(contents))


def boxed_term(text: str, boxes: Sequence[Box]) -> str:
    r"""boxed_answer with what belongs to the box and stands around it: "-\boxed{10}" is "-(10)"."""
    answer, box = boxed_answer(text, boxes), boxes[-1]
    if answer != box.content:
        return answer
    before = _before(text[max(0, box.start - _FARTHEST) : box.start])
    after = _after(text[box.end : box.end + _FARTHEST])
    if not before and (not after or _SUFFIX.match(after)):
        return answer + after
    return f"{before}({answer}){after}"


def _before(text: str) -> str:
    """What a formula holds before the box at the end of this text."""
    text = _BULLET.sub("\n", _LOOK.sub(" ", text))
    ends = [match.end() for match in _BETWEEN.finditer(text) if not (match["text"] and _TIED.search(match["text"]))]
    term = text[ends[-1] if ends else 0 :]
    belongs = not term[-1:].isspace() or _OPERATOR_LAST.search(term)
    return "" if _EMPTY.fullmatch(term) or not belongs else term.strip()


def _after(text: str) -> str:
    """What a formula holds after the box at the beginning of this text."""
    text = _LOOK.sub(" ", text)
    starts = (match.start() for match in _BETWEEN.finditer(text) if not match["text"] or _APART.search(match["text"]))
    term = _OPERATOR_LAST.sub("", text[: next(starts, None)])  # "-" of "\\boxed{10}-th" has nothing to act on
    return "" if _EMPTY.fullmatch(term) or not _BELONGS.match(term) else term.rstrip()


def _closing_brace(text: str, start: int) -> int | None:
    """Where the brace closes that was opened before `start`."""
    depth = 1
    position = start
    while position < min(len(text), start + LONGESTBOX):
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
