"""Reads final answers of any form, as texts: the content of <answer> tags, or what else a trace announces."""

import re

from tpt_jax.checks.answers.announce import Announcement, Kind
from tpt_jax.checks.answers.extract import Missing, Reader

_OUTER = "*$` \t"  # Markdown and formula signs around an answer


class TextReader(Reader[str]):
    """Reads texts as they stand."""

    def read(self, announcement: Announcement) -> str | Missing:
        """Reads a tag, box or key whole, and any other announcement without its markup and full stop."""
        text = announcement.text
        if announcement.kind in (Kind.TAG, Kind.BOX, Kind.KEY):
            return text.strip() or Missing.NONE
        line = text.partition("\n")[0]
        return line.strip(_OUTER if announcement.kind is Kind.HASHES else _OUTER + ".").strip() or Missing.NONE

    def read_last(self, text: str) -> str | Missing:
        """Reads the last line with content."""
        last = text.strip().rpartition("\n")[2].strip()
        return last if re.search(r"\w", last) else Missing.NONE

    def read_conclusion(self, text: str) -> tuple[str | Missing, str]:
        """As read_last; no text follows it."""
        return self.read_last(text), ""

    def are_same(self, left: str, right: str) -> bool:
        """Whether they are equal but for case and spaces, or the right one, a sentence, ends with the left one."""
        left, right = (" ".join(text.strip(_OUTER + ".").casefold().split()) for text in (left, right))
        return left == right or re.search(rf"(?<![\w.,-]){re.escape(left)}\W*$", right) is not None


TEXT_READER = TextReader()
