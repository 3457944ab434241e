"""Resuming: which stages of which rounds are done, and whether the checkpoints to start from are intact."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tpt_jax.checkpoints.checksums import BrokenCheckpointError, verify_checksums
from tpt_jax.checkpoints.writer import is_complete, read_facts
from tpt_jax.config import RunConfig
from tpt_jax.io.paths import Path
from tpt_jax.loop.run_folder import RunFolder, Stage, num_saved_steps
from tpt_jax.runtime import hosts
from tpt_jax.terminal import say

Facts = Mapping[str, Any]  # about a finished stage


@dataclasses.dataclass(frozen=True)
class RoundState:
    """The state of a round.

    Attributes:
      stages: the finished stages, with the facts about each.
      metrics: the round's figures; None until it is evaluated.
    """

    index: int
    stages: Mapping[Stage, Facts]
    metrics: Facts | None = None

    @property
    def is_done(self) -> bool:
        return self.metrics is not None and "train" in self.stages

    def with_stage(self, stage: Stage, facts: Facts) -> "RoundState":
        return dataclasses.replace(self, stages={**self.stages, stage: facts})

    def without_training(self) -> "RoundState":
        return dataclasses.replace(self, stages={name: self.stages[name] for name in self.stages if name != "train"})


def recover(folder: RunFolder, config: RunConfig) -> list[RoundState]:
    """The state of every round, 0 to num_rounds; all hosts call it together, once, before the first round.

    The checkpoints that unfinished rounds start from are verified. A broken one is removed and its round counts as not
    trained, so that it trains again.
    """
    found = hosts.broadcast("rounds done", lambda: [_read(folder, index) for index in range(config.num_rounds + 1)])
    states = [RoundState(index, stages, metrics) for index, (stages, metrics) in enumerate(found)]
    intact: set[int] = set()
    while needed := _checkpoints_needed(states, config) - intact:
        for index in sorted(needed):
            states[index] = _verify(folder, states[index])
            if "train" in states[index].stages:
                intact.add(index)
    return states


def _checkpoints_needed(states: Sequence[RoundState], config: RunConfig) -> set[int]:
    """The trained rounds whose parameters the first unfinished round starts from."""
    first = next((state for state in states if not state.is_done), None)
    if first is None:
        return set()
    if "train" in first.stages:  # only to be evaluated
        return {first.index}
    needed = {0 if config.train.start_from == "base" else first.index - 1}
    if "think" not in first.stages:
        needed.add(first.index - 1)
    return {index for index in needed if index >= 0 and "train" in states[index].stages}


def make_line_filter(folder: RunFolder, states: Sequence[RoundState]) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a line of metrics.jsonl stays valid on resume: its stage or step will not be repeated."""
    num_saved = [num_saved_steps(folder.training_saves(state.index)) for state in states]

    def is_kept(line: Mapping[str, Any]) -> bool:
        index, phase = line["round"], line["phase"]
        if index >= len(states):  # the run was resumed with fewer rounds
            return True
        if phase == "round":
            return states[index].metrics is not None
        if phase in ("think", "evaluate"):  # these stages go on where they were
            return True
        return phase in states[index].stages or (phase == "train" and line["step"] < num_saved[index])

    return is_kept


def _read(folder: RunFolder, index: int) -> tuple[dict[Stage, Facts], Facts | None]:
    """A round's finished stages and metrics; records a training that was killed between checkpoint and record."""
    stages = dict(folder.stages(index))
    checkpoint = folder.checkpoint(index)
    if "train" not in stages and is_complete(checkpoint):
        try:
            stages["train"] = read_facts(checkpoint)
        except (OSError, ValueError):  # killed while it was being removed
            checkpoint.rmtree()
        else:
            folder.write_stages(index, stages)
    return stages, folder.metrics(index)


def _verify(folder: RunFolder, state: RoundState) -> RoundState:
    """The state, not trained if the round's checkpoint is broken; the checkpoint is then removed."""
    fault = _find_fault(folder.checkpoint(state.index), state.index)
    if fault is None:
        return state
    say(f"round {state.index} trains again ({fault})")
    state = state.without_training()
    if hosts.is_first():
        folder.write_stages(state.index, state.stages)
        if folder.checkpoint(state.index).is_dir():
            folder.checkpoint(state.index).rmtree()
    hosts.barrier(f"broken checkpoint of round {state.index} removed")
    return state


def _find_fault(checkpoint: Path, index: int) -> str | None:
    if not hosts.broadcast(f"checkpoint {index} complete", lambda: is_complete(checkpoint)):
        return f"{checkpoint}: is missing"
    try:
        verify_checksums(checkpoint)
    except BrokenCheckpointError as error:
        return str(error)
    return None
