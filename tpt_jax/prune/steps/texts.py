"""Steps that leave out repeated solutions of a question."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT
from tpt_jax.prune.calculations import equations
from tpt_jax.prune.order import checksum
from tpt_jax.prune.step import Group, TraceStep
from tpt_jax.records import Trace, Verdict


@dataclass(frozen=True, config=STRICT)
class UniqueTexts(TraceStep):
    """Keeps the first of a question's traces with the same text (unique traces: arXiv 2504.18116, section 4)."""

    name: ClassVar[str] = "unique_texts"

    def measure(self, trace: Trace, verdict: Verdict) -> Any:
        return checksum(trace.completion)

    def keep(self, group: Group) -> Iterable[int]:
        return _firsts(group.values)


@dataclass(frozen=True, config=STRICT)
class UniqueCalculations(TraceStep):
    """Keeps the first of a question's traces with the same sequence of equations: two wordings of one solution are one.

    Traces without equations are compared by their text. As in rejection sampling fine-tuning, which keeps reasoning
    paths with distinct equation lists (Yuan et al., arXiv 2308.01825).
    """

    name: ClassVar[str] = "unique_calculations"

    def measure(self, trace: Trace, verdict: Verdict) -> Any:
        found = equations(trace.completion)
        return checksum("equations:" + ";".join(found) if found else f"text:{trace.completion}")

    def keep(self, group: Group) -> Iterable[int]:
        return _firsts(group.values)


def _firsts(keys: Sequence[Hashable]) -> Iterable[int]:
    """The index of the first of each key."""
    firsts: dict[Hashable, int] = {}
    for index, key in enumerate(keys):
        firsts.setdefault(key, index)
    return firsts.values()
