"""A run's folder: where things are, and which stages are done.

config.yaml                       everything that the run was given
metrics.jsonl, tensorboard/       curves
report.html
checkpoints/NNN/                  the model after round NNN; 000 is the model as given
rounds/NNN/questions.jsonl        what was asked in the round
rounds/NNN/traces/think-HHH-PPPPP.jsonl, evaluate-HHH-PPPPP.jsonl    judged traces of host HHH, in parts, each whole
rounds/NNN/training.jsonl         the traces that were trained on
rounds/NNN/training/              the state of the training under way
rounds/NNN/stages.json            the stages that are done, with their seconds and counts
rounds/NNN/metrics.json           the round's figures; written last

On several hosts all but the traces and the checkpoints is read and written by the first one.
"""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import yaml

from tpt_jax.config import RunConfig, Sampling, dump_config, parse_config
from tpt_jax.errors import UserError
from tpt_jax.io.files import read_jsonl, write_atomically, write_jsonl
from tpt_jax.io.paths import Path, is_remote, to_path
from tpt_jax.records import JudgedTrace, Question

Stage = Literal["think", "prune", "train", "evaluate"]
Verb = Literal["run", "eval"]  # what made a folder: they leave other things in it
READERS = 16  # a bucket answers slowly, but many at a time

# What a run may be gone on with that it was not begun with: where and how fast it runs, and for how long.
MAY_CHANGE = re.compile(
    r"num_rounds|keep_checkpoints|mesh\.\w+|\w+\.num_slots|prune\.num_workers|wandb_project|train\.(offload|save_every|remat|attention)"
)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run's folder."""

    path: Path
    verb: Verb = "run"

    @classmethod
    def open(cls, path: str | os.PathLike[str], config: RunConfig, verb: Verb = "run") -> "RunFolder":
        """A run's folder to go on with, or one to begin; nothing is written before `begin`.

        Raises:
          UserError: the folder holds a run whose results would be others, or something that is not a run.
        """
        path = to_path(path)
        written = path / "config.yaml"
        if written.is_file():
            text = written.read_bytes().decode("utf-8", errors="replace")
            if text.startswith(_header("eval")) != (verb == "eval"):
                raise UserError(f"{path}: was made by another verb than tpt {verb}; give another --run_dir")
            difference = _first_difference(written, config)
            if difference is not None:
                raise UserError(
                    f"{path}: holds a run with another config ({difference}); "
                    "give another --run_dir, or the config that the folder was made with"
                )
        elif not is_remote(path) and path.exists() and not _is_empty(path):
            raise UserError(f"{path}: is not a run's folder and not empty; give another --run_dir")
        return cls(path, verb)

    def begin(self, config: RunConfig) -> None:
        """Writes the config, which makes the folder a run's."""
        write_atomically(self.path / "config.yaml", _header(self.verb) + dump_config(config))

    def round_path(self, round_index: int) -> Path:
        return self.path / "rounds" / f"{round_index:03}"

    def checkpoint(self, round_index: int) -> Path:
        return self.path / "checkpoints" / f"{round_index:03}"

    def training_saves(self, round_index: int) -> Path:
        return self.round_path(round_index) / "training"

    @property
    def metrics_log(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    # Stages.

    def stages(self, round_index: int) -> dict[str, dict[str, Any]]:
        """What is known of each stage that is done."""
        path = self.round_path(round_index) / "stages.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def is_done(self, round_index: int, phase: Stage | Literal["round"]) -> bool:
        """Whether a stage, or the whole round, has left its result."""
        if phase == "round":
            return self.metrics(round_index) is not None
        return phase in self.stages(round_index)

    def write_stages(self, round_index: int, stages: dict[str, dict[str, Any]]) -> None:
        write_atomically(self.round_path(round_index) / "stages.json", json.dumps(stages, indent=2) + "\n")

    def is_kept(self, line: dict[str, Any]) -> bool:
        """Whether what a line of metrics.jsonl tells of will not be done again."""
        index = line["round"]
        if self.is_done(index, line["phase"]):
            return True
        trained = line["phase"] == "train" and self.checkpoint(index).is_dir()
        return trained or (line["phase"] == "train" and line["step"] < saved_steps(self.training_saves(index)))

    # Traces.

    def trace_writer(self, round_index: int, sampling: Sampling, host: int) -> "TraceWriter":
        """Writes a host's traces after those that it has written before."""
        folder = self.round_path(round_index) / "traces"
        written = sorted(folder.glob(f"{sampling}-{host:03}-*.jsonl"))
        first = int(written[-1].stem.rpartition("-")[2]) + 1 if written else 0
        return TraceWriter(folder, f"{sampling}-{host:03}", itertools.count(first))

    def traces(self, round_index: int, sampling: Sampling) -> list[JudgedTrace]:
        """All judged traces of a round that are written so far, by question and sample."""
        parts = sorted((self.round_path(round_index) / "traces").glob(f"{sampling}-*.jsonl"))
        with ThreadPoolExecutor(READERS) as pool:
            lines = pool.map(lambda part: [*read_jsonl(part)], parts)
            judged = [JudgedTrace.from_json(line) for of_part in lines for line in of_part]
        return sorted(judged, key=lambda judged: (judged.trace.id, judged.trace.sample))

    def write_questions(self, round_index: int, questions: Sequence[Question]) -> None:
        write_jsonl(self.round_path(round_index) / "questions.jsonl", map(dataclasses.asdict, questions))

    def write_training(self, round_index: int, judged: Iterable[JudgedTrace]) -> None:
        write_jsonl(self.round_path(round_index) / "training.jsonl", (trace.to_json() for trace in judged))

    def training(self, round_index: int) -> list[JudgedTrace]:
        """The traces that the round trained on."""
        path = self.round_path(round_index) / "training.jsonl"
        return [JudgedTrace.from_json(line) for line in read_jsonl(path)]

    # Metrics.

    def metrics(self, round_index: int) -> dict[str, Any] | None:
        """The round's figures, None until it is done."""
        path = self.round_path(round_index) / "metrics.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write_metrics(self, round_index: int, metrics: dict[str, Any]) -> None:
        write_atomically(self.round_path(round_index) / "metrics.json", json.dumps(metrics, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class TraceWriter:
    """Writes parts of a round's traces.

    Attributes:
      numbers: of the parts to come.
    """

    folder: Path
    prefix: str
    numbers: Iterator[int]

    def write(self, judged: Iterable[JudgedTrace]) -> None:
        """Traces that are finished, as the next part."""
        path = self.folder / f"{self.prefix}-{next(self.numbers):05}.jsonl"
        write_jsonl(path, (trace.to_json() for trace in judged))


def saved_steps(saves: Path) -> int:
    """How many steps the newest save of a training under way has seen; 0 where there is none."""
    return max((int(step.name) for step in saves.glob("*") if step.name.isdigit()), default=0)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and all(child.name.endswith(".tmp") for child in path.iterdir())


def _header(verb: Verb) -> str:
    return f"# tpt {verb}\n"


def _first_difference(written: Path, config: RunConfig) -> str | None:
    """Such as "train.rows is 24 there, 25 here"; None where nothing that results depend on differs.

    Raises:
      UserError: what is written is no config.
    """
    try:
        tree = yaml.safe_load(written.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{written}: cannot be read; give another --run_dir") from error
    there, here = (_flat(yaml.safe_load(dump_config(each))) for each in (parse_config(tree), config))
    for key in {**there, **here}:
        if there.get(key) != here.get(key) and not MAY_CHANGE.fullmatch(key):
            return f"{key} is {there.get(key)} there, {here.get(key)} here"
    return None


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {key: leaf for name in tree for key, leaf in _flat(tree[name], f"{path}.{name}".lstrip(".")).items()}
