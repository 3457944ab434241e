"""Packed training batches, with grain: several short examples share a row and never see each other.

row      |--------- example 1 ----------|------ example 2 ------| padding
segment   1 1 1 1 1 1 1 1 1 1 1 1 1 1 1  2 2 2 2 2 2 2 2 2 2 2 2  0 0 0 0
position  0 1 2 3 4 5 6 7 8 9 ...        0 1 2 3 4 5 ...          0 0 0 0
loss on   . . . . . x x x x x x x x x x  . . . . . . . x x x x x  . . . .
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import grain.experimental
import jax
import numpy as np
from jaxtyping import Array, Float, Int

from tpt_jax.prompts import Example


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One optimizer step's rows, cut into micro-batches; on the host until it is placed.

    A: micro-batches, B: rows of one, T: sequence length.
    """

    tokens: Int[Array, "A B T"]
    targets: Int[Array, "A B T"]  # the token that follows each
    loss_weights: Float[Array, "A B T"]  # 1 on completion and end of turn, else 0
    positions: Int[Array, "A B T"]  # in its own segment
    segment_ids: Int[Array, "A B T"]  # from 1; 0 is padding


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """micro_batches x rows x sequence_length tokens for each optimizer step."""

    micro_batches: int
    rows: int
    sequence_length: int


def split_by_length(examples: Sequence[Example], sequence_length: int) -> tuple[list[Example], int]:
    """The examples that fit a row, and how many do not: a cut trace would be trained without its answer."""
    fitting = [example for example in examples if len(example.tokens) - 1 <= sequence_length]
    return fitting, len(examples) - len(fitting)


def packed_batches(examples: Sequence[Example], shape: BatchShape, *, seed: int, num_epochs: int) -> Iterator[Batch]:
    """Every example once an epoch, in an order drawn anew for each; the last batch is filled up with padding.

    Raises:
      ValueError: an example is longer than a row.
    """
    for epoch in range(num_epochs):
        shuffled = grain.MapDataset.source(list(examples)).seed(seed + epoch).shuffle().map(_features)
        lengths = dict.fromkeys(("tokens", "targets", "loss_weights"), shape.sequence_length)
        packed = grain.experimental.FirstFitPackIterDataset(
            shuffled.to_iter_dataset(), length_struct=lengths, num_packing_bins=shape.rows * shape.micro_batches
        )
        rows: list[dict[str, np.ndarray]] = []
        for row in packed:
            rows.append(row)
            if len(rows) == shape.micro_batches * shape.rows:
                yield _stack(rows, shape)
                rows = []
        if rows:
            yield _stack(rows, shape)


def _features(example: Example) -> dict[str, np.ndarray]:
    tokens = np.asarray(example.tokens, np.int32)
    weights = np.zeros(len(tokens) - 1, np.float32)
    weights[example.num_prompt - 1 :] = 1.0
    return {"tokens": tokens[:-1], "targets": tokens[1:], "loss_weights": weights}


def _stack(rows: list[dict[str, np.ndarray]], shape: BatchShape) -> Batch:
    def gather(name: str) -> np.ndarray:
        stacked = np.stack([row[name] for row in rows])
        missing = shape.micro_batches * shape.rows - len(rows)
        padded = np.pad(stacked, ((0, missing), (0, 0)))
        return padded.reshape(shape.micro_batches, shape.rows, shape.sequence_length)

    arrays: dict[str, Any] = {
        "tokens": gather("tokens"),
        "targets": gather("targets"),
        "loss_weights": gather("loss_weights"),
        "positions": gather("tokens_positions"),
        "segment_ids": gather("tokens_segment_ids"),
    }
    return Batch(**arrays)
