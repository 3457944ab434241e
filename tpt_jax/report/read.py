"""Reads a run's folder, as far as the run has come."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tpt_jax.errors import UserError
from tpt_jax.io.paths import AnyPath
from tpt_jax.report.traces import HeldOut, Shelf, read_held_out, read_shelves

RATES = ("pass_at_1", "pass_at_k", "maj_at_k", "strict_pass_at_1", "strict_pass_at_k")


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share of 0 to 1, and its 95% interval where that is known."""

    value: float
    interval: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Round:
    """A finished round: what is in its metrics.json, without what is missing or not a number.

    Attributes:
      rates: of the held-out questions, by name.
      numbers: all plain numbers, by name.
      seconds, tokens: by stage.
      dropped: how many traces pruning dropped, by reason.
      verdicts: how many of each kind there are, by stage.
    """

    index: int
    rates: Mapping[str, Rate]
    numbers: Mapping[str, float]
    seconds: Mapping[str, float]
    tokens: Mapping[str, float]
    dropped: Mapping[str, float]
    verdicts: Mapping[str, Mapping[str, float]]

    def rate(self, name: str) -> float | None:
        return self.rates[name].value if name in self.rates else None

    def thought(self, name: str) -> float | None:
        """A number of the thinking or pruning, which round 0 has none of even where it says 0."""
        return self.numbers.get(name) if self.index > 0 else None


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
      label: its name, or its folder where runs of a report share a name.
      settings: config.yaml as text.
      task, model: their names, "" where the config does not say.
      num_planned: rounds of training that the config asks for.
      losses: of each train step, in order, by round; None where the loss was not a finite number.
      held_out: traces of the held-out questions in the first and the last finished round, as far as there are two.
    """

    label: str
    settings: str
    task: str
    model: str
    num_planned: int | None
    rounds: tuple[Round, ...]
    losses: Mapping[int, Sequence[float | None]]
    held_out: tuple[HeldOut, ...]
    shelves: tuple[Shelf, ...]

    @property
    def num_done(self) -> int:
        """Rounds of training that are finished."""
        return sum(of_round.index > 0 for of_round in self.rounds)

    @property
    def k(self) -> str:
        known = (of_round.numbers.get("k") for of_round in self.rounds)
        return next((f"{k:.0f}" for k in known if k is not None), "k")


def read_runs(paths: Sequence[AnyPath]) -> tuple[Run, ...]:
    """Reads each folder.

    Raises:
      UserError: a folder is not a run's, or a file in it cannot be read.
    """
    runs = [_read_run(path) for path in paths]
    folders = [path.resolve().name for path in paths]
    if len({run.label for run in runs}) < len(runs):  # two seeds of one config, say
        labels = folders if len(set(folders)) == len(runs) else map(str, paths)
        runs = [dataclasses.replace(run, label=label) for run, label in zip(runs, labels, strict=True)]
    return tuple(runs)


def _read_run(path: AnyPath) -> Run:
    settings = path / "config.yaml"
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run's folder, one that `tpt run` made")
    if not settings.is_file():
        raise UserError(f"{path}: is not a run's folder (no config.yaml); give one that `tpt run` made")
    text = settings.read_bytes().decode("utf-8", errors="replace")
    config = _config(text)
    folders = sorted(folder for folder in (path / "rounds").glob("*") if folder.name.isdecimal() and folder.is_dir())
    finished = [folder for folder in folders if (folder / "metrics.json").is_file()]
    held_out = tuple(read_held_out(folder) for folder in dict.fromkeys((*finished[:1], *finished[-1:])))
    planned = config.get("num_rounds")
    return Run(
        label=str(config.get("name") or path.resolve().name),
        settings=text,
        task=_name(config.get("task"), "name"),
        model=_name(config.get("model"), "path"),
        num_planned=planned if isinstance(planned, int) else None,
        rounds=tuple(_round(folder) for folder in finished),
        losses=_losses(path / "metrics.jsonl"),
        held_out=held_out,
        shelves=read_shelves(folders, held_out),
    )


def _config(text: str) -> dict[str, Any]:
    """The settings, {} where the text is not a mapping: the report shows it all the same."""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return config if isinstance(config, dict) else {}


def _name(section: Any, key: str) -> str:
    return str(section.get(key) or "") if isinstance(section, dict) else ""


def _round(folder: AnyPath) -> Round:
    path = folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); delete it, and `tpt run` makes the round anew") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{path}: not a JSON object; delete it, and `tpt run` makes the round anew")
    numbers = _numbers(metrics)
    intervals = _mapping(metrics.get("intervals"))
    return Round(
        index=int(folder.name),
        rates={name: Rate(numbers[name], _interval(intervals.get(name))) for name in RATES if name in numbers},
        numbers=numbers,
        seconds=_numbers(metrics.get("seconds")),
        tokens=_numbers(metrics.get("tokens")),
        dropped=_numbers(metrics.get("num_dropped")),
        verdicts={stage: _numbers(_mapping(metrics.get("verdicts")).get(stage)) for stage in ("think", "evaluate")},
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _numbers(values: Any) -> dict[str, float]:
    return {name: values[name] for name in values if _is_finite(values[name])} if isinstance(values, dict) else {}


def _interval(bounds: Any) -> tuple[float, float] | None:
    whole = isinstance(bounds, list) and len(bounds) == 2 and all(map(_is_finite, bounds))
    return (bounds[0], bounds[1]) if whole else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _losses(path: AnyPath) -> dict[int, list[float | None]]:
    losses: dict[int, list[float | None]] = {}
    for text in path.read_bytes().decode("utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # a run that is going, or was killed, leaves half a line at the end
        if isinstance(line, dict) and line.get("phase") == "train" and "loss" in line:
            loss = line["loss"] if _is_finite(line["loss"]) else None
            losses.setdefault(int(line.get("round") or 0), []).append(loss)
    return dict(sorted(losses.items()))
