"""Reads what the report shows of a run, finished or not."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tpt_jax.io.yaml_text import parse_yaml
from tpt_jax.loop.run_folder import RunFolder, Stage
from tpt_jax.report import words
from tpt_jax.report.curves import Curves, is_finite, read_curves
from tpt_jax.report.traces import Group, HeldOut, choose_groups, read_held_out

STAGES: tuple[Stage, ...] = typing.get_args(Stage)
RATES = ("pass_at_1", "pass_at_k", "maj_at_k", "strict_pass_at_1", "strict_pass_at_k")


@dataclasses.dataclass(frozen=True)
class Rate:
    """A rate from 0 to 1, and its 95% interval if known."""

    value: float
    interval: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class RoundResult:
    """The metrics of a finished round; missing ones and those that are not finite numbers are left out.

    Attributes:
      rates: on held-out questions, by name.
      numbers: all plain numbers, by name.
      seconds, tokens: by stage.
      dropped: traces that pruning dropped, by reason.
      verdicts: traces by stage and label.
      pass_at: Pass@k on held-out questions, by k.
      change, change_at_k: of Pass@1 and Pass@k since the base model, paired by question; None if unknown.
      difficulty: traces trained on, by how many samples their question took until the first right one.
      is_estimate: the rate on training questions is estimated from their first samples.
    """

    index: int
    rates: Mapping[str, Rate]
    numbers: Mapping[str, float]
    seconds: Mapping[Stage, float]
    tokens: Mapping[Stage, float]
    dropped: Mapping[str, float]
    verdicts: Mapping[str, Mapping[str, float]]
    pass_at: Mapping[int, Rate]
    change: Rate | None
    change_at_k: Rate | None
    difficulty: Mapping[str, float]
    is_estimate: bool

    def rate(self, name: str) -> float | None:
        return self.rates[name].value if name in self.rates else None

    def training_number(self, name: str) -> float | None:
        """A number about training questions; None in round 0, where the file says 0."""
        return self.numbers.get(name) if self.index > 0 else None


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
      label: the run's name, or its folder if several runs share a name.
      config: config.yaml as text.
      task, model: names from the config; "" if it has none.
      int8_parts: what the think stage kept in int8: "weights", "KV cache".
      num_planned: training rounds in the config; None for the folder of `tpt eval`.
      held_out: evaluations of the first and the last finished round; one if these are the same.
    """

    label: str
    config: str
    task: str
    model: str
    int8_parts: tuple[str, ...]
    num_planned: int | None
    rounds: tuple[RoundResult, ...]
    curves: Curves
    held_out: tuple[HeldOut, ...]
    groups: tuple[Group, ...]

    @property
    def num_done(self) -> int:
        """Finished rounds of training."""
        return sum(result.index > 0 for result in self.rounds)

    @property
    def k(self) -> str:
        """The k of Pass@k, as text; "k" if unknown."""
        values = (result.numbers.get("k") for result in self.rounds)
        return next((f"{value:.0f}" for value in values if value is not None), "k")


def read_runs(folders: Sequence[RunFolder]) -> tuple[Run, ...]:
    """Reads the runs of a report.

    Raises:
      UserError: a file cannot be read.
    """
    runs = [_read_run(folder) for folder in folders]
    if len({run.label for run in runs}) < len(runs):  # two seeds of one config, say
        names = [folder.path.resolve().name for folder in folders]
        labels = names if len(set(names)) == len(runs) else [str(folder.path) for folder in folders]
        runs = [dataclasses.replace(run, label=label) for run, label in zip(runs, labels, strict=True)]
    return tuple(runs)


def _read_run(folder: RunFolder) -> Run:
    text = folder.config_text()
    config = _parse_config(text)
    metrics = {index: folder.metrics(index) for index in folder.round_indices()}
    results = tuple(_result(index, values) for index, values in metrics.items() if values is not None)
    ends = dict.fromkeys(result.index for result in (*results[:1], *results[-1:]))
    held_out = tuple(read_held_out(folder, index) for index in ends)
    num_planned = config.get("num_rounds")
    return Run(
        label=words.plain(str(config.get("name") or folder.path.resolve().name)),
        config=text,
        task=_name(config.get("task"), "name"),
        model=_name(config.get("model"), "path"),
        int8_parts=_int8_parts(config.get("think")),
        num_planned=num_planned if isinstance(num_planned, int) and folder.verb == "run" else None,
        rounds=results,
        curves=read_curves(folder),
        held_out=held_out,
        groups=choose_groups(folder, held_out),
    )


def _parse_config(text: str) -> dict[str, Any]:
    """The config; {} if the text is not a mapping, which the report shows anyway."""
    try:
        config = parse_yaml(text)
    except yaml.YAMLError:
        return {}
    return config if isinstance(config, dict) else {}


def _name(section: Any, key: str) -> str:
    return words.plain(str(_mapping(section).get(key) or ""))


def _int8_parts(think: Any) -> tuple[str, ...]:
    names = {"weights": "weights", "cache_type": "KV cache"}
    return tuple(label for key, label in names.items() if _mapping(think).get(key) == "int8")


def _result(round_index: int, metrics: Mapping[str, Any]) -> RoundResult:
    numbers = _numbers(metrics)
    intervals = _mapping(metrics.get("intervals"))
    verdicts = _mapping(metrics.get("verdicts"))
    return RoundResult(
        index=round_index,
        rates={name: Rate(numbers[name], _interval(intervals.get(name))) for name in RATES if name in numbers},
        numbers=numbers,
        seconds=_by_stage(metrics.get("seconds")),
        tokens=_by_stage(metrics.get("tokens")),
        dropped=_numbers(metrics.get("num_dropped")),
        verdicts={sampling: _numbers(verdicts.get(sampling)) for sampling in ("think", "evaluate")},
        pass_at={
            int(k): Rate(value, _interval(intervals.get(f"pass_at_{k}")))
            for k, value in _numbers(metrics.get("pass_at")).items()
            if k.isdecimal()
        },
        change=_change(metrics, "pass_at_1"),
        change_at_k=_change(metrics, "pass_at_k"),
        difficulty=_numbers(metrics.get("difficulty")),
        is_estimate=metrics.get("train_is_estimate") is True,
    )


def _change(metrics: Mapping[str, Any], name: str) -> Rate | None:
    values = _mapping(metrics.get("paired")).get(name)
    if not isinstance(values, list) or len(values) != 3 or not all(map(is_finite, values)):
        return None
    return Rate(values[0], (values[1], values[2]))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _numbers(value: Any) -> dict[str, float]:
    return {name: number for name, number in _mapping(value).items() if is_finite(number)}


def _by_stage(value: Any) -> dict[Stage, float]:
    numbers = _numbers(value)
    return {stage: numbers[stage] for stage in STAGES if stage in numbers}


def _interval(bounds: Any) -> tuple[float, float] | None:
    is_valid = isinstance(bounds, list) and len(bounds) == 2 and all(map(is_finite, bounds))
    return (bounds[0], bounds[1]) if is_valid else None
