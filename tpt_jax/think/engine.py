"""The host's side of sampling: hands requests to the device, and yields traces as they finish.

One chunk is always queued behind the running one, so the device keeps decoding while the host fetches, detokenizes,
checks and writes the last chunk's traces.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx

from tpt_jax.errors import Stopped
from tpt_jax.prompts import Prompt
from tpt_jax.records import Trace
from tpt_jax.think.requests import Request, Schedule, ShardQueue, make_prompts
from tpt_jax.think.slot_program import SlotProgram
from tpt_jax.think.state import Finished, Prompts, Queue
from tpt_jax.think.stop_strings import StopStrings

CHUNKS_IN_FLIGHT = 2  # one running, one queued


@dataclasses.dataclass
class Statistics:
    """Throughput and utilization of one sampling pass, updated while it runs."""

    seconds: float = 0.0
    idle_seconds: float = 0.0  # device finished a chunk before the next one was queued
    num_steps: int = 0
    num_tokens: int = 0  # sampled, stop tokens included
    num_full_steps: int = 0  # summed over data shards: steps with traces waiting for a slot, or still to be requested
    num_full_tokens: int = 0  # decoded in those steps
    num_cancelled: int = 0  # traces
    num_cancelled_tokens: int = 0

    @classmethod
    def combine(cls, hosts: Sequence[Mapping[str, float]]) -> "Statistics":
        """Statistics of all hosts together, from each host's fields: hosts sample in parallel."""
        total = {name: sum(host[name] for host in hosts) for name in hosts[0]}
        for name in ("seconds", "idle_seconds"):
            total[name] /= len(hosts)
        return cls(**{**total, "num_steps": max(host["num_steps"] for host in hosts)})  # pyright: ignore[reportArgumentType]

    def occupancy(self, num_slots: int) -> float | None:
        """Share of a data shard's slots that were busy while traces waited; None if no trace ever waited."""
        return self.num_full_tokens / (self.num_full_steps * num_slots) if self.num_full_steps else None

    @property
    def idle_share(self) -> float:
        return self.idle_seconds / max(self.seconds, 1e-9)

    def add_chunk(self, shards: Sequence[Finished]) -> None:
        """Adds the counters of one chunk, given the results of this host's data shards."""
        self.num_steps += max((int(shard.num_steps[0]) for shard in shards), default=0)
        self.num_tokens += sum(int(shard.num_decoded[0]) for shard in shards)
        self.num_full_steps += sum(int(shard.num_full_steps[0]) for shard in shards)
        self.num_full_tokens += sum(int(shard.num_full_decoded[0]) for shard in shards)


@dataclasses.dataclass(frozen=True)
class ChunkResult:
    """One chunk's results on the host.

    Attributes:
      shards: results by data shard, for every shard that this host's devices hold.
      reported: the shards whose traces this host yields; another host may hold replicas of them.
      num_left: traces still to be returned, over all shards.
      ready_at: when the device finished the chunk, in time.monotonic() seconds.
    """

    shards: Mapping[int, Finished]
    reported: Sequence[int]
    num_left: int
    ready_at: float


class Engine:
    """Samples traces. A trace depends on (seed, round, question, sample), not on slots, order or mesh."""

    def __init__(
        self,
        program: SlotProgram,
        prompt: Prompt,
        prefix: tuple[int, ...],
        num_shards: int,
        stop_strings: StopStrings | None = None,
    ):
        """Wraps a compiled program.

        Args:
          prompt: used for detokenizing.
          prefix: token ids that every prompt starts with; as many as the program's shape says.
          stop_strings: those that the program's shape was compiled for.
        """
        self._program = program
        self._prompt = prompt
        self._prefix = prefix
        self._num_shards = num_shards
        self._stop_strings = stop_strings
        self.statistics = Statistics()

    def sample(
        self,
        parameters: nnx.State,
        schedule: Schedule,
        *,
        seed: int,
        round_index: int,
        temperature: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[list[Trace]]:
        """Yields the traces finished by each chunk; the schedule is asked again after each.

        Args:
          parameters: decoding parameters, as the reshard returns them.
          schedule: its prompts must start with the prefix and fit the program's shape.
          should_stop: polled after every chunk.

        Raises:
          FloatingPointError: the model's logits for a question are not finite.
          Stopped: should_stop returned True; unfinished traces are lost.
        """
        self.statistics = Statistics()
        prompts = make_prompts(
            schedule.prompts,
            self._program.shape,
            num_shards=self._num_shards,
            seed=seed,
            round_index=round_index,
            temperature=temperature,
            stop_table=self._stop_table(),
        )
        started = time.monotonic()
        with ThreadPoolExecutor(max_workers=1) as fetcher:
            pass_ = _Pass(self._program, schedule, self._program.place_prompts(prompts), self._num_shards)
            for chunk in self._chunks(parameters, pass_, fetcher):
                yield self._take_traces(chunk, pass_.queues)
                self.statistics.seconds = time.monotonic() - started
                if not schedule.is_done(chunk.num_left) and should_stop():
                    raise Stopped

    def stream(self, parameters: nnx.State, request: Request, *, seed: int, temperature: float) -> Iterator[Trace]:
        """Yields the one trace of a request as it grows, chunk by chunk; the last one is finished, as `sample` has it.

        Args:
          request: for one sample. The program has one data shard.

        Raises:
          FloatingPointError: the model's logits are not finite.
        """
        names, shape = {request.id: request.prompt_ids}, self._program.shape
        options = {"num_shards": 1, "seed": seed, "round_index": 0, "stop_table": self._stop_table()}
        prompts = self._program.place_prompts(make_prompts(names, shape, temperature=temperature, **options))
        requested = ShardQueue(0, 1, names, shape)
        requested.append(request)
        queue = self._program.place_queue(requested.arrays)
        slots = self._program.start(parameters, self._program.place_prefix(self._prefix))
        while True:
            slots, finished = self._program.decode_chunk(parameters, prompts, queue, slots)
            if int(finished.count[0]):
                yield self._trace(jax.device_get(finished), 0, request.id, request.samples[0])
                return
            token_ids = tuple(np.asarray(slots.tokens)[0, : int(slots.length[0])].tolist())
            text = self._prompt.text(token_ids)
            yield Trace(request.id, request.samples[0], text, token_ids, finish_reason="length")

    def _chunks(self, parameters: nnx.State, pass_: "_Pass", fetcher: ThreadPoolExecutor) -> Iterator[ChunkResult]:
        """Decodes chunk after chunk until the schedule is done."""
        ready_at = time.monotonic()
        num_queued = 0
        slots = self._program.start(parameters, self._program.place_prefix(self._prefix))
        in_flight: collections.deque[tuple[float, Future[ChunkResult]]] = collections.deque()
        num_left = 1
        while not pass_.schedule.is_done(num_left):
            while len(in_flight) < CHUNKS_IN_FLIGHT:
                queue = pass_.next_queue()
                with jax.profiler.StepTraceAnnotation("think", step_num=num_queued):
                    slots, finished = self._program.decode_chunk(parameters, pass_.prompts, queue, slots)
                num_queued += 1
                in_flight.append((time.monotonic(), fetcher.submit(_fetch, finished, self._num_shards)))
            queued_at, future = in_flight.popleft()
            self.statistics.idle_seconds += max(0.0, queued_at - ready_at)
            chunk = future.result()
            num_left, ready_at = chunk.num_left, chunk.ready_at
            self.statistics.add_chunk([chunk.shards[shard] for shard in chunk.reported])
            for shard, queue in pass_.queues.items():
                queue.num_started = int(chunk.shards[shard].num_started[0])
            yield chunk
        for _, future in in_flight:  # wait for the queued chunk, so that the caller gets the devices to itself
            future.result()

    def _take_traces(self, chunk: ChunkResult, queues: Mapping[int, ShardQueue]) -> list[Trace]:
        """The traces of a chunk that this host yields, without the cancelled ones."""
        traces = []
        for shard, queue in queues.items():
            finished = chunk.shards[shard]
            rows = _finished_rows(finished)
            queue.finish(rows)
            if shard not in chunk.reported:
                continue
            for index, row in enumerate(rows):
                if queue.is_cancelled(row):
                    self.statistics.num_cancelled += 1
                    self.statistics.num_cancelled_tokens += int(finished.length[index])
                else:
                    traces.append(self._trace(finished, index, *queue.names[row]))
        return traces

    def _stop_table(self) -> np.ndarray:
        if self._stop_strings is None:
            return np.zeros(self._program.abstract_prompts.stop_table.shape, np.uint8)
        return self._stop_strings.table

    def _trace(self, finished: Finished, row: int, question_id: str, sample: int) -> Trace:
        logprob = float(finished.logprob[row])
        if not np.isfinite(logprob):
            raise FloatingPointError(
                f"question {question_id!r}, sample {sample}: the model's logits are not finite; "
                "try model.compute_dtype: float32, or an earlier checkpoint"
            )
        stopped = bool(finished.stopped[row])
        token_ids = tuple(finished.tokens[row, : int(finished.length[row]) - stopped].tolist())
        found = self._stop_strings.find(token_ids) if self._stop_strings else None
        if found is not None:
            token_ids = token_ids[: found[0]]
        num_scored = min(len(token_ids), self._program.shape.num_scored_tokens)
        return Trace(
            id=question_id,
            sample=sample,
            completion=self._prompt.text(token_ids),
            token_ids=token_ids,
            logprob=logprob,
            finish_reason="stop" if stopped or found else "length",
            stop_string=found[1] if found else None,
            entropy=float(finished.entropy[row]),
            token_logprobs=tuple(finished.token_logprobs[row, :num_scored].tolist()),
            token_entropies=tuple(finished.token_entropies[row, :num_scored].tolist()),
            token_ends=self._prompt.token_ends(token_ids) if num_scored else (),
        )


class _Pass:
    """One sampling pass: what the device has been asked for, and what to ask it next.

    Attributes:
      prompts: on the devices.
      queues: by data shard, for every shard that this host's devices hold.
    """

    def __init__(self, program: SlotProgram, schedule: Schedule, prompts: Prompts, num_shards: int):
        self._program = program
        self.schedule = schedule
        self.prompts = prompts
        self._num_shards = num_shards
        held = _local_shards(prompts.lengths, num_shards)
        self.queues = {shard: ShardQueue(shard, num_shards, schedule.prompts, program.shape) for shard in held}
        self._placed: Queue | None = None

    def next_queue(self) -> Queue:
        """The queue for the next chunk, on the devices, with as many requests as that chunk and those queued behind it
        can start."""
        changes = [self._top_up(shard, queue) for shard, queue in self.queues.items()]
        if self._placed is None or any(changes):
            self._placed = self._program.place_queue(self._gather())
        return self._placed

    def _top_up(self, shard: int, queue: ShardQueue) -> bool:
        """Appends requests and cancels what is no longer needed; returns whether that changed anything."""
        num_slots = self._program.shape.num_slots
        num_waiting = len(queue.names) - queue.num_started
        num_open = len(queue.names) - queue.num_finished
        requests = self.schedule.take(shard, queue.lookahead(num_slots) - num_waiting, num_slots - num_open)
        for request in requests:
            queue.append(request)
        changes = (bool(requests), queue.set_has_more(self.schedule.has_more(shard)))
        return queue.cancel_unneeded(self.schedule) or any(changes)

    def _gather(self) -> Queue:
        """The queues of all shards as host arrays; those that other hosts hold are left empty."""
        any_queue = next(iter(self.queues.values()))

        def gather(name: str) -> np.ndarray:
            own = np.asarray(getattr(any_queue.arrays, name))
            rows = np.zeros((self._num_shards, *own.shape), own.dtype)
            for shard, queue in self.queues.items():
                rows[shard] = getattr(queue.arrays, name)
            return rows.reshape(-1)

        fields: dict[str, Any] = {field.name: gather(field.name) for field in dataclasses.fields(Queue)}
        return Queue(**fields)


def _finished_rows(finished: Finished) -> list[int]:
    """For each finished trace in the buffer, its row in the request batch."""
    return finished.trace[: int(finished.count[0])].tolist()


def _fetch(finished: Finished, num_shards: int) -> ChunkResult:
    """Waits for a chunk and copies its results to the host: the only transfer from the device."""
    jax.block_until_ready(finished)
    ready_at = time.monotonic()
    num_left = int(finished.num_left.addressable_data(0)[0])
    # num_left is replicated; all other fields are split over the data shards.
    leaves, structure = jax.tree.flatten(dataclasses.replace(finished, num_left=finished.count))
    local = [_local_shards(leaf, num_shards) for leaf in leaves]
    values = jax.device_get([[shard.data for shard in by_index.values()] for by_index in local])
    shards = {
        shard: jax.tree.unflatten(structure, [leaf[position] for leaf in values])
        for position, shard in enumerate(local[0])
    }
    reported = [shard for shard, part in local[0].items() if part.replica_id == 0]
    return ChunkResult(shards, reported, num_left, ready_at)


def _local_shards(array: jax.Array, num_shards: int) -> dict[int, jax.Shard]:
    """By data shard, in order: one replica of each shard on this host's devices, preferably the first replica."""
    rows = len(array) // num_shards
    replicas = sorted(array.addressable_shards, key=lambda shard: -shard.replica_id)
    by_shard = {(shard.index[0].start or 0) // rows: shard for shard in replicas}
    return dict(sorted(by_shard.items()))
