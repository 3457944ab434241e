"""Seeds for the purposes of a round, derived from the run's seed."""

import hashlib
from typing import Literal

Purpose = Literal["select", "train"]


def derive_seed(seed: int, round_index: int, purpose: Purpose) -> int:
    """A 32-bit seed for one purpose of one round.

    A hash rather than a sum: with `seed + round_index`, round 2 of seed 0 would equal round 1 of seed 1.
    Sampling does not need one: its keys are folded from seed, round, question and sample (think/sampling.py).
    """
    digest = hashlib.sha256(f"{seed}/{round_index}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
