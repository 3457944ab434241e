"""The conclusion of a trace: its text without hidden reasoning and invented turns, and doubts about its answer."""

import dataclasses
import re

MAX_TEXT_CHARACTERS = 100_000  # final answers come last, so only the end of a longer trace is read

_END_OF_THINKING = "</think>"  # ends the hidden reasoning of R1, Qwen 3 and similar models
# Base models often keep writing and invent the next turn, after a speaker's name, a heading or an end-of-turn token.
_NEXT_TURN = re.compile(
    r"\n[ \t]*(?:(?:#{1,6}[ \t]*)?\**(?:(?:Question|Problem|Exercise|Instruction|Q)(?:[ \t]*\d{1,3})?|Human|User)\**"
    r"[ \t]*(?::|\.(?=\s))|#{1,6}[ \t]*\**(?:Question|Problem|Exercise|Instruction)(?:[ \t]*\d{1,3})?\**[ \t]*$)",
    re.MULTILINE,
)
_END_OF_TURN = re.compile(
    r"<(?:\|(?:im_start|im_end|eot_id|start_header_id|endoftext|end_of_text)\||(?:start|end)_of_turn)>"
)
_NEXT_QUESTION = re.compile(r"\n[ \t]*\n([^\n]{20,}\?)[ \t]*\n")  # a paragraph that ends in a question mark
# Every doubt contains one of these in lower case: a cheap test that rules out most texts.
_DOUBT_HINT = re.compile(
    "wait|hold on|actually|oops|hmm|correct|scratch|wrong|right|mistake|error|forgot|overlooked"
    "|mis(?:count|calc|underst)|second thought|check|calculate|consider|sorry|apolog|evaluat|inspection"
)
# find_doubt drops the matches that only confirm the answer: "Actually, that is correct".
_DENIAL = re.compile(
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
_NEGATION = re.compile(r"\W*(?:definitely |certainly )?not\b", re.IGNORECASE)
_UNDECIDED = re.compile(
    r"\b(?:impossible|unsolvable|undefined|insufficient|no (?:\w+ )?solutions?|not (?:possible|divisible|valid)"
    r"|not enough information|(?:cannot|can't|could not|couldn't) (?:be|say|tell|determine|know|find|solve)"
    r"|answer (?:isn't|is not|cannot|can't))\b",
    re.IGNORECASE,
)
_CONFIRMATION = re.compile(r"(?:that|this|it)(?:'s| is| was) (?:right|correct)", re.IGNORECASE)
_CONFIRMED_AFTER = re.compile(r"[^.\n]{0,20}\b(?:that|this|it)(?:'s| is| was) (?:right|correct)\b", re.IGNORECASE)
_RECHECK = re.compile(
    r"\blet(?: me|'?s| us) (?:re-?(?:check|calculate|consider|evaluate)|double[- ]check|correct)\b",
    re.IGNORECASE,
)


def conclusion(completion: str, marker: re.Pattern[str]) -> str:
    """The end of a trace, without hidden reasoning and without the turns invented after its answer.

    Args:
      marker: matches where a final answer is announced. A question after that starts an invented turn; a question
        before it may restate the original one.
    """
    text = completion[-MAX_TEXT_CHARACTERS:].rpartition(_END_OF_THINKING)[2]
    if not (_NEXT_TURN.search(text) or _END_OF_TURN.search(text) or ("?" in text and _NEXT_QUESTION.search(text))):
        return text
    announcement = marker.search(text)
    if announcement is None:
        return text
    for pattern in (_END_OF_TURN, _NEXT_TURN):
        next_turn = pattern.search(text, announcement.end())
        text = text[: next_turn.start()] if next_turn else text
    for question in _NEXT_QUESTION.finditer(text, announcement.end()):
        # Models also ask themselves or the user a question; only an invented one is followed by an announced answer.
        if marker.search(text, question.end()) and find_doubt(question[1]) is None:
            return text[: question.start()]
    return text


def is_denied(announced: str) -> bool:
    """Whether the text after "the answer is" negates it, as in "not 5"."""
    return _NEGATION.match(announced) is not None


def is_undecided(sentence: str) -> bool:
    """Whether a sentence says that no answer exists or can be found: "It is impossible with 5 apples"."""
    return _UNDECIDED.search(sentence) is not None


@dataclasses.dataclass(frozen=True, slots=True)
class Doubt:
    """A trace's doubt about the answer it announced. The answer stands if the trace then reaches the same one again.

    Attributes:
      rest: the text after the first doubt.
      is_denial: the trace says that the answer is wrong; it then falls unless the trace reaches it again.
    """

    rest: str
    is_denial: bool


def find_doubt(after: str) -> Doubt | None:
    """Finds a doubt in the text after an announced answer; None if there is none.

    "18. Let me double check: 9 + 9 = 18" is a doubt, "18. Wait, that is wrong" a denial, "18. That is right" neither.
    """
    if not _DOUBT_HINT.search(after.lower()):
        return None
    denials = [
        match
        for match in _DENIAL.finditer(after)
        if not _CONFIRMATION.fullmatch(match.group()) and not _CONFIRMED_AFTER.match(after, match.end())
    ]
    doubts = sorted([*denials[:1], *_RECHECK.finditer(after)], key=lambda match: match.start())
    return Doubt(after[doubts[0].end() :], bool(denials)) if doubts else None
