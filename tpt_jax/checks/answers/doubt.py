"""What a trace says against its own answer: doubts, denials, and that there is no answer."""

import dataclasses
import re

# Every doubt contains one of these in lower case: a cheap test that rules out most texts.
_DOUBT_HINT = re.compile(
    "wait|hold on|actually|oops|hmm|correct|scratch|wrong|right|mistake|error|forgot|overlooked"
    "|mis(?:count|calc|underst)|second thought|check|calculate|consider|sorry|apolog|evaluat|inspection"
    r"|\bno[,.!]"
)
_APOLOGY = r"\bi apologi[sz]e\b(?! for the repetition)(?: for (?:the|my|any|that|this)\b[^.,;:\n]*)?"
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
    rf"|{_APOLOGY}"
    r"|(?:^|[.\n])\W*no[,.!]\s+(?:the|it|that)\b"
    r"|\b(?:up)?on (?:second thought|(?:closer|further) inspection|re-?evaluation)\b",
    re.IGNORECASE,
)
_CONFIRMATION = re.compile(r"(?:that|this|it)(?:'s| is| was) (?:right|correct)", re.IGNORECASE)
_CONFIRMED_AFTER = re.compile(r"[^.\n]{0,20}\b(?:that|this|it)(?:'s| is| was) (?:right|correct)\b", re.IGNORECASE)
_RECHECK = re.compile(
    r"\blet(?: me|'?s| us) (?:re-?(?:check|calculate|consider|evaluate)|double[- ]check|correct)\b",
    re.IGNORECASE,
)
_LIST_ITEM = re.compile(r"(?<=\n)\W*(?:(?:option|choice)\s+)?\(?[A-Z][).:][^\n]*")  # "A) Paris: this is wrong"
_UNDECIDED = re.compile(
    r"\b(?:impossible|unsolvable|undefined|insufficient|no (?:\w+ )?solutions?|not (?:possible|divisible|valid)"
    r"|not enough information|(?:cannot|can't|could not|couldn't) (?:be|say|tell|determine|know|find|solve)"
    r"|answer (?:isn't|is not|cannot|can't))\b",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Doubt:
    """A trace's doubt about the answer it announced. The answer stands if the trace then reaches the same one again.

    Attributes:
      rest: the text after the first doubt.
      is_denial: the trace says that the answer is wrong; it then falls unless the trace reaches it again.
      is_apology: nothing is denied but in an apology, which may be for an earlier answer.
    """

    rest: str
    is_denial: bool
    is_apology: bool = False


def find_doubt(after: str) -> Doubt | None:
    """Finds a doubt in the text after an announced answer; None if there is none.

    "18. Let me double check: 9 + 9 = 18" is a doubt, "18. Wait, that is wrong" a denial, "18. That is right" neither.
    """
    if not _DOUBT_HINT.search(after.lower()):
        return None
    after = _LIST_ITEM.sub("", after)
    denials = [
        match
        for match in _DENIAL.finditer(after)
        if not _CONFIRMATION.fullmatch(match.group()) and not _CONFIRMED_AFTER.match(after, match.end())
    ]
    doubts = sorted([*denials[:1], *_RECHECK.finditer(after)], key=lambda match: match.start())
    if not doubts:
        return None
    return Doubt(
        after[doubts[0].end() :],
        is_denial=bool(denials),
        is_apology=bool(denials) and all(re.search("apolog|sorry", match.group(), re.IGNORECASE) for match in denials),
    )


def is_undecided(sentence: str) -> bool:
    """Whether a sentence says that no answer exists or can be found: "It is impossible with 5 apples"."""
    return _UNDECIDED.search(sentence) is not None
