"""Where the final answer of a trace stands, and what follows it."""

import re

from tpt_jax.checks.answers.announce import Announcement, Kind, find_announcements
from tpt_jax.checks.answers.turns import end_of_turn, visible_span

_CLOSING = re.compile(r"(?:answer>)?[^\s\w]*")  # the full stop, bracket or asterisks right after an answer


def answer_span(completion: str) -> tuple[int, int] | None:
    """Where the final answer begins and ends, with what announces it; None if none is announced.

    The last announcement counts that nothing denies, before an invented turn. Whether the answer can be read, and
    whether a doubt follows it, is not asked.
    """
    start, end = visible_span(completion)
    text = completion[start:end]
    announcements = find_announcements(text)
    if not announcements:
        return None
    last = end_of_turn(text, announcements[0].end)
    for announcement in reversed(announcements):
        if announcement.start < last and announcement.text and not (announcement.is_denied or announcement.is_weak):
            return start + announcement.start, start + min(last, _end(text, announcement))
    return None


def _end(text: str, announcement: Announcement) -> int:
    """Where an announced answer ends."""
    end = announcement.end
    if announcement.kind not in (Kind.BOX, Kind.TAG, Kind.KEY):  # these end after the answer, others before it
        found = text.find(announcement.text, announcement.end)
        end = found + len(announcement.text) if found >= 0 else len(text)
    closing = _CLOSING.match(text, end)
    return closing.end() if closing else end
