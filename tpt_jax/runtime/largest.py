"""Finds the largest size of a program that fits in memory, by compiling it for few sizes."""

from collections.abc import Callable

from tpt_jax.runtime.memory import DoesNotFitError

MAX_COMPILES = 7
TOLERANCE = 1.05  # end once no size that is 5% larger than the largest that fits can be expected to


def largest_that_fits(
    needed: Callable[[int], float],
    available: float,
    *,
    start: int,
    unit: int = 1,
    most: int | None = None,
    per_unit: float | None = None,
    max_compiles: int = MAX_COMPILES,
) -> int:
    """The largest size that fits, to within TOLERANCE; 0 if none was found.

    Each try is a compilation. Memory grows about linearly with size, so one try predicts the next if the slope is
    known, and two do if it is not.

    Args:
      needed: bytes needed for a size; may raise DoesNotFitError.
      start: the first size to try.
      unit: sizes above it are multiples of it, or `most`.
      most: no larger size is of use; None for no limit.
      per_unit: bytes that the size adds by one, about; None if not known.
    """
    fits: dict[int, float] = {}
    fails: dict[int, float] = {}
    size = _rounded(start, unit, most)
    for _ in range(max_compiles):
        try:
            need = needed(size)
        except DoesNotFitError as error:
            need = error.need.needed if error.need else float("inf")
        (fits if need <= available else fails)[size] = need
        below = max(fits, default=0)
        size = _next_size(fits, fails, available, unit, most, per_unit)
        if size in fits or size in fails or size <= below * TOLERANCE:
            break
    return max(fits, default=0)


def _next_size(
    fits: dict[int, float],
    fails: dict[int, float],
    available: float,
    unit: int,
    most: int | None,
    per_unit: float | None,
) -> int:
    """By a line through the known needs; without one, twice the largest that fits, or halfway to one that does not."""
    below, above = max(fits, default=0), min(fails, default=None)
    known = sorted((size, need) for size, need in {**fits, **fails}.items() if need != float("inf"))
    if len(known) > 1:
        (small, small_need), *_, (large, large_need) = known
        per_unit = (large_need - small_need) / (large - small)
    if known and per_unit is not None:
        size, need = known[0]
        guess = int(size + (available - need) / max(per_unit, 1.0))
    else:
        guess = 2 * below if above is None else (below + above) // 2
    guess = min(guess, 8 * below if above is None else above - 1)
    guess = _rounded(guess, unit, most)
    return guess if fits else max(guess, 1)


def _rounded(size: int, unit: int, most: int | None) -> int:
    if most is not None and size >= most:
        return most
    return size // unit * unit or size
