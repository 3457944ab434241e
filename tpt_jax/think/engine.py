"""The host's side of sampling: questions in, finished traces out, in the order in which they finish.

The device always has the next chunk of decoding queued while the host fetches, decodes, checks and writes what the last
one finished.
"""

import bisect
import collections
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx

from tpt_jax.errors import Stopped, UserError
from tpt_jax.prompts import Prompt
from tpt_jax.records import Trace
from tpt_jax.runtime.sharding import place
from tpt_jax.think.cache import CacheType
from tpt_jax.think.compile import SlotProgram
from tpt_jax.think.sampling import Filters, question_number
from tpt_jax.think.state import FREE, Finished, RequestBatch, SlotShape

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
    prefix = common_prefix(list(fitting.values()))
    shape = slot_shape(
        num_questions=min(num_questions or len(prompts), len(prompts)),
        num_samples=num_samples,
        num_prefix_tokens=len(prefix),
        max_prompt_tokens=max(map(len, fitting.values())) - len(prefix),
        max_new_tokens=max_new_tokens,
        num_slots=num_slots,
        num_shards=num_shards,
        filters=filters,
        cache_type=cache_type,
        option=option,
    )
    return SamplingPlan(fitting, prefix, shape, num_samples)


def slot_shape(
    *,
    num_questions: int,
    num_samples: int,
    num_prefix_tokens: int,
    max_prompt_tokens: int,
    max_new_tokens: int,
    num_slots: int,
    num_shards: int,
    filters: Filters,
    cache_type: CacheType,
    option: str,
) -> SlotShape:
    """What each data shard samples of so many questions asked in one go.

    Raises:
      UserError: the slots do not divide over the data shards.
    """
    if num_slots % num_shards:
        raise UserError(
            f"{option}num_slots ({num_slots}) must be a multiple of data x fsdp = {num_shards}; "
            f"try {-(-num_slots // num_shards) * num_shards}"
        )
    asked = -(-num_questions // num_shards)
    return SlotShape(
        num_slots=min(num_slots // num_shards, asked * num_samples),
        num_questions=asked,
        num_traces=asked * num_samples,
        num_prefix_tokens=num_prefix_tokens,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        filters=filters,
        cache_type=cache_type,
    )


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

    @classmethod
    def together(cls, of_hosts: Sequence[Mapping[str, float]]) -> "Statistics":
        """Of all hosts, each given by its fields: they sampled side by side."""
        total = {name: sum(host[name] for host in of_hosts) for name in of_hosts[0]}
        for name in ("seconds", "idle_seconds"):
            total[name] /= len(of_hosts)
        return cls(**{**total, "num_steps": max(host["num_steps"] for host in of_hosts)})  # pyright: ignore[reportArgumentType]

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
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[list[Trace]]:
        """Yields finished traces, some at a time.

        Args:
          parameters: laid out for decoding.
          requests: whose prompts begin with the prefix and fit the program's shape.
          should_stop: asked after every chunk of decoding.

        Raises:
          FloatingPointError: the model's scores for a question are not finite.
          Stopped: it should stop; finished traces were yielded, those under way are lost.
        """
        work, names = _make_work(requests, self._program.shape, self._num_shards, len(self._prefix))
        work = dataclasses.replace(
            work,
            seed=np.uint32(seed),
            round_index=np.uint32(round_index),
            temperature=np.float32(temperature),
        )
        self.statistics = Statistics()
        self._cancelled = np.zeros((self._num_shards, self._program.shape.num_traces), bool)
        started = time.monotonic()
        with ThreadPoolExecutor(max_workers=1) as fetcher:
            for finished in self._chunks(parameters, self._program.place(work), fetcher):
                yield [*self._traces(finished, names)]
                self.statistics.seconds = time.monotonic() - started
                if finished.num_left and should_stop():
                    raise Stopped

    def _chunks(self, parameters: nnx.State, work: RequestBatch, fetcher: ThreadPoolExecutor) -> Iterator["Fetched"]:
        """What each chunk finished, fetched from the device, until nothing is left."""
        ready_at = time.monotonic()
        slots = self._program.start(parameters, self._program.place_prefix(self._prefix))
        in_flight: collections.deque[tuple[float, Future[tuple[Fetched, float]]]] = collections.deque()
        num_left = 1
        while num_left:
            while len(in_flight) < CHUNKS_IN_FLIGHT:
                slots, finished = self._program.decode_chunk(parameters, work, slots)
                in_flight.append((time.monotonic(), fetcher.submit(_fetch, finished, self._num_shards)))
            queued_at, future = in_flight.popleft()
            self.statistics.idle_seconds += max(0.0, queued_at - ready_at)
            fetched, ready_at = future.result()
            num_left = fetched.num_left
            self._count(fetched)
            if self._stop_strings:
                work = self._cancel(work, fetched)
            yield fetched
        for _, future in in_flight:  # it found nothing left; what comes next may have the devices to itself
            future.result()

    def _cancel(self, work: RequestBatch, fetched: "Fetched") -> RequestBatch:
        """Ends traces whose text has come to a stop string; they were at most two chunks longer.

        Hosts that share a shard find the same.
        """
        cancelled = self._cancelled.copy()
        for shard, finished in fetched.shards.items():
            running = finished.running
            assert running is not None  # the shape asks for it
            for row in np.flatnonzero(running.trace != FREE).tolist():
                text = self._prompt.text(running.tokens[row, : running.length[row]].tolist())
                cancelled[shard, running.trace[row]] |= any(stop in text for stop in self._stop_strings)
        if (cancelled == self._cancelled).all():
            return work
        self._cancelled = cancelled
        sharding: Any = self._program.work_shardings.cancelled
        return dataclasses.replace(work, cancelled=place(cancelled.reshape(-1), sharding))

    def _until_stop_string(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """As many tokens as give no more than the text before the first stop string; all where there is none."""
        text = self._prompt.text(ids)
        ends = [at for stop in self._stop_strings if (at := text.find(stop)) >= 0]
        if not ends:
            return ids
        return ids[
            : bisect.bisect_right(range(len(ids)), min(ends), key=lambda end: len(self._prompt.text(ids[:end]))) - 1
        ]

    def _count(self, fetched: "Fetched") -> None:
        own = [fetched.shards[shard] for shard in fetched.own]
        self.statistics.num_steps += max((int(finished.num_steps[0]) for finished in own), default=0)
        self.statistics.num_tokens += sum(int(finished.num_decoded[0]) for finished in own)
        self.statistics.num_full_steps += sum(int(finished.num_full_steps[0]) for finished in own)
        self.statistics.num_full_tokens += sum(int(finished.num_full_decoded[0]) for finished in own)
        self.statistics.num_prefilled += sum(int(finished.num_prefilled[0]) for finished in own)

    def _traces(self, fetched: "Fetched", names: list[list[tuple[str, int]]]) -> Iterator[Trace]:
        for shard in fetched.own:
            finished = fetched.shards[shard]
            for row in range(int(finished.count[0])):
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


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A chunk's results on the host.

    Attributes:
      shards: by number, what each data shard finished, of those that this host's devices hold.
      own: those whose traces this host sees to; another one may hold a copy.
      num_left: traces of all shards that are still to come.
    """

    shards: Mapping[int, Finished]
    own: Sequence[int]
    num_left: int


def _fetch(finished: Finished, num_shards: int) -> tuple[Fetched, float]:
    """A chunk's results (the only transfer back), and when it was over."""
    jax.block_until_ready(finished)
    ready_at = time.monotonic()
    num_left = int(finished.num_left.addressable_data(0)[0])
    leaves, structure = jax.tree.flatten(dataclasses.replace(finished, num_left=finished.count))
    here = [_parts(leaf, num_shards) for leaf in leaves]
    fetched = jax.device_get([[part.data for part in parts.values()] for parts in here])
    shards = {
        shard: jax.tree.unflatten(structure, [values[place] for values in fetched])
        for place, shard in enumerate(here[0])
    }
    own = [shard for shard, part in here[0].items() if part.replica_id == 0]
    return Fetched(shards, own, num_left), ready_at


def _parts(array: jax.Array, num_shards: int) -> dict[int, jax.Shard]:
    """One copy of each data shard's part that this host's devices hold, in order; the first copy where it is here."""
    rows = len(array) // num_shards
    parts = sorted(array.addressable_shards, key=lambda part: -part.replica_id)
    by_shard = {(part.index[0].start or 0) // rows: part for part in parts}
    return dict(sorted(by_shard.items()))


def _make_work(
    requests: Sequence[Request], shape: SlotShape, num_shards: int, prefix_length: int
) -> tuple[RequestBatch, list[list[tuple[str, int]]]]:
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
    return RequestBatch(**flat, **counts, **nothing), names
