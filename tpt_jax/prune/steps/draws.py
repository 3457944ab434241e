"""A step that draws at random."""

from collections.abc import Iterable
from typing import ClassVar

import pydantic
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from tpt_jax.errors import STRICT
from tpt_jax.prune.order import draw
from tpt_jax.prune.step import Group, Scope, Share, Step


@dataclass(frozen=True, config=STRICT)
class Random(Step):
    """Keeps a random choice that depends on the seed alone: the control for every other step.

    Attributes:
      count: keeps this many of the round, all equally likely.
      share: keeps each trace with this probability, independently. Give one of the two.
    """

    count: PositiveInt | None = None
    share: Share | None = None

    name: ClassVar[str] = "random"

    @pydantic.model_validator(mode="after")
    def _has_one(self) -> "Random":
        if (self.count is None) == (self.share is None):
            raise PydanticCustomError("one_of", "give either count or share")
        return self

    @property
    def scope(self) -> Scope:
        return "trace" if self.count is None else "round"

    def keep(self, group: Group) -> Iterable[int]:
        draws = [draw(group.seed, f"random/{each.id}/{each.sample}") for each in group.candidates]
        if self.share is not None:
            return [index for index, each in enumerate(draws) if int.from_bytes(each[:8], "big") < self.share * 2**64]
        return sorted(range(len(draws)), key=lambda index: draws[index])[: self.count]
