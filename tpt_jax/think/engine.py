"""The host's side of sampling: questions in, finished traces out, in the order in which they finish.

The device always has the next chunk of decoding queued while the host fetches, decodes, checks and writes what the last
one finished.
"""

import bisect
import collections
import dataclasses
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx

from tpt_jax.errors import UserError
from tpt_jax.prompts import Prompt
from tpt_jax.records import Trace
from tpt_jax.think.cache import CacheType
from tpt_jax.think.compile import SlotProgram
from tpt_jax.think.sampling import Filters, question_number
from tpt_jax.think.state import FREE, Finished, Running, SlotShape, Work

SHORTEST_PREFIX = 32  # tokens; attention in a part of its own costs more than a shorter one saves
CHUNKS_IN_FLIGHT = 2  # one that runs, one that waits for it


@dataclasses.dataclass(frozen=True)
class Request:
    """The traces wanted of one question."""

    id: str
    prompt_ids: tuple[int, ...]
    samples: tuple[int, ...]
    limits: tuple[int, ...]  # tokens of each


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """Which prompts are asked, and the shape to compile for."""

    prompt_ids: Mapping[str, tuple[int, ...]]  # of those that fit, by id
    prefix: tuple[int, ...]  # with which all of them begin
    shape: SlotShape  # of one data shard
    num_samples: int

    def requests(self, names: Iterable[str], done: Collection[tuple[str, int]]) -> list[Request]:
        """What is still to be sampled of the prompts that fit; `done` has the samples that are not."""
        return [
            Request(name, self.prompt_ids[name], samples, (self.shape.max_new_tokens,) * len(samples))
            for name in names
            if name in self.prompt_ids
            for samples in [tuple(sample for sample in range(self.num_samples) if (name, sample) not in done)]
        ]


def plan_sampling(
    prompts: Mapping[str, tuple[int, ...]],
    *,
    num_questions: int | None,
    num_samples: int,
    max_prompt_tokens: int,
    max_new_tokens: int,
    num_slots: int,
    num_shards: int,
    filters: Filters,
    cache_type: CacheType,
    option: str,
) -> SamplingPlan:
    """Finds the prompts that fit, what they share, and the smallest shape that holds them.

    Args:
      num_questions: asked at a time; None for all.
      option: how the user writes an option's name before the name itself: "think." or "--".

    Raises:
      UserError: no prompt fits, or the slots do not divide over the data shards.
    """
    fitting = {name: ids for name, ids in prompts.items() if len(ids) <= max_prompt_tokens}
    if not fitting:
        raise UserError(
            f"{option}max_prompt_tokens ({max_prompt_tokens}): every prompt is longer; try "
            f"{max(map(len, prompts.values()))}, the longest one's length"
        )
    if num_slots % num_shards:
        raise UserError(
            f"{option}num_slots ({num_slots}) must be a multiple of data x fsdp = {num_shards}; "
            f"try {-(-num_slots // num_shards) * num_shards}"
        )
    prefix = common_prefix(list(fitting.values()))
    asked = -(-min(num_questions or len(prompts), len(prompts)) // num_shards)
    shape = SlotShape(
        num_slots=min(num_slots // num_shards, asked * num_samples),
        num_questions=asked,
        num_traces=asked * num_samples,
        num_prefix_tokens=len(prefix),
        max_prompt_tokens=max(map(len, fitting.values())) - len(prefix),
        max_new_tokens=max_new_tokens,
        filters=filters,
        cache_type=cache_type,
    )
    return SamplingPlan(fitting, prefix, shape, num_samples)


@dataclasses.dataclass
class Statistics:
    """How a phase of sampling went; grows while it runs."""

    seconds: float = 0.0
    idle_seconds: float = 0.0  # the device had finished a chunk and the next one was not queued yet
    num_steps: int = 0
    num_tokens: int = 0  # sampled, stop tokens included
    num_full_steps: int = 0  # steps of a data shard while traces were waiting for a slot
    num_full_tokens: int = 0  # decoded in these
    num_prefilled: int = 0  # questions

    def occupancy(self, num_slots: int) -> float | None:
        """The share of a data shard's slots that worked, as long as there was work for all; None: there never was."""
        return self.num_full_tokens / (self.num_full_steps * num_slots) if self.num_full_steps else None

    @property
    def idle_share(self) -> float:
        return self.idle_seconds / max(self.seconds, 1e-9)


def common_prefix(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What all prompts begin with, where it is worth a part of its own; every prompt keeps a token that follows it."""
    shortest = min(map(len, prompts))
    shared = next((at for at in range(shortest - 1) if len({ids[at] for ids in prompts}) > 1), shortest - 1)
    return tuple(prompts[0][:shared]) if shared >= SHORTEST_PREFIX else ()


class Engine:
    """Samples traces. A trace depends on (seed, round, question, sample), not on slots, order or mesh."""

    def __init__(
        self,
        program: SlotProgram,
        prompt: Prompt,
        prefix: tuple[int, ...],
        num_shards: int,
        stop_strings: tuple[str, ...] = (),
    ):
        """An engine for one compiled shape.

        Args:
          prefix: with which all prompts begin.
          stop_strings: a trace ends before the first of these in its text; the shape must show running traces.
        """
        self._program = program
        self._stop_strings = stop_strings
        self._prompt = prompt
        self._prefix = prefix
        self._num_shards = num_shards
        self.statistics = Statistics()

    def sample(
        self,
        parameters: nnx.State,
        requests: Sequence[Request],
        *,
        seed: int,
        round_index: int,
        temperature: float,
    ) -> Iterator[list[Trace]]:
        """Yields finished traces, some at a time.

        Args:
          parameters: laid out for decoding.
          requests: whose prompts begin with the prefix and fit the program's shape.

        Raises:
          FloatingPointError: the model's scores for a question are not finite.
        """
        work, names = _make_work(requests, self._program.shape, self._num_shards, len(self._prefix))
        work = dataclasses.replace(
            work,
            seed=np.uint32(seed),
            round_index=np.uint32(round_index),
            temperature=np.float32(temperature),
        )
        self.statistics = Statistics()
        started = time.monotonic()
        with ThreadPoolExecutor(max_workers=1) as fetcher:
            for finished in self._chunks(parameters, self._program.place(work), fetcher):
                yield [*self._traces(finished, names)]
                self.statistics.seconds = time.monotonic() - started

    def _chunks(self, parameters: nnx.State, work: Work, fetcher: ThreadPoolExecutor) -> Iterator[Finished]:
        """What each chunk finished, fetched from the device, until nothing is left."""
        ready_at = time.monotonic()
        slots = self._program.start(parameters, np.asarray(self._prefix, np.int32))
        in_flight: collections.deque[tuple[float, Future[tuple[Finished, float]]]] = collections.deque()
        num_left = 1
        while num_left:
            while len(in_flight) < CHUNKS_IN_FLIGHT:
                slots, finished = self._program.decode_chunk(parameters, work, slots)
                in_flight.append((time.monotonic(), fetcher.submit(_fetch, finished)))
            queued_at, future = in_flight.popleft()
            self.statistics.idle_seconds += max(0.0, queued_at - ready_at)
            fetched, ready_at = future.result()
            num_left = int(fetched.num_left.sum())
            self._count(fetched)
            if fetched.running is not None:
                work = self._cancel(work, fetched.running)
            yield fetched

    def _cancel(self, work: Work, running: Running) -> Work:
        """Ends traces whose text has come to a stop string; they were at most two chunks longer."""
        shape = self._program.shape
        cancelled = np.asarray(work.cancelled).reshape(self._num_shards, -1).copy()
        found = False
        for row in np.flatnonzero(running.trace != FREE).tolist():
            shard, trace = row // shape.num_slots, int(running.trace[row])
            text = self._prompt.text(running.tokens[row, : running.length[row]].tolist())
            if not cancelled[shard, trace] and any(stop in text for stop in self._stop_strings):
                cancelled[shard, trace] = found = True
        if not found:
            return work
        placed = jax.device_put(cancelled.reshape(-1), self._program.work_shardings.cancelled)
        return dataclasses.replace(work, cancelled=placed)

    def _until_stop_string(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """As many tokens as give no more than the text before the first stop string; all where there is none."""
        text = self._prompt.text(ids)
        ends = [at for stop in self._stop_strings if (at := text.find(stop)) >= 0]
        if not ends:
            return ids
        return ids[
            : bisect.bisect_right(range(len(ids)), min(ends), key=lambda end: len(self._prompt.text(ids[:end]))) - 1
        ]

    def _count(self, finished: Finished) -> None:
        self.statistics.num_steps += int(finished.num_steps.max())
        self.statistics.num_tokens += int(finished.num_decoded.sum())
        self.statistics.num_full_steps += int(finished.num_full_steps.sum())
        self.statistics.num_full_tokens += int(finished.num_full_decoded.sum())
        self.statistics.num_prefilled = int(finished.num_prefilled.sum())

    def _traces(self, finished: Finished, names: list[list[tuple[str, int]]]) -> Iterator[Trace]:
        rows = self._program.shape.buffer_rows
        for shard, count in enumerate(finished.count.tolist()):
            for row in range(shard * rows, shard * rows + count):
                name, sample = names[shard][int(finished.trace[row])]
                logprob = float(finished.logprob[row])
                if not np.isfinite(logprob):
                    raise FloatingPointError(
                        f"question {name!r}, sample {sample}: the model's scores are not finite; "
                        "try model.compute_dtype: float32, or an earlier checkpoint"
                    )
                stopped = bool(finished.stopped[row])
                whole = tuple(finished.tokens[row, : int(finished.length[row]) - stopped].tolist())
                ids = self._until_stop_string(whole) if self._stop_strings else whole
                stopped |= ids is not whole
                yield Trace(
                    id=name,
                    sample=sample,
                    completion=self._prompt.text(ids),
                    token_ids=ids,
                    logprob=logprob,
                    finish_reason="stop" if stopped else "length",
                )


def _fetch(finished: Finished) -> tuple[Finished, float]:
    """A chunk's results on the host (the only transfer back), and when it was over."""
    jax.block_until_ready(finished)
    ready_at = time.monotonic()
    return jax.tree.map(np.asarray, finished), ready_at


def _make_work(
    requests: Sequence[Request], shape: SlotShape, num_shards: int, prefix_length: int
) -> tuple[Work, list[list[tuple[str, int]]]]:
    """The questions, dealt out to the data shards, and each shard's traces by question id and sample."""
    questions, traces = (num_shards, shape.num_questions), (num_shards, shape.num_traces)
    arrays: dict[str, Any] = {
        "prompts": np.zeros((*questions, shape.max_prompt_tokens), np.int32),
        "prompt_lengths": np.ones(questions, np.int32),
        "question_numbers": np.zeros(questions, np.uint32),
        "trace_questions": np.full(traces, shape.num_questions, np.int32),
        "trace_samples": np.zeros(traces, np.uint32),
        "trace_limits": np.ones(traces, np.int32),
        "cancelled": np.zeros(traces, bool),
    }
    counts: dict[str, Any] = {name: np.zeros(num_shards, np.int32) for name in ("num_questions", "num_traces")}
    names: list[list[tuple[str, int]]] = [[] for _ in range(num_shards)]
    for index, request in enumerate(request for request in requests if request.samples):
        shard, row = index % num_shards, index // num_shards
        ids = request.prompt_ids[prefix_length:]
        arrays["prompts"][shard, row, : len(ids)] = ids
        arrays["prompt_lengths"][shard, row] = len(ids)
        arrays["question_numbers"][shard, row] = question_number(request.id)
        first = len(names[shard])
        last = first + len(request.samples)
        arrays["trace_questions"][shard, first:last] = row
        arrays["trace_samples"][shard, first:last] = request.samples
        arrays["trace_limits"][shard, first:last] = request.limits
        names[shard] += [(request.id, sample) for sample in request.samples]
        counts["num_questions"][shard], counts["num_traces"][shard] = row + 1, last
    flat: dict[str, Any] = {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}
    nothing: dict[str, Any] = dict.fromkeys(("seed", "round_index", "temperature"))
    return Work(**flat, **counts, **nothing), names
