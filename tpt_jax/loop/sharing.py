"""Runs of a sweep share the stages that are the same: the first one computes, the others take over its files.

Files are linked where the file system can, else copied, and a run folder never changes a file in place: so each run
folder stays whole whatever happens to the others. Beside each finished stage stands its key (rounds/NNN/keys.json).
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping

from tpt_jax.checkpoints.checksums import BrokenCheckpointError, verify_checksums
from tpt_jax.checkpoints.writer import is_complete, remove_unfinished
from tpt_jax.config import RunConfig
from tpt_jax.io.links import link_file, link_folder
from tpt_jax.io.paths import to_path
from tpt_jax.loop.events import COLUMNS
from tpt_jax.loop.recovery import Facts
from tpt_jax.loop.run_folder import RunFolder, Stage, StageKey, read_metrics_log
from tpt_jax.loop.stage_keys import StageKeys, digest
from tpt_jax.runtime import hosts
from tpt_jax.terminal import say

LogStep = Callable[[int, Mapping[str, float]], None]  # called with a training step and its curves


class SharedStages:
    """The finished stages of all runs of a sweep, by key; filled on the first host only."""

    def __init__(self) -> None:
        self._runs: dict[str, list[RunFolder]] = {}
        self._intact: set[str] = set()  # checkpoints written or verified by this process
        self._broken: set[str] = set()

    def add_run(self, folder: RunFolder) -> None:
        """Adds what an earlier process has finished of a run."""
        for index in folder.round_indices():
            finished = folder.stages(index)
            for stage, noted in folder.stage_keys(index).items():
                if stage in finished:
                    self.add(noted.key, folder)

    def add(self, key: str, folder: RunFolder) -> None:
        runs = self._runs.setdefault(key, [])
        if folder not in runs:
            runs.append(folder)

    def find(self, key: str, index: int, stage: Stage) -> RunFolder | None:
        """A run that still has the stage's files: keep_checkpoints, or the user, may have removed some."""
        for folder in self._runs.get(key, ()):
            checkpoint = folder.checkpoint(index)
            is_there = stage != "train" or (str(checkpoint) not in self._broken and is_complete(checkpoint))
            if is_there and folder.is_done(index, stage):
                return folder
        return None

    def mark_intact(self, folder: RunFolder, index: int) -> None:
        """Notes that this process wrote the checkpoint, so that it need not be read to be verified."""
        self._intact.add(str(folder.checkpoint(index)))

    def is_intact(self, folder: RunFolder, index: int) -> bool:
        """Whether a checkpoint is as it was written; all hosts verify it together, once."""
        checkpoint = folder.checkpoint(index)
        if str(checkpoint) in self._intact:
            return True
        try:
            verify_checksums(checkpoint)
        except BrokenCheckpointError as error:
            say(f"not shared: {error}")
            self._broken.add(str(checkpoint))
            return False
        self._intact.add(str(checkpoint))
        return True


class Sharing:
    """Lets one run take over stages, and offers its own to the runs after it; all hosts call it together."""

    def __init__(self, stages: SharedStages, folder: RunFolder, config: RunConfig):
        self._stages = stages
        self._folder = folder
        self._digests: dict[int, str] = {}
        self._keys = StageKeys(config, self._training_digest)

    def begin(self) -> None:
        """Offers what an earlier process finished, even if it was killed before it noted the stage."""
        if hosts.is_first():
            for index in self._folder.round_indices():
                for stage in self._folder.stages(index):
                    self.note(index, stage)

    def take(self, index: int, stage: Stage, log_step: LogStep) -> Facts | None:
        """Takes over a stage from a run that has it.

        Args:
          log_step: receives the curves of a training.

        Returns:
          The facts about the stage, with the seconds that taking it over took; None if no run has it.
        """
        what = f"round {index} {stage}"
        while (path := hosts.broadcast(f"{what}: shared", lambda: self._find(index, stage))) is not None:
            source = RunFolder(to_path(path))
            if stage != "train" or self._stages.is_intact(source, index):
                take = functools.partial(self._take, source, index, stage, log_step)
                return hosts.broadcast(f"{what}: taken over", take)
        return None

    def note(self, index: int, stage: Stage) -> None:
        """Offers a finished stage of this run; call it before the stage counts as done in the run folder."""
        if hosts.is_first():
            key = self._keys.key(index, stage)
            noted = self._folder.stage_keys(index).get(stage)
            if noted is None or noted.key != key:
                self._write(index, stage, StageKey(key))
            self._stages.add(key, self._folder)
        if stage == "train":
            self._stages.mark_intact(self._folder, index)

    def _find(self, index: int, stage: Stage) -> str | None:
        """The folder of a run that has the stage."""
        source = self._stages.find(self._keys.key(index, stage), index, stage)
        if source is None and stage in self._folder.stage_keys(index):
            self._write(index, stage, None)  # a killed process was about to take it over
        return None if source is None else str(source.path)

    def _take(self, source: RunFolder, index: int, stage: Stage, log_step: LogStep) -> Facts:
        started = time.monotonic()
        facts = source.stages(index)[stage]
        noted = source.stage_keys(index)[stage]
        if noted.taken_from is None:
            name = f"{source.path.parent.name}/{source.path.name}"
            noted = dataclasses.replace(noted, taken_from=name, seconds_saved=facts["seconds"])
        self._write(index, stage, noted)
        say(f"round {index} {stage}: as in {noted.taken_from}, taken over")
        self._link_files(source, index, stage, log_step)
        return {**facts, "seconds": time.monotonic() - started}

    def _link_files(self, source: RunFolder, index: int, stage: Stage, log_step: LogStep) -> None:
        mine, theirs = self._folder.round_path(index), source.round_path(index)
        if stage == "train":
            for line in read_metrics_log(source.metrics_log):
                if line["round"] == index and line["phase"] == "train":
                    log_step(line["step"], {name: line[name] for name in line if name not in COLUMNS})
            remove_unfinished(self._folder.checkpoint(index))
            link_folder(source.checkpoint(index), self._folder.checkpoint(index))
        elif stage == "prune":
            link_file(theirs / "training.jsonl", mine / "training.jsonl")
        else:
            for path in self._folder.trace_files(index, stage):  # of a process killed while it sampled
                path.unlink()
            for path in source.trace_files(index, stage):
                link_file(path, mine / "traces" / path.name)

    def _write(self, index: int, stage: Stage, noted: StageKey | None) -> None:
        keys: dict[Stage, StageKey] = {
            name: each for name, each in self._folder.stage_keys(index).items() if name != stage
        }
        self._folder.write_stage_keys(index, keys if noted is None else {**keys, stage: noted})

    def _training_digest(self, index: int) -> str:
        """Of what a training reads of a round's kept traces, in their order."""
        if index not in self._digests:
            kept = self._folder.training(index)
            self._digests[index] = digest([(each.trace.id, each.trace.sample, each.trace.token_ids) for each in kept])
        return self._digests[index]
