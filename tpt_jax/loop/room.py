"""The room that a run's checkpoints and saves will take on its disk, said before anything is compiled."""

import os
import shutil

from tpt_jax.config import OptimizerConfig, RunConfig
from tpt_jax.io.paths import Path, files_below, is_remote
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.masters import num_trained
from tpt_jax.terminal import say

BYTES = {"float32": 4, "bfloat16": 2}
NUM_SAVES = 3  # of an unfinished training: the two newest, and the one that is being written


def needed_bytes(config: RunConfig, model: ModelConfig) -> int:
    """What the weights in a run's folder take at most, of all checkpoints and of the saves of one training."""
    num_checkpoints = config.num_rounds + 1
    if config.keep_checkpoints is not None:  # the best one, and the one being written, come on top
        num_checkpoints = min(num_checkpoints, config.keep_checkpoints + 2)
    a_weight = BYTES["float32"]
    return num_trained(model, config.train.lora) * (
        num_checkpoints * a_weight + NUM_SAVES * (a_weight + _moments(config.train.optimizer))
    )


def say_if_short(folder: Path, config: RunConfig, model: ModelConfig) -> None:
    """Says so if the disk lacks room for what the run has yet to write. It starts all the same: room may be made."""
    if is_remote(folder):
        return
    written = sum(os.path.getsize(path) for path in files_below(folder / "checkpoints"))
    needed, free = needed_bytes(config, model) - written, shutil.disk_usage(folder).free
    if needed > free:
        say(
            f"{config.name}: checkpoints and saves take up to {_in_gigabytes(needed)}, but the disk of {folder} has "
            f"{_in_gigabytes(free)} free; make room, or set keep_checkpoints"
        )


def _moments(optimizer: OptimizerConfig) -> int:
    """Bytes of the optimizer's moments for each weight."""
    first, second = BYTES[optimizer.first_moment], BYTES[optimizer.second_moment]
    return {"adamw": first + second, "muon": first, "adafactor": 0}[optimizer.name]


def _in_gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
