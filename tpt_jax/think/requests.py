"""Requests for traces, who makes them, and the arrays that hand them to the device."""

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from tpt_jax.records import TraceName
from tpt_jax.think.sampling import question_hash
from tpt_jax.think.state import Prompts, Queue, SlotShape


@dataclasses.dataclass(frozen=True)
class Request:
    """The traces to sample for one question; they share its prefill."""

    id: str
    prompt_ids: tuple[int, ...]
    samples: tuple[int, ...]
    limits: tuple[int, ...]  # most new tokens, one for each sample


class Schedule(Protocol):
    """Decides which traces are sampled. All hosts that hold a data shard must get the same answers about it."""

    @property
    def prompts(self) -> Mapping[str, tuple[int, ...]]:
        """Prompt token ids of all questions that may be asked, by id; question i belongs to shard i % num_shards."""
        ...

    def take(self, shard: int, count: int, num_idle: int) -> Sequence[Request]:
        """The next requests for a shard: `count` traces or more if there are as many; see prune.demand.Demand."""
        ...

    def has_more(self, shard: int) -> bool:
        """Whether the shard is expected to get requests for further questions."""
        ...

    def is_needed(self, name: TraceName) -> bool:
        """Whether a requested trace is still needed; False is final."""
        ...

    def is_done(self, num_left: int) -> bool:
        """Whether sampling ends; `num_left` requested traces have not been returned, over all shards."""
        ...


class FixedSchedule:
    """Requests that are known from the start."""

    def __init__(self, requests: Sequence[Request], num_shards: int):
        asked = [request for request in requests if request.samples]
        self.prompts: Mapping[str, tuple[int, ...]] = {request.id: request.prompt_ids for request in asked}
        self._left = {shard: asked[shard::num_shards] for shard in range(num_shards)}

    def take(self, shard: int, count: int, num_idle: int) -> Sequence[Request]:
        """All of the shard's requests at once, however many are wanted."""
        return self._left.pop(shard, [])

    def has_more(self, shard: int) -> bool:
        return False

    def is_needed(self, name: TraceName) -> bool:
        return True

    def is_done(self, num_left: int) -> bool:
        return num_left == 0


def make_prompts(
    prompts: Mapping[str, tuple[int, ...]],
    shape: SlotShape,
    *,
    num_shards: int,
    seed: int,
    round_index: int,
    temperature: float,
    stop_table: UInt8[np.ndarray, "A V"],
) -> Prompts:
    """The prompts of all data shards as host arrays: question i is row i // num_shards of shard i % num_shards.

    Args:
      prompts: token ids by question id.
      stop_table: of StopStrings; without rows if there are none.
    """
    tokens = np.zeros((num_shards, shape.num_questions, shape.max_prompt_tokens), np.int32)
    lengths = np.ones((num_shards, shape.num_questions), np.int32)
    hashes = np.zeros((num_shards, shape.num_questions), np.uint32)
    for index, (name, prompt) in enumerate(prompts.items()):
        row, shard = divmod(index, num_shards)
        ids = prompt[shape.num_prefix_tokens :]
        tokens[shard, row, : len(ids)] = ids
        lengths[shard, row] = len(ids)
        hashes[shard, row] = question_hash(name)
    fields: dict[str, Any] = {
        "tokens": tokens.reshape(-1, shape.max_prompt_tokens),
        "lengths": lengths.reshape(-1),
        "question_hashes": hashes.reshape(-1),
        "stop_table": stop_table,
        "seed": np.uint32(seed),
        "round_index": np.uint32(round_index),
        "temperature": np.float32(temperature),
    }
    return Prompts(**fields)


class ShardQueue:
    """The host's side of one data shard's queue: appends requests, and remembers which trace each row is.

    Attributes:
      names: the traces of the queue's rows.
      num_finished: rows that the device has returned.
      num_started: rows that had started when the device last reported.
    """

    def __init__(self, shard: int, num_shards: int, prompts: Mapping[str, tuple[int, ...]], shape: SlotShape):
        rows = np.arange(shape.num_traces)
        fields: dict[str, Any] = {
            "prefill_questions": np.zeros(shape.num_prefills, np.int32),
            "trace_prefills": np.full(rows.shape, shape.num_prefills, np.int32),
            "trace_samples": np.zeros(rows.shape, np.uint32),
            "trace_limits": np.ones(rows.shape, np.int32),
            "is_cancelled": np.zeros(rows.shape, np.bool_),
            "num_prefills": np.zeros(1, np.int32),
            "num_traces": np.zeros(1, np.int32),
            "has_more": np.zeros(1, np.bool_),
        }
        self.arrays = Queue(**fields)
        self.names: list[TraceName] = []
        self.num_finished = 0
        self.num_started = 0
        # In the last chunks; a guess until the first traces have finished.
        self._recently_finished = deque([shape.num_slots // 2], maxlen=4)
        own = list(prompts)[shard::num_shards]
        self._questions = {name: row for row, name in enumerate(own)}
        self._open: set[int] = set()  # rows that are neither returned nor cancelled

    def append(self, request: Request) -> None:
        """Adds traces of one question, with a prefill of their own."""
        first, end = len(self.names), len(self.names) + len(request.samples)
        arrays: Any = self.arrays
        prefill = int(arrays.num_prefills[0])
        arrays.prefill_questions[prefill] = self._questions[request.id]
        arrays.trace_prefills[first:end] = prefill
        arrays.trace_samples[first:end] = request.samples
        arrays.trace_limits[first:end] = request.limits
        arrays.num_prefills[0], arrays.num_traces[0] = prefill + 1, end
        self.names += [(request.id, sample) for sample in request.samples]
        self._open.update(range(first, end))

    def finish(self, rows: Sequence[int]) -> None:
        """Notes that the device has returned these rows."""
        self.num_finished += len(rows)
        self._recently_finished.append(len(rows))
        self._open.difference_update(rows)

    def lookahead(self, num_slots: int) -> int:
        """How many requests should wait, so that no slot runs out of work before the host is asked again.

        Between two answers of the host lie up to three chunks, each of which may free as many slots as one of the last:
        traces of about one length finish in waves.
        """
        return num_slots // 8 + 3 * max(self._recently_finished)

    def set_has_more(self, has_more: bool) -> bool:
        """Notes whether further requests will follow; returns whether that is news."""
        array = np.asarray(self.arrays.has_more)
        is_news = bool(array[0]) != has_more
        array[0] = has_more
        return is_news

    def cancel_unneeded(self, schedule: Schedule) -> bool:
        """Marks the rows that the schedule no longer needs; returns whether there were any."""
        unneeded = [row for row in self._open if not schedule.is_needed(self.names[row])]
        np.asarray(self.arrays.is_cancelled)[unneeded] = True
        self._open.difference_update(unneeded)
        return bool(unneeded)

    def is_cancelled(self, row: int) -> bool:
        return bool(self.arrays.is_cancelled[row])
