"""Packed training batches, with grain: several short examples share a row and never see each other.

row      |--------- example 1 ----------|------ example 2 ------| padding
segment   1 1 1 1 1 1 1 1 1 1 1 1 1 1 1  2 2 2 2 2 2 2 2 2 2 2 2  0 0 0 0
position  0 1 2 3 4 5 6 7 8 9 ...        0 1 2 3 4 5 ...          0 0 0 0
loss on   . . . . . x x x x x x x x x x  . . . . . . . x x x x x  . . . .
"""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence

import grain
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

    @property
    def num_tokens(self) -> int:
        return self.micro_batches * self.rows * self.sequence_length


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """A batch on the host, and what is in it."""

    arrays: Batch
    example_ids: tuple[str, ...]
    num_tokens: int  # that are not padding


def split_by_length(examples: Sequence[Example], sequence_length: int) -> tuple[list[Example], list[Example]]:
    """The examples that fit a row, and those that do not: a cut trace would be trained without its answer."""
    fitting = [example for example in examples if _length(example) <= sequence_length]
    return fitting, [example for example in examples if _length(example) > sequence_length]


def packed_batches(
    examples: Sequence[Example], shape: BatchShape, *, seed: int, num_epochs: int
) -> grain.MapDataset[PackedBatch]:
    """Every example once an epoch, the rows in an order drawn anew for each; the last batch is filled with padding.

    It can be indexed, and every host has the same.

    Args:
      examples: none of them longer than a row.
    """
    rows = [
        [examples[index] for index in row] for row in plan_rows(list(map(_length, examples)), shape.sequence_length)
    ]
    return (
        grain.MapDataset.source(rows)
        .seed(seed)
        .shuffle()
        .batch(shape.micro_batches * shape.rows, drop_remainder=False, batch_fn=list)
        .map(lambda rows: _pack(rows, shape))
        .repeat(num_epochs)
    )


def plan_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which examples share a row: best fit decreasing. A row's examples are given by their indices.

    The longest example first, each into the row with the least room that still holds it: at most 11/9 of the fewest
    rows possible, and four (Johnson et al., SIAM Journal on Computing 3, 1974).
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # what is left in each row, in increasing order; and which row
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        at = bisect.bisect_left(rooms, (lengths[index], -1))
        if at == len(rooms):
            room, row = capacity, len(rows)
            rows.append([])
        else:
            room, row = rooms.pop(at)
        rows[row].append(index)
        bisect.insort(rooms, (room - lengths[index], row))
    return rows


def _length(example: Example) -> int:
    return len(example.tokens) - 1  # the last token is only a target


def _pack(rows: Sequence[Sequence[Example]], shape: BatchShape) -> PackedBatch:
    size = (shape.micro_batches * shape.rows, shape.sequence_length)
    tokens, targets, positions, segment_ids = (np.zeros(size, np.int32) for _ in range(4))
    loss_weights = np.zeros(size, np.float32)
    for row, example, piece, segment in _places(rows):
        tokens[row, piece], targets[row, piece] = example.tokens[:-1], example.tokens[1:]
        loss_weights[row, piece.start + example.num_prompt - 1 : piece.stop] = 1.0
        positions[row, piece], segment_ids[row, piece] = np.arange(_length(example)), segment
    arrays = (tokens, targets, loss_weights, positions, segment_ids)
    cut = [array.reshape(shape.micro_batches, shape.rows, shape.sequence_length) for array in arrays]
    ids = tuple(example.id for row in rows for example in row)
    return PackedBatch(Batch(*cut), ids, int((segment_ids > 0).sum()))  # pyright: ignore[reportArgumentType]


def _places(rows: Sequence[Sequence[Example]]) -> Iterator[tuple[int, Example, slice, int]]:
    """Each example with its row, its piece of it, and the number of its segment."""
    for row, examples in enumerate(rows):
        start = 0
        for segment, example in enumerate(examples, start=1):
            yield row, example, slice(start, start + _length(example)), segment
            start += _length(example)
