"""What of a trace speaks for it in the end: not its thinking aloud, not what it takes back, not another's turn."""

import dataclasses
import re

LONGEST_TEXT = 100_000  # characters; a final answer stands at the end, so only the end of a longer trace is read

_THOUGHT = "</think>"  # as R1, Qwen 3 and their like end what is not for the reader
# Base models go on with another's turn: under its name, under a heading, or behind a token that ends theirs.
_NEXT_TURN = re.compile(
    r"\n[ \t]*(?:(?:#{1,6}[ \t]*)?\**(?:(?:Question|Problem|Exercise|Instruction|Q)(?:[ \t]*\d{1,3})?|Human|User)\**"
    r"[ \t]*(?::|\.(?=\s))|#{1,6}[ \t]*\**(?:Question|Problem|Exercise|Instruction)(?:[ \t]*\d{1,3})?\**[ \t]*$)",
    re.MULTILINE,
)
_END_OF_TURN = re.compile(
    r"<(?:\|(?:im_start|im_end|eot_id|start_header_id|endoftext|end_of_text)\||(?:start|end)_of_turn)>"
)
_NEXT_QUESTION = re.compile(r"\n[ \t]*\n([^\n]{20,}\?)[ \t]*\n")  # a paragraph that asks
# Some part of each doubt, in lower case: a text without any of them needs no closer look.
_HINT = re.compile(
    "wait|hold on|actually|oops|hmm|correct|scratch|wrong|right|mistake|error|forgot|overlooked"
    "|mis(?:count|calc|underst)|second thought|check|calculate|consider|sorry|apolog|evaluat|inspection"
)
# Those of these are left out that only confirm: "Actually, that is correct".
_SECOND_THOUGHT = re.compile(
    r"(?:^|[.!?,;:\n(–—])\W*(?:but |no,? |oh,? )?"
    r"(?:wait|hold on|actually|oops|hmm+|correction|scratch that|sorry|apologies|my (?:mistake|error))\b"
    r"|\b(?:that|this|it)(?:'s| is| was| isn't| wasn't)(?: not)? (?:wrong|incorrect|right|correct|a mistake|an error)\b"
    r"|\b(?:that|this|it) (?:can't|cannot|can not) be (?:right|correct)\b"
    r"|\b(?:that|this|it) (?:doesn't|does not) (?:seem|look) (?:right|correct)\b"
    r"|(?:\b(?:answer|result|solution|calculation)|\A\W*)\s(?:is|was) (?:wrong|incorrect|not (?:right|correct))\b"
    r"|\bthere (?:is|was|seems to (?:be|have been)) (?:an?|some) (?:\w+ )?(?:mistake|error|misunderstanding)\b"
    r"|\bi (?:made (?:a mistake|an error)|forgot|overlooked|miscounted|miscalculated)\b"
    r"|\bi apologi[sz]e\b(?! for the repetition)"
    r"|\b(?:up)?on (?:second thought|(?:closer|further) inspection|re-?evaluation)\b",
    re.IGNORECASE,
)
_DENIED = re.compile(r"\W*(?:definitely |certainly )?not\b", re.IGNORECASE)
_UNDECIDED = re.compile(
    r"\b(?:impossible|unsolvable|undefined|insufficient|no (?:\w+ )?solutions?|not (?:possible|divisible|valid)"
    r"|not enough information|(?:cannot|can't|could not|couldn't) (?:be|say|tell|determine|know|find|solve)"
    r"|answer (?:isn't|is not|cannot|can't))\b",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(r"(?:that|this|it)(?:'s| is| was) (?:right|correct)", re.IGNORECASE)
_AGREED = re.compile(r"[^.\n]{0,20}\b(?:that|this|it)(?:'s| is| was) (?:right|correct)\b", re.IGNORECASE)
_SECOND_LOOK = re.compile(
    r"\blet(?: me|'?s| us) (?:re-?(?:check|calculate|consider|evaluate)|double[- ]check|correct)\b",
    re.IGNORECASE,
)


def conclusion(completion: str, mark: re.Pattern[str]) -> str:
    """The end of a trace without what it thought aloud, and without a further question that it goes on to.

    Args:
      mark: what announces a final answer; a question after one is another's turn, one before it may be a restatement.
    """
    text = completion[-LONGEST_TEXT:].rpartition(_THOUGHT)[2]
    if not (_NEXT_TURN.search(text) or _END_OF_TURN.search(text) or ("?" in text and _NEXT_QUESTION.search(text))):
        return text
    answered = mark.search(text)
    if answered is None:
        return text
    for end in (_END_OF_TURN, _NEXT_TURN):
        turn = end.search(text, answered.end())
        text = text[: turn.start()] if turn else text
    for question in _NEXT_QUESTION.finditer(text, answered.end()):
        # A model may ask itself, or the user what else there is to do; but it does not answer as if it were asked.
        if mark.search(text, question.end()) and find_doubt(question[1]) is None:
            return text[: question.start()]
    return text


def is_denied(announced: str) -> bool:
    """Whether what follows "the answer is" says what it is not."""
    return _DENIED.match(announced) is not None


def is_undecided(sentence: str) -> bool:
    """Whether a sentence in which an answer could stand says that there is none: "It is impossible with 5 apples"."""
    return _UNDECIDED.search(sentence) is not None


@dataclasses.dataclass(frozen=True, slots=True)
class Doubt:
    """A trace's second thought on an answer that it has announced: the answer stands where it comes to the same again.

    Attributes:
      rest: what follows the first of its doubts.
      is_denial: the answer is said to be wrong, so that it falls where nothing comes after that.
    """

    rest: str
    is_denial: bool


def find_doubt(after: str) -> Doubt | None:
    """The doubt, if there is one, in what follows an announced answer.

    "18. Let me double check: 9 + 9 = 18" doubts, "18. Wait, that is wrong" denies, "18. That is right" does neither.
    """
    if not _HINT.search(after.lower()):
        return None
    denials = [
        match
        for match in _SECOND_THOUGHT.finditer(after)
        if not _CONFIRMED.fullmatch(match.group()) and not _AGREED.match(after, match.end())
    ]
    doubts = sorted([*denials[:1], *_SECOND_LOOK.finditer(after)], key=lambda match: match.start())
    return Doubt(after[doubts[0].end() :], bool(denials)) if doubts else None
