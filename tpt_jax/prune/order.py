"""The order of traces: questions in an order drawn from a seed, samples of a question by number."""

import hashlib
from collections.abc import Iterable


def question_order(ids: Iterable[str], seed: int) -> list[str]:
    """The distinct ids in a random order that depends on ids and seed alone, and is the same on every machine."""
    return sorted(set(ids), key=lambda name: (draw(seed, name), name))


def draw(seed: int, name: str) -> bytes:
    """Random bytes that depend on seed and name alone; a smaller one comes first."""
    return hashlib.sha256(encoded(f"{seed}/{name}")).digest()


def checksum(text: str) -> int:
    """128 bits: two texts with the same one are the same."""
    return int.from_bytes(hashlib.blake2b(encoded(text), digest_size=16).digest(), "big")


def encoded(text: str) -> bytes:
    """UTF-8, also of the lone surrogates that a model's broken text may hold."""
    return text.encode("utf-8", "surrogatepass")
