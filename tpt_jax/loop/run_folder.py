"""The run folder: its layout, its readers and writers, and which stages are done.

config.yaml                       the resolved config
metrics.jsonl, tensorboard/       curves
report.html
profiles/                         traces of some steps, for XProf and Perfetto
checkpoints/NNN/                  the model after round NNN; 000 is the base model
rounds/NNN/questions.jsonl        the questions asked in the round
rounds/NNN/traces/think-HHH-PPPPP.jsonl, evaluate-HHH-PPPPP.jsonl    judged traces of host HHH, in atomic files
rounds/NNN/training.jsonl         the traces trained on
rounds/NNN/training/              the state of an unfinished training
rounds/NNN/stages.json            the finished stages, with their seconds and counts
rounds/NNN/keys.json              in a sweep: what each stage depended on, and the run that it was taken over from
rounds/NNN/metrics.json           the round's figures; written last

On several hosts the first one reads and writes everything but traces and checkpoints.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import yaml

from tpt_jax.config import RunConfig, Sampling
from tpt_jax.config_parsing import dump_config, flat, parse_config, plain_values
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.files import (
    existing_file,
    parse_line,
    read_checked_object,
    without_checksum,
    write_atomically,
    write_checked_jsonl,
    write_checked_object,
)
from tpt_jax.io.lock import LOCK
from tpt_jax.io.paths import Path, is_remote, to_path
from tpt_jax.io.yaml_text import parse_yaml
from tpt_jax.records import JudgedTrace, Question

Record = TypeVar("Record")
Stage = Literal["think", "prune", "train", "evaluate"]
Verb = Literal["run", "eval"]  # the command that made a folder; they write different files
DECODER = json.JSONDecoder()
NUM_READERS = 16  # a bucket is slow, but answers many requests at once

# Settings that may change on resume: hardware, speed, and the number of rounds.
MAY_CHANGE = re.compile(
    r"num_rounds|early_stop|keep_checkpoints|mesh\.\w+|\w+\.num_slots|prune\.num_workers|trackers\.\w+|profile_\w+|train\.(offload|save_every|remat|attention)"
)


@dataclasses.dataclass(frozen=True)
class StageKey:
    """What a stage depended on, as a key, and where its files came from.

    Attributes:
      taken_from: the run of the sweep that computed them; None if this one did.
      seconds_saved: the time it took there.
    """

    key: str
    taken_from: str | None = None
    seconds_saved: float = 0.0


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of a run, or of an evaluation."""

    path: Path
    verb: Verb = "run"

    @classmethod
    def open(cls, path: str | os.PathLike[str], config: RunConfig, verb: Verb = "run") -> "RunFolder":
        """Opens a folder to resume, or one for a new run; writes nothing before `begin`.

        Raises:
          UserError: the folder holds results of a run with other settings, or something that is not a run.
        """
        path = to_path(path)
        written = path / "config.yaml"
        if written.is_file():
            if not has_results(path):  # a command with a mistake: the corrected one takes its place
                return cls(path, verb)
            text = written.read_bytes().decode("utf-8", errors="replace")
            if text.startswith(_header("eval")) != (verb == "eval"):
                raise UserError(f"{path}: was made by another command than tpt {verb}; give another --run_dir")
            difference = _first_difference(written, config)
            if difference is not None:
                raise UserError(
                    f"{path}: holds a run with another config ({difference}); "
                    "give another --run_dir, or the config the folder was made with"
                )
        elif not is_remote(path) and path.exists() and not is_empty(path):
            raise UserError(f"{path}: is neither a run folder nor empty; give another --run_dir")
        return cls(path, verb)

    @classmethod
    def open_existing(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """Opens a run folder for reading; its config is not compared with another.

        Raises:
          UserError: there is no such folder, or it is not a run folder.
        """
        folder = cls(to_path(path))
        if not folder.path.is_dir():
            raise UserError(f"{path}: no such folder; give a run folder, written by `tpt run`")
        if not folder.config_file.is_file():
            raise UserError(f"{path}: is not a run folder (no config.yaml); give one written by `tpt run`")
        is_eval = folder.config_text().startswith(_header("eval"))
        return dataclasses.replace(folder, verb="eval" if is_eval else "run")

    def begin(self, config: RunConfig) -> None:
        """Writes the config, which makes this a run folder."""
        write_atomically(self.config_file, _header(self.verb) + dump_config(config))

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    def config_text(self) -> str:
        """config.yaml as written."""
        return self.config_file.read_bytes().decode("utf-8", errors="replace")

    def round_indices(self) -> list[int]:
        """The rounds started so far, in order."""
        folders = (self.path / "rounds").glob("*")
        return sorted(int(folder.name) for folder in folders if folder.name.isdecimal() and folder.is_dir())

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
    def profiles(self) -> Path:
        return self.path / "profiles"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    # Stages.

    def stages(self, round_index: int) -> Mapping[Stage, Mapping[str, Any]]:
        """The finished stages, with the facts about each."""
        stages: Any = read_checked_object(self.round_path(round_index) / "stages.json")
        return stages or {}

    def is_done(self, round_index: int, stage: Stage | Literal["round"]) -> bool:
        """Whether a stage, or the whole round, is finished."""
        if stage == "round":
            return self.metrics(round_index) is not None
        return stage in self.stages(round_index)

    def is_finished(self, config: RunConfig) -> bool:
        """Whether a run has nothing left to do: all its rounds are finished, or early_stop has ended it."""
        rates: list[float] = []
        for index in range(config.num_rounds + 1):
            metrics = self.metrics(index)
            if metrics is None or not self.is_done(index, "train"):
                return False
            rates.append(metrics["pass_at_1"])
            if config.early_stop and is_no_better(rates):
                return True
        return True

    def write_stages(self, round_index: int, stages: Mapping[Stage, Mapping[str, Any]]) -> None:
        write_checked_object(self.round_path(round_index) / "stages.json", stages)

    def stage_keys(self, round_index: int) -> dict[Stage, StageKey]:
        """The keys of a round's stages, finished or not; empty unless the run is part of a sweep."""
        keys: Any = read_checked_object(self.round_path(round_index) / "keys.json") or {}
        return {stage: StageKey(**noted) for stage, noted in keys.items()}

    def write_stage_keys(self, round_index: int, keys: Mapping[Stage, StageKey]) -> None:
        values = {stage: dataclasses.asdict(noted) for stage, noted in keys.items()}
        write_checked_object(self.round_path(round_index) / "keys.json", values)

    # Traces.

    def trace_writer(self, round_index: int, sampling: Sampling, host: int) -> "TraceWriter":
        """A writer that continues the numbering of the host's files."""
        folder = self.round_path(round_index) / "traces"
        written = sorted(folder.glob(f"{sampling}-{host:03}-*.jsonl"))
        first = int(written[-1].stem.rpartition("-")[2]) + 1 if written else 0
        return TraceWriter(folder, f"{sampling}-{host:03}", itertools.count(first))

    def traces(self, round_index: int, sampling: Sampling) -> Iterator[JudgedTrace]:
        """Yields the judged traces of a round written so far, file by file; keep of each only what you need."""
        return read_traces(*self.trace_files(round_index, sampling))

    def trace_lines(self, round_index: int, sampling: Sampling, indices: Set[int]) -> dict[int, bytes]:
        """The lines of some of a round's traces, by their indices in `traces`; `parse_trace` makes a trace of one."""
        lines = (line for _, lines in _read_ahead(self.trace_files(round_index, sampling)) for _, line in lines)
        return {index: line for index, line in enumerate(lines) if index in indices}

    def trace_files(self, round_index: int, sampling: Sampling) -> list[Path]:
        """The files of a round's judged traces written so far."""
        return sorted((self.round_path(round_index) / "traces").glob(f"{sampling}-*.jsonl"))

    def write_questions(self, round_index: int, questions: Sequence[Question]) -> None:
        lines = (dataclasses.asdict(question) for question in questions)
        write_checked_jsonl(self.round_path(round_index) / "questions.jsonl", lines)

    def questions(self, round_index: int) -> Iterator[Question]:
        """The questions asked in a round: training questions first, then held-out ones; empty until they are written.

        Two of them may share an id, one from each split.
        """
        path = self.round_path(round_index) / "questions.jsonl"
        if path.is_file():
            yield from _read_records(path, lambda line: Question(**line), "a question")

    def write_training(self, round_index: int, judged: Iterable[JudgedTrace]) -> None:
        write_checked_jsonl(self.round_path(round_index) / "training.jsonl", (trace.to_json() for trace in judged))

    def training(self, round_index: int) -> Iterator[JudgedTrace]:
        """Yields the traces the round trained on, by question and sample."""
        return _read_records(self.round_path(round_index) / "training.jsonl", JudgedTrace.from_json, "a judged trace")

    # Metrics.

    def metrics(self, round_index: int) -> dict[str, Any] | None:
        """The round's figures; None until it is done."""
        return read_checked_object(self.round_path(round_index) / "metrics.json")

    def write_metrics(self, round_index: int, metrics: Mapping[str, Any]) -> None:
        write_checked_object(self.round_path(round_index) / "metrics.json", metrics)


def is_no_better(rates: Sequence[float]) -> bool:
    """Whether the last round's Pass@1 is not above the best one before: then early_stop ends the run.

    All rounds answer the same held-out questions, so that the difference of two rates is the mean of the questions' own
    changes.
    """
    return len(rates) > 1 and rates[-1] <= max(rates[:-1])


@dataclasses.dataclass(frozen=True)
class TraceWriter:
    """Writes a round's traces, file by file.

    Attributes:
      numbers: the numbers of the next files.
    """

    folder: Path
    prefix: str
    numbers: Iterator[int]

    def write(self, judged: Iterable[JudgedTrace]) -> str:
        """Writes finished traces as the next file; returns its name."""
        path = self.folder / f"{self.prefix}-{next(self.numbers):05}.jsonl"
        write_checked_jsonl(path, (trace.to_json() for trace in judged))
        return path.name


def read_traces(*paths: Path) -> Iterator[JudgedTrace]:
    """Yields the judged traces of files, one after the other.

    Raises:
      UserError: a file is missing, or a line is not a judged trace.
    """
    for path, lines in _read_ahead(paths):
        for number, line in lines:
            yield _parse_record(path, number, line, JudgedTrace.from_json, "a judged trace")


def _read_ahead(paths: Iterable[Path]) -> Iterator[tuple[Path, Iterator[tuple[int, bytes]]]]:
    """Yields files with their numbered lines, while the next ones are read."""
    waiting: deque[tuple[Path, Future[bytes]]] = deque()
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for path in itertools.chain(paths, [None] * NUM_READERS):
            if path is not None:
                waiting.append((path, pool.submit(lambda path=path: existing_file(path).read_bytes())))
            if waiting and (path is None or len(waiting) == NUM_READERS):
                first, content = waiting.popleft()
                yield first, _numbered(io.BytesIO(content.result()))


def parse_trace(line: bytes) -> JudgedTrace:
    """The judged trace in a line that `traces` has read before."""
    return JudgedTrace.from_json(parse_line(line))


def read_metrics_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of metrics.jsonl, skipping those that a killed process left incomplete."""
    if path.is_file():
        yield from (line for _, line in read_log_lines(path) if line is not None)


def read_log_lines(path: Path, first: int = 0) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yields the lines of metrics.jsonl from one on, as they are and parsed; None for one that cannot be read."""
    with path.open("rb") as lines:
        for text in itertools.islice(lines, first, None):
            yield text, _parse_log_line(text.strip())


def _parse_log_line(raw: bytes) -> dict[str, Any] | None:
    try:
        text = without_checksum(raw).decode()
        line, end = DECODER.raw_decode(text)  # in half of the time of json.loads
    except (InvalidRecordError, ValueError):
        return None
    return line if isinstance(line, dict) and end == len(text) else None


def num_saved_steps(saves: Path) -> int:
    """The number of steps in the newest save of an unfinished training; 0 if there is none."""
    return max((int(step.name) for step in saves.glob("*") if step.name.isdigit()), default=0)


def _read_records(path: Path, read: Callable[[dict[str, Any]], Record], kind: str) -> Iterator[Record]:
    with existing_file(path).open("rb") as file:
        for number, line in _numbered(file):
            yield _parse_record(path, number, line, read, kind)


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1."""
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _parse_record(path: Path, number: int, line: bytes, read: Callable[[dict[str, Any]], Record], kind: str) -> Record:
    try:
        return read(parse_line(line))
    except InvalidRecordError as error:
        raise UserError(f"{path}:{number}: {error}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: record {number} is not {kind} ({error!r}); restore the file") from error


def is_empty(path: Path) -> bool:
    """Whether a path is a folder with nothing in it but a lock and what a killed process was writing."""
    return path.is_dir() and all(child.name == LOCK or child.name.endswith(".tmp") for child in path.iterdir())


def has_results(path: Path) -> bool:
    """Whether a run's folder holds something that a run had to compute: a trace, a stage or a checkpoint."""
    patterns = ("rounds/*/traces/*.jsonl", "rounds/*/stages.json", "checkpoints/[0-9][0-9][0-9]")
    return any(True for pattern in patterns for _ in path.glob(pattern))


def _header(verb: Verb) -> str:
    return f"# tpt {verb}\n"


def _first_difference(written: Path, config: RunConfig) -> str | None:
    """The first differing setting that affects results, as "train.rows is 24 there, 25 here"; None if there is none.

    Raises:
      UserError: the written file is not a config.
    """
    return first_difference(plain_values(read_config(written)), plain_values(config))


def read_config(written: Path) -> RunConfig:
    """The config that a run was started with.

    Raises:
      UserError: the file is not a config, or not one of this version.
    """
    try:
        tree = parse_yaml(written.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{written}: cannot be read; give another --run_dir") from error
    try:
        return parse_config(tree)
    except UserError as error:
        raise UserError(
            f"{written}: {error}; if another version of tpt_jax wrote it, give another --run_dir"
        ) from error


def settings_digest(config: RunConfig) -> str:
    """A checksum of the settings that affect results; runs with the same one have the same results."""
    values = {key: value for key, value in flat(plain_values(config)).items() if not MAY_CHANGE.fullmatch(key)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """The first setting that affects results and differs between two configs' plain values; None if there is none."""
    there, here = flat(dict(there)), flat(dict(here))
    for key in {**there, **here}:
        if there.get(key) != here.get(key) and not MAY_CHANGE.fullmatch(key):
            return f"{key} is {there.get(key)} there, {here.get(key)} here"
    return None
