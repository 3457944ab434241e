"""The benchmarks: they time the requested workload, and their figures are consistent."""

import re

import jax
import numpy as np
import pytest

from tpt_jax.bench import check, sample, train
from tpt_jax.bench.train import synthetic_examples
from tpt_jax.config import TrainConfig
from tpt_jax.errors import UserError
from tpt_jax.records import Question, Trace

SAMPLING = sample.Workload(
    model="quickstart",
    num_questions=8,
    num_samples=2,
    prompt_tokens=8,
    max_new_tokens=12,
    mean_new_tokens=4,
    num_slots=8,
    tensor=1,
    compute_dtype="float32",
    cache_type="compute",
    weights="compute",
)


def first_number(text: str) -> int:
    return int(re.match(r"[\d,]+", text)[0].replace(",", ""))  # pyright: ignore[reportOptionalSubscript]


def test_sampling_reaches_every_limit() -> None:
    requests = sample.synthetic_requests(SAMPLING, vocab_size=64)
    limits = np.asarray([request.limits for request in requests])
    lengths = [len(request.prompt_ids) for request in requests]
    assert limits.shape == (8, 2)
    assert limits.min() >= 1
    assert limits.max() <= 12
    assert 2 <= min(lengths) <= max(lengths) <= 8
    assert first_number(sample.measure(SAMPLING)["tokens"]) == limits.sum()


def test_training_examples_fill_all_steps_when_most_are_clipped() -> None:
    """With a mean above the longest length, clipping shortens most examples."""
    examples = synthetic_examples(64, num_tokens=4096, mean_tokens=250, longest=128)
    lengths = [len(example.tokens) - 1 for example in examples]
    assert max(lengths) == 128
    assert sum(lengths[:-1]) < 4096 <= sum(lengths)


def test_rows_must_divide_over_the_data_shards() -> None:
    workload = train.Workload("quickstart", 2, 64, 1, "float32", TrainConfig(rows=len(jax.devices()) + 1))
    with pytest.raises(UserError, match=r"--rows \(9\) must be a multiple of the 8 data shards; try 16"):
        train.measure(workload)


def test_checking_with_one_worker_and_with_all() -> None:
    pairs = [(Question("q", "2 + 3?", "#### 5"), Trace("q", index, f"#### {index}")) for index in range(3)]
    speeds = list(check.measure(pairs, "numeric", seconds_per_trace=5.0, num_workers=2, num_verdicts=100))
    assert [speed.num_workers for speed in speeds] == [1, 2]
    assert all(speed.verdicts_per_second > 0 for speed in speeds)
