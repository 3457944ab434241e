"""Resuming: which stages of which rounds are done, and whether the checkpoints to start from are intact."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tpt_jax.checkpoints.checksums import BrokenCheckpointError, verify_checksums
from tpt_jax.checkpoints.writer import is_complete, read_facts
from tpt_jax.config import RunConfig
from tpt_jax.loop.run_folder import RunFolder, Stage
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

    The checkpoints that the unfinished rounds start from are verified. A broken one is removed and its round counts as
    not trained, so that it trains again from the checkpoint before it.
    """
    found = hosts.broadcast(
        "rounds done",
        lambda: [[folder.stages(index), folder.metrics(index)] for index in range(config.num_rounds + 1)],
    )
    states = [RoundState(index, stages, metrics) for index, (stages, metrics) in enumerate(found)]
    states = [_with_finished_training(folder, state) for state in states]
    unfinished = [state for state in states if not state.is_done]
    if unfinished:
        first = unfinished[0]
        newest = first.index if "train" in first.stages else first.index - 1
        states = _verify(folder, states, newest)
        if config.train.start_from == "base":
            states = _verify(folder, states, 0)
    return states


def _with_finished_training(folder: RunFolder, state: RoundState) -> RoundState:
    """Records a training whose checkpoint was completed just before the process was killed."""
    checkpoint = folder.checkpoint(state.index)

    def facts_of_finished() -> Facts | None:
        return read_facts(checkpoint) if "train" not in state.stages and is_complete(checkpoint) else None

    facts = hosts.broadcast(f"training of round {state.index}", facts_of_finished)
    return state if facts is None else _write(folder, state.with_stage("train", facts))


def _verify(folder: RunFolder, states: list[RoundState], newest: int) -> list[RoundState]:
    """Marks rounds as not trained, from the newest back to the first one with an intact checkpoint."""
    states = list(states)
    for index in range(newest, -1, -1):
        fault = _find_fault(folder, index)
        if fault is None:
            break
        say(f"{fault}: round {index} trains again, from the checkpoint before it")
        states[index] = _write(folder, states[index].without_training())
        if hosts.is_first() and folder.checkpoint(index).is_dir():
            folder.checkpoint(index).rmtree()
        hosts.barrier(f"broken checkpoint of round {index} removed")
    return states


def _find_fault(folder: RunFolder, index: int) -> str | None:
    checkpoint = folder.checkpoint(index)
    if not hosts.broadcast(f"checkpoint {index} complete", lambda: is_complete(checkpoint)):
        return f"{checkpoint}: is missing"
    try:
        verify_checksums(checkpoint)
    except BrokenCheckpointError as error:
        return str(error)
    return None


def _write(folder: RunFolder, state: RoundState) -> RoundState:
    if hosts.is_first():
        folder.write_stages(state.index, state.stages)
    return state
