"""Reads what a report shows from a run's folder."""

import dataclasses
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tpt_jax.errors import UserError
from tpt_jax.records import JudgedTrace, Question, read_jsonl

TRACES_OF_A_KIND = 6  # shown for each kind and chosen round


@dataclasses.dataclass(frozen=True)
class Reading:
    """A trace to read, and its question where that is known."""

    judged: JudgedTrace
    question: Question | None


@dataclasses.dataclass(frozen=True)
class Shelf:
    """Traces of one kind."""

    title: str
    readings: tuple[Reading, ...]


@dataclasses.dataclass(frozen=True)
class RunReport:
    """One run, as far as it has come.

    Attributes:
      rounds: metrics.json of each finished round, in order.
      losses: of each train step, by round.
    """

    name: str
    config: str
    rounds: tuple[Mapping[str, Any], ...]
    losses: Mapping[int, tuple[float, ...]]
    shelves: tuple[Shelf, ...]


def read_run(path: Path) -> RunReport:
    """Reads a run's folder.

    Raises:
      UserError: it is not one.
    """
    written = path / "config.yaml"
    if not written.is_file():
        raise UserError(f"{path}: is not a run's folder (no config.yaml); give one that `tpt run` made")
    config = written.read_text(encoding="utf-8")
    folders = sorted(folder for folder in (path / "rounds").glob("[0-9]*") if (folder / "metrics.json").is_file())
    rounds = [json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in folders]
    return RunReport(
        name=str(yaml.safe_load(config).get("name", path.name)),
        config=config,
        rounds=tuple(rounds),
        losses=_losses(path / "metrics.jsonl"),
        shelves=tuple(shelf for shelf in _shelves(folders) if shelf.readings),
    )


def _losses(path: Path) -> dict[int, tuple[float, ...]]:
    losses: dict[int, list[float]] = {}
    for line in read_jsonl(path) if path.is_file() else ():
        if line.get("phase") == "train" and "loss" in line:
            losses.setdefault(line["round"], []).append(line["loss"])
    return {index: tuple(values) for index, values in losses.items()}


def _shelves(folders: list[Path]) -> Iterator[Shelf]:
    """Held-out traces that changed between the first and the last round, then traces of the training questions."""
    if len(folders) > 1:
        yield from _changes(folders[0], folders[-1])
    chosen = sorted({folders[1], folders[-1]}) if len(folders) > 1 else folders
    for folder in chosen:
        label = f"Round {int(folder.name)}"
        questions = _questions(folder)
        kept = {(judged.trace.id, judged.trace.sample) for judged in _judged([folder / "training.jsonl"])}
        thought = [
            dataclasses.replace(judged, kept=(judged.trace.id, judged.trace.sample) in kept)
            for judged in _judged(sorted((folder / "traces").glob("think-*.jsonl")))
        ]
        kinds = {
            "kept for training": lambda judged: judged.kept,
            "wrong answer": lambda judged: not judged.verdict.correct and judged.trace.finish_reason == "stop",
            "right answer, wrong format": lambda judged: judged.verdict.correct and not judged.verdict.strict,
            "cut at the length limit": lambda judged: judged.trace.finish_reason == "length",
        }
        for kind, belongs in kinds.items():
            yield Shelf(f"{label}: {kind}", _some([judged for judged in thought if belongs(judged)], questions))


def _changes(first: Path, last: Path) -> Iterator[Shelf]:
    """The same held-out questions before and after: those that became right, and those that became wrong."""
    questions = {**_questions(first), **_questions(last)}
    before, after = ({judged.trace.id: judged for judged in _held_out(folder)} for folder in (first, last))
    both = [name for name in after if name in before]
    for title, was, is_now in (("became right", False, True), ("became wrong", True, False)):
        names = [name for name in both if (before[name].verdict.correct, after[name].verdict.correct) == (was, is_now)]
        pairs = [judged for name in _draw(names, TRACES_OF_A_KIND // 2) for judged in (before[name], after[name])]
        readings = tuple(Reading(judged, questions.get(judged.trace.id)) for judged in pairs)
        yield Shelf(f"Held-out questions that {title}: round {int(first.name)}, then {int(last.name)}", readings)


def _held_out(folder: Path) -> Iterator[JudgedTrace]:
    traces = _judged(sorted((folder / "traces").glob("evaluate-*.jsonl")))
    return (judged for judged in traces if judged.trace.sample == 0)


def _judged(paths: Iterable[Path]) -> Iterator[JudgedTrace]:
    for path in paths:
        yield from map(JudgedTrace.from_json, read_jsonl(path) if path.is_file() else ())


def _questions(folder: Path) -> dict[str, Question]:
    path = folder / "questions.jsonl"
    return {line["id"]: Question(**line) for line in read_jsonl(path)} if path.is_file() else {}


def _some(judged: list[JudgedTrace], questions: Mapping[str, Question]) -> tuple[Reading, ...]:
    return tuple(Reading(one, questions.get(one.trace.id)) for one in _draw(judged, TRACES_OF_A_KIND))


def _draw(items: list[Any], count: int) -> list[Any]:
    """A few of them, the same ones each time."""
    return random.Random(0).sample(items, min(count, len(items)))
