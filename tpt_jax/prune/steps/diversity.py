"""A step that keeps solutions that differ in how they calculate."""

import collections
import heapq
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT
from tpt_jax.prune.calculations import equations, shape
from tpt_jax.prune.order import checksum
from tpt_jax.prune.step import Group, RoundStep
from tpt_jax.records import Trace, Verdict

N = 2  # the longest n-grams


@dataclass(frozen=True, config=STRICT)
class Diverse(RoundStep):
    """Keeps traces of the round whose calculations differ most: farthest-first (Gonzalez 1985).

    Starts with the first trace; then takes, again and again, the one that is farthest from all that were taken. The
    distance of two traces is the Jaccard distance of their calculations: pairs of successive equations, and single
    ones, without their numbers ("#+#=#"). Of traces as far, the first in the round's random order is taken. Traces with
    the same calculations as a taken one are at distance 0, and come last, an equal number of each kind.

    Attributes:
      count: how many.
    """

    count: PositiveInt

    name: ClassVar[str] = "diverse"

    def measure(self, trace: Trace, verdict: Verdict) -> Any:
        shapes = [shape(equation) for equation in equations(trace.completion)]
        grams = {";".join(shapes[start : start + n]) for n in range(1, N + 1) for start in range(len(shapes) - n + 1)}
        return sorted(checksum(gram) % 2**32 for gram in grams)

    def keep(self, group: Group) -> Iterable[int]:
        kinds: dict[tuple[int, ...], list[int]] = {}
        for index, value in enumerate(group.values):
            kinds.setdefault(tuple(value), []).append(index)
        order = [list(kinds.values())[kind] for kind in farthest_first(list(kinds), self.count)]
        kept: list[int] = []
        for turn in range(max(map(len, order), default=0)):
            kept += [indices[turn] for indices in order if turn < len(indices)]
            if len(kept) >= self.count:
                break
        return kept[: self.count]


def farthest_first(sets: Sequence[Sequence[int]], count: int) -> list[int]:
    """The indices of `count` distinct sets, or of all: the first one, then always the farthest from those taken.

    By Jaccard distance; of sets as far, the first. Exact: a distance changes only when a set with a common element is
    taken, which an index of the elements finds.
    """
    holders: dict[int, list[int]] = collections.defaultdict(list)
    for index, elements in enumerate(sets):
        for element in elements:
            holders[element].append(index)
    nearest = [1.0] * len(sets)  # distance to the nearest set taken; never above 1
    heap = [(-1.0, index) for index in range(len(sets))]
    taken: list[int] = []
    while heap and len(taken) < count:
        distance, index = heapq.heappop(heap)
        if -distance > nearest[index]:  # a set taken since is nearer
            heapq.heappush(heap, (-nearest[index], index))
            continue
        taken.append(index)
        common = collections.Counter(other for element in sets[index] for other in holders[element])
        for other, size in common.items():
            nearest[other] = min(nearest[other], 1 - size / (len(sets[index]) + len(sets[other]) - size))
    return taken
