"""Packed training batches (grain): several short examples share a row, but do not attend to each other.

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
    """The packed rows of one optimizer step; host arrays until TrainerProgram.step moves them to the devices.

    A: micro-batches, B: rows per micro-batch, T: sequence length.
    """

    tokens: Int[Array, "A B T"]
    targets: Int[Array, "A B T"]  # the next token
    loss_weights: Float[Array, "A B T"]  # 1 where the target is completion or end of turn, else 0
    positions: Int[Array, "A B T"]  # within the segment
    segment_ids: Int[Array, "A B T"]  # from 1; 0 is padding


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """One optimizer step: micro_batches x rows x sequence_length tokens."""

    micro_batches: int
    rows: int
    sequence_length: int

    @property
    def num_tokens(self) -> int:
        return self.micro_batches * self.rows * self.sequence_length


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """A batch on the host, and which examples it contains."""

    arrays: Batch
    example_ids: tuple[str, ...]
    lengths: tuple[int, ...]  # tokens of each example

    @property
    def num_tokens(self) -> int:
        """Without padding."""
        return sum(self.lengths)


def split_by_length(examples: Sequence[Example], sequence_length: int) -> tuple[list[Example], list[Example]]:
    """Splits examples into those that fit in a row and those that do not.

    Long ones are left out, not truncated: a truncated trace would be trained on without its answer.
    """
    fitting = [example for example in examples if row_length(example) <= sequence_length]
    return fitting, [example for example in examples if row_length(example) > sequence_length]


def packed_batches(
    examples: Sequence[Example], shape: BatchShape, *, seed: int, num_epochs: int
) -> grain.MapDataset[PackedBatch]:
    """Batches with every example once per epoch; rows are reshuffled each epoch, the last batch is padded.

    The result supports indexing and is the same on every host.

    Args:
      examples: each fits in a row; see split_by_length.
    """
    rows = [
        [examples[index] for index in row]
        for row in assign_rows(list(map(row_length, examples)), shape.sequence_length)
    ]
    return (
        grain.MapDataset.source(rows)
        .seed(seed)
        .shuffle()
        .batch(shape.micro_batches * shape.rows, drop_remainder=False, batch_fn=list)
        .map(lambda rows: _pack(rows, shape))
        .repeat(num_epochs)
    )


def assign_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assigns examples to rows by best fit decreasing; returns each row's example indices.

    Longest example first, each into the fullest row that still has room for it. Uses at most 11/9 of the minimum
    number of rows, plus 4 (Johnson et al., SIAM Journal on Computing 3, 1974).
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        best = bisect.bisect_left(free, (lengths[index], -1))
        if best == len(free):
            room, row = capacity, len(rows)
            rows.append([])
        else:
            room, row = free.pop(best)
        rows[row].append(index)
        bisect.insort(free, (room - lengths[index], row))
    return rows


def row_length(example: Example) -> int:
    """Tokens the example takes up in a row."""
    return len(example.tokens) - 1  # the last token is only a target


def _pack(rows: Sequence[Sequence[Example]], shape: BatchShape) -> PackedBatch:
    size = (shape.micro_batches * shape.rows, shape.sequence_length)
    tokens, targets, positions, segment_ids = (np.zeros(size, np.int32) for _ in range(4))
    loss_weights = np.zeros(size, np.float32)
    for row, columns, segment, example in _segments(rows):
        tokens[row, columns], targets[row, columns] = example.tokens[:-1], example.tokens[1:]
        loss_weights[row, columns.start + example.num_prompt - 1 : columns.stop] = 1.0
        positions[row, columns], segment_ids[row, columns] = np.arange(row_length(example)), segment
    micro_batches = [
        array.reshape(shape.micro_batches, shape.rows, shape.sequence_length)
        for array in (tokens, targets, loss_weights, positions, segment_ids)
    ]
    ids = tuple(example.id for row in rows for example in row)
    lengths = tuple(row_length(example) for row in rows for example in row)
    return PackedBatch(Batch(*micro_batches), ids, lengths)  # pyright: ignore[reportArgumentType]


def _segments(rows: Sequence[Sequence[Example]]) -> Iterator[tuple[int, slice, int, Example]]:
    """Each example with its row, its columns there and its segment id."""
    for row, examples in enumerate(rows):
        start = 0
        for segment, example in enumerate(examples, start=1):
            yield row, slice(start, start + row_length(example)), segment, example
            start += row_length(example)
