"""Which part of a trace speaks for it in the end: not its thinking aloud, not what it takes back, not another's turn."""

import re

LONGEST_TEXT = 100_000  # characters; a final answer stands at the end, so only the end of a longer trace is read

_THOUGHT = "</think>"  # as R1, Qwen 3 and their like end what is not for the reader
_NEXT_TURN = re.compile(r"\n[ \t]*(?:#{1,6}[ \t]*)?\**(?:Question|Human|User)\**[ \t]*:")  # base models go on with one
_TAKEN_BACK = re.compile(
    r"(?:^|[.!?,;:\n(–—])\W*(?:but |no,? |oh,? )?(?:wait|hold on|actually|oops|hmm+|correction|scratch that)\b"
    r"|\blet me (?:re-?check|re-?calculate|re-?consider|double[- ]check|correct)\b"
    r"|\b(?:that|this|it|which) (?:is|was|'s|isn't|wasn't)(?: not)? (?:wrong|incorrect|right|correct|a mistake|an error)\b"
    r"|\bi (?:made|forgot|overlooked|miscounted|miscalculated)\b|\bon second thought",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(r"\b(?:that|this|it|which) (?:is|was|'s) (?:right|correct)\b", re.IGNORECASE)


def conclusion(completion: str, mark: re.Pattern[str]) -> str:
    """The end of a trace without what it thought aloud, and without a further question that it goes on to.

    Args:
      mark: what announces a final answer; a question after one is another's turn, one before it may be a restatement.
    """
    text = completion[-LONGEST_TEXT:].rpartition(_THOUGHT)[2]
    answered = mark.search(text)
    following = _NEXT_TURN.search(text, answered.end()) if answered else None
    return text[: following.start()] if following else text


def is_taken_back(after: str) -> bool:
    """Whether what follows an announced answer takes it back, as in "Wait, I forgot 9": it has to be said anew then."""
    return any(not _CONFIRMED.fullmatch(match.group()) for match in _TAKEN_BACK.finditer(after))
