"""Packed training batches: every example once per epoch, correct masks, full rows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tpt_jax.bench.workloads import long_tailed
from tpt_jax.prompts import Example
from tpt_jax.train.data import BatchShape, assign_rows, packed_batches, split_by_length


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=30),
    rows=st.integers(1, 4),
    micro_batches=st.integers(1, 2),
    seed=st.integers(0, 5),
)
def test_an_epoch_has_every_example_once_with_correct_masks(
    lengths: list[tuple[int, int]], rows: int, micro_batches: int, seed: int
) -> None:
    examples = []
    for number, (num_prompt, num_completion) in enumerate(lengths, start=1):
        tokens = tuple(100 * number + offset for offset in range(num_prompt + num_completion))
        examples.append(Example(tokens, num_prompt))
    shape = BatchShape(micro_batches, rows, 20)
    unpacked: list[tuple[int, ...]] = []
    for packed in packed_batches(examples, shape, seed=seed, num_epochs=1):
        batch = packed.arrays
        assert batch.tokens.shape == (micro_batches, rows, 20)
        for row in np.ndindex(micro_batches, rows):
            segment_ids = np.asarray(batch.segment_ids[row])
            for segment in range(1, segment_ids.max() + 1):
                mask = segment_ids == segment
                tokens, targets = np.asarray(batch.tokens[row])[mask], np.asarray(batch.targets[row])[mask]
                weights = np.asarray(batch.loss_weights[row])[mask]
                sequence = (*tokens.tolist(), int(targets[-1]))
                assert targets.tolist() == list(sequence[1:])
                assert np.asarray(batch.positions[row])[mask].tolist() == list(range(len(tokens)))
                num_prompt = examples[sequence[0] // 100 - 1].num_prompt
                assert weights.tolist() == [0.0] * (num_prompt - 1) + [1.0] * (len(sequence) - num_prompt)
                unpacked.append(sequence)
            assert not np.asarray(batch.loss_weights[row])[segment_ids == 0].any()
    assert sorted(unpacked) == sorted(example.tokens for example in examples)


def test_each_epoch_has_its_own_order_and_a_seed_repeats_it() -> None:
    examples = [Example((1,) * 9, 1, str(index)) for index in range(12)]

    def ids(seed: int) -> list[tuple[str, ...]]:
        return [batch.example_ids for batch in packed_batches(examples, BatchShape(1, 12, 8), seed=seed, num_epochs=2)]

    first, second = ids(0)
    assert sorted(first) == sorted(second)
    assert first != second
    assert ids(0) == [first, second]
    assert ids(1) != [first, second]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=60))
def test_rows_have_every_example_once_and_no_two_rows_would_fit_in_one(lengths: list[int]) -> None:
    rows = assign_rows(lengths, 50)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    row_lengths = sorted(sum(lengths[index] for index in row) for row in rows)
    assert all(length <= 50 for length in row_lengths)
    assert len(row_lengths) < 2 or row_lengths[0] + row_lengths[1] > 50


def test_traces_as_long_as_those_of_gsm8k_fill_98_percent_of_their_rows() -> None:
    """2,000 traces, as many as a round of the paper keeps. The padding rows of the last batch are not counted."""
    lengths = np.clip(long_tailed(np.random.default_rng(0), 2000, 290, 1000), 60, None)
    examples = [Example((0,) * (length + 1), 1, str(index)) for index, length in enumerate(lengths)]
    batches = packed_batches(examples, BatchShape(1, 32, 1024), seed=0, num_epochs=1)
    assert sum(batch.num_tokens for batch in batches) == lengths.sum()
    assert lengths.sum() / (len(assign_rows(lengths.tolist(), 1024)) * 1024) > 0.98


def test_examples_longer_than_a_row_are_left_out_not_truncated() -> None:
    examples = [Example(tuple(range(length)), 1) for length in (5, 21, 22)]
    fitting, too_long = split_by_length(examples, 20)
    assert [len(example.tokens) for example in fitting] == [5, 21]
    assert too_long == examples[2:]
