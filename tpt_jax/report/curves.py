"""Reads metrics.jsonl for the report: the curves of training, thinned meanwhile, and what a run is doing now."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from tpt_jax.config import Sampling
from tpt_jax.loop.run_folder import RunFolder, read_metrics_log

MAX_POINTS = 240  # more points of a curve cannot be told apart
CURVES = ("loss", "learning_rate", "grad_norm", "tokens_per_second")
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)

Points = Mapping[int, Sequence[float | None]]  # by round


class Position(NamedTuple):
    """How far a stage is that has not ended: its last line in metrics.jsonl.

    Attributes:
      phase: "think", "train" or "evaluate".
      numbers: the finite ones of the line, by name.
    """

    round: int
    phase: str
    step: int
    numbers: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Curves:
    """The curves of all training steps, thinned to about MAX_POINTS points each.

    Attributes:
      stride: the number of steps of a point.
      points: by name and round, the mean of each `stride` steps; None if none of them was finite.
      num_steps: by round.
      num_not_finite: steps with a loss that was not, in all rounds.
      position: None if the last line ended a round, or there is none.
    """

    stride: int
    points: Mapping[str, Points]
    num_steps: Mapping[int, int]
    num_not_finite: int
    position: Position | None


def read_curves(folder: RunFolder) -> Curves:
    """Reads the curves and thins them meanwhile: the stride doubles as often as there are too many points."""
    thinned = {name: _Thinned() for name in CURVES}
    num_steps: dict[int, int] = {}
    stride, num_in_all, num_not_finite = 1, 0, 0
    last: Mapping[str, Any] = {}
    for line in read_metrics_log(folder.metrics_log):
        last = line
        if line.get("phase") != "train" or "loss" not in line:
            continue
        if num_in_all == MAX_POINTS * stride:
            stride *= 2
            for curve in thinned.values():
                curve.halve()
        index = int(line.get("round") or 0)
        step = num_steps.get(index, 0)
        for name, curve in thinned.items():
            curve.add(index, line.get(name), is_first=step % stride == 0)
        num_steps[index] = step + 1
        num_in_all += 1
        num_not_finite += not is_finite(line["loss"])
    points = {name: curve.means() for name, curve in thinned.items()}
    return Curves(stride, points, num_steps, num_not_finite, _position(last))


def is_finite(value: Any) -> bool:
    """Whether a value of a file is a number to show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _position(line: Mapping[str, Any]) -> Position | None:
    if line.get("phase") not in (*SAMPLINGS, "train"):
        return None
    numbers = {name: value for name, value in line.items() if is_finite(value)}
    return Position(int(numbers.get("round", 0)), line["phase"], int(numbers.get("step", 0)), numbers)


class _Thinned:
    """A curve: by round, the sum and the number of the finite values of each point."""

    def __init__(self) -> None:
        self._sums: dict[int, list[tuple[float, int]]] = {}

    def add(self, index: int, value: Any, *, is_first: bool) -> None:
        """Adds a step of a round, the first one of a point or a further one."""
        of_round = self._sums.setdefault(index, [])
        if is_first:
            of_round.append((0.0, 0))
        if is_finite(value):
            of_round[-1] = (of_round[-1][0] + value, of_round[-1][1] + 1)

    def halve(self) -> None:
        """Makes one point of each two neighbours."""
        self._sums = {
            index: [
                (sum(total for total, _ in pair), sum(count for _, count in pair))
                for pair in (of_round[start : start + 2] for start in range(0, len(of_round), 2))
            ]
            for index, of_round in self._sums.items()
        }

    def means(self) -> dict[int, list[float | None]]:
        sums = {index: self._sums[index] for index in sorted(self._sums)}
        return {index: [total / count if count else None for total, count in points] for index, points in sums.items()}
