"""What of a trace speaks for it in the end: not its thinking aloud, not what it takes back, not another's turn."""

import dataclasses
import re

LONGEST_TEXT = 100_000  # characters; a final answer stands at the end, so only the end of a longer trace is read

_THOUGHT = "</think>"  # as R1, Qwen 3 and their like end what is not for the reader
_NEXT_TURN = re.compile(r"\n[ \t]*(?:#{1,6}[ \t]*)?\**(?:Question|Human|User)\**[ \t]*:")  # base models go on with one
# Some word of each doubt, in lower case: a text without any of them needs no closer look.
_WORDS = (
    *("wait", "hold on", "actually", "oops", "hmm", "correct", "scratch", "wrong", "right", "mistake", "error"),
    *("forgot", "overlooked", "miscount", "miscalc", "second thought", "check", "calculate", "consider"),
)
# Of these are left out, with _CONFIRMED and _AGREED, those that only confirm: "that is right", "Wait, it is correct".
_SECOND_THOUGHT = re.compile(
    r"(?:^|[.!?,;:\n(–—])\W*(?:but |no,? |oh,? )?(?:wait|hold on|actually|oops|hmm+|correction|scratch that)\b"
    r"|\b(?:that|this|it)(?:'s| is| was| isn't| wasn't)(?: not)? (?:wrong|incorrect|right|correct|a mistake|an error)\b"
    r"|\bi (?:made (?:a mistake|an error)|forgot|overlooked|miscounted|miscalculated)\b|\bon second thought",
    re.IGNORECASE,
)
_DOUBTED = re.compile(r"\blet me (?:re-?check|re-?calculate|re-?consider|double[- ]check|correct)\b", re.IGNORECASE)
_CONFIRMED = re.compile(r"(?:that|this|it)(?:'s| is| was) (?:right|correct)", re.IGNORECASE)
_AGREED = re.compile(r"[^.\n]{0,20}\b(?:that|this|it)(?:'s| is| was) (?:right|correct)\b", re.IGNORECASE)


def conclusion(completion: str, mark: re.Pattern[str]) -> str:
    """The end of a trace without what it thought aloud, and without a further question that it goes on to.

    Args:
      mark: what announces a final answer; a question after one is another's turn, one before it may be a restatement.
    """
    text = completion[-LONGEST_TEXT:].rpartition(_THOUGHT)[2]
    if not _NEXT_TURN.search(text):
        return text
    answered = mark.search(text)
    following = _NEXT_TURN.search(text, answered.end()) if answered else None
    return text[: following.start()] if following else text


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
    lower = after.lower()
    if not any(word in lower for word in _WORDS):
        return None
    denials = [
        match
        for match in _SECOND_THOUGHT.finditer(after)
        if not _CONFIRMED.fullmatch(match.group()) and not _AGREED.match(after, match.end())
    ]
    doubts = sorted([*denials[:1], *_DOUBTED.finditer(after)], key=lambda match: match.start())
    return Doubt(after[doubts[0].end() :], bool(denials)) if doubts else None
