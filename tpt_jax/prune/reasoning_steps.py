"""Splits a trace into its reasoning steps: paragraphs, or lines if there is one paragraph, or sentences of one line.

Step Pruner takes a paragraph for a step (Wu et al., arXiv 2510.03805); shorter traces have lines or sentences.
"""

import bisect
import re
from collections.abc import Sequence

from tpt_jax.prune.step import Span

_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")
_LINE_END = re.compile(r"\n\s*")
_SENTENCE_END = re.compile(r"(?<!\b[A-Za-z])(?<!\b(?:Mr|Dr|St|vs|No))(?<!Mrs|e\.g|i\.e)[.!?]+[\"')\]*]*\s+")


def reasoning_steps(text: str) -> list[Span]:
    """The spans of a text's steps, which cover it: each with the whitespace that follows it, none empty or blank."""
    for separator in (_PARAGRAPH_END, _LINE_END, _SENTENCE_END):
        steps = _split(text, separator)
        if len(steps) > 1:
            return steps
    return [(0, len(text))] if text.strip() else []


def tokens_of(step: Span, token_ends: Sequence[int]) -> range:
    """The indices of a step's tokens: those that end in it.

    Args:
      token_ends: where each token ends in the text, as in a Trace.
    """
    return range(bisect.bisect_right(token_ends, step[0]), bisect.bisect_right(token_ends, step[1]))


def _split(text: str, separator: re.Pattern[str]) -> list[Span]:
    lead = len(text) - len(text.lstrip())
    ends = [match.end() for match in separator.finditer(text, lead)]
    ends = [*(end for end in ends if end < len(text)), len(text)]
    return list(zip([0, *ends], ends, strict=False)) if text.strip() else []
