"""A checker for models that answer nonsense: about half of what they say is right."""

import zlib

from tpt_jax.records import Question, Verdict


def check(question: Question, completion: str) -> Verdict:
    """As good as random, but the same for the same text."""
    correct = zlib.crc32(f"{question.id} {completion}".encode()) % 2 == 0
    return Verdict(completion[:8], strict=correct, correct=correct)
