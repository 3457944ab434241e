"""Steps by the checker's verdict."""

from collections.abc import Iterable
from typing import ClassVar

from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT
from tpt_jax.prune.step import Group, TraceStep


@dataclass(frozen=True, config=STRICT)
class Correct(TraceStep):
    """Keeps traces with the right answer, in any form: the pruning of Think, Prune, Train (arXiv 2504.18116)."""

    name: ClassVar[str] = "correct"

    def keep(self, group: Group) -> Iterable[int]:
        return [index for index, each in enumerate(group.candidates) if each.verdict.correct]


@dataclass(frozen=True, config=STRICT)
class Strict(TraceStep):
    """Keeps traces with the right answer in the form that the prompt asked for."""

    name: ClassVar[str] = "strict"

    def keep(self, group: Group) -> Iterable[int]:
        return [index for index, each in enumerate(group.candidates) if each.verdict.strict]


@dataclass(frozen=True, config=STRICT)
class AnyVerdict(TraceStep):
    """Keeps right and wrong traces alike: the control without pruning (arXiv 2504.18116)."""

    name: ClassVar[str] = "any"

    def keep(self, group: Group) -> Iterable[int]:
        return range(len(group.candidates))
