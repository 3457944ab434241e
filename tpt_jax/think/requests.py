"""Requests for traces, and the arrays that hand them to the device."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tpt_jax.think.sampling import question_hash
from tpt_jax.think.state import RequestBatch, SlotShape

TraceName = tuple[str, int]  # question id and sample


@dataclasses.dataclass(frozen=True)
class Request:
    """The traces to sample for one question."""

    id: str
    prompt_ids: tuple[int, ...]
    samples: tuple[int, ...]
    limits: tuple[int, ...]  # most new tokens, one for each sample


def make_request_batch(
    requests: Sequence[Request],
    shape: SlotShape,
    *,
    num_shards: int,
    seed: int,
    round_index: int,
    temperature: float,
    stop_table: UInt8[np.ndarray, "A V"],
) -> tuple[RequestBatch, list[list[TraceName]]]:
    """Deals the questions out to the data shards.

    Args:
      stop_table: of StopStrings; without rows if there are none.

    Returns:
      The batch as host arrays, and the names of each shard's traces, in the order of its rows.
    """
    questions, traces = (num_shards, shape.num_questions), (num_shards, shape.num_traces)
    arrays: dict[str, Any] = {
        "prompts": np.zeros((*questions, shape.max_prompt_tokens), np.int32),
        "prompt_lengths": np.ones(questions, np.int32),
        "question_hashes": np.zeros(questions, np.uint32),
        "trace_questions": np.full(traces, shape.num_questions, np.int32),
        "trace_samples": np.zeros(traces, np.uint32),
        "trace_limits": np.ones(traces, np.int32),
    }
    counts: dict[str, Any] = {field: np.zeros(num_shards, np.int32) for field in ("num_questions", "num_traces")}
    names: list[list[TraceName]] = [[] for _ in range(num_shards)]
    for index, request in enumerate(request for request in requests if request.samples):
        shard, row = index % num_shards, index // num_shards
        ids = request.prompt_ids[shape.num_prefix_tokens :]
        arrays["prompts"][shard, row, : len(ids)] = ids
        arrays["prompt_lengths"][shard, row] = len(ids)
        arrays["question_hashes"][shard, row] = question_hash(request.id)
        first = len(names[shard])
        end = first + len(request.samples)
        arrays["trace_questions"][shard, first:end] = row
        arrays["trace_samples"][shard, first:end] = request.samples
        arrays["trace_limits"][shard, first:end] = request.limits
        names[shard] += [(request.id, sample) for sample in request.samples]
        counts["num_questions"][shard], counts["num_traces"][shard] = row + 1, end
    shared: dict[str, Any] = {
        "stop_table": stop_table,
        "seed": np.uint32(seed),
        "round_index": np.uint32(round_index),
        "temperature": np.float32(temperature),
    }
    rows: dict[str, Any] = {field: array.reshape(-1, *array.shape[2:]) for field, array in arrays.items()}
    return RequestBatch(**rows, **counts, **shared), names
