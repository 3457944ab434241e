"""The host's side of sampling: takes requests, yields finished traces as they finish.

One chunk is always queued behind the running one, so the device keeps decoding while the host fetches, detokenizes,
checks and writes the last chunk's traces.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from flax import nnx

from tpt_jax.errors import Stopped
from tpt_jax.prompts import Prompt
from tpt_jax.records import Trace
from tpt_jax.think.requests import Request, make_request_batch
from tpt_jax.think.slot_program import SlotProgram
from tpt_jax.think.state import Finished, RequestBatch
from tpt_jax.think.stop_strings import StopStrings

CHUNKS_IN_FLIGHT = 2  # one running, one queued


@dataclasses.dataclass
class Statistics:
    """Throughput and utilization of one sampling pass, updated while it runs."""

    seconds: float = 0.0
    idle_seconds: float = 0.0  # device finished a chunk before the next one was queued
    num_steps: int = 0
    num_tokens: int = 0  # sampled, stop tokens included
    num_full_steps: int = 0  # summed over data shards: steps with traces waiting for a slot
    num_full_tokens: int = 0  # decoded in those steps

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
        requests: Sequence[Request],
        *,
        seed: int,
        round_index: int,
        temperature: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[list[Trace]]:
        """Yields the traces finished by each chunk.

        Args:
          parameters: decoding parameters, as the reshard returns them.
          requests: prompts must start with the prefix and fit the program's shape.
          should_stop: polled after every chunk.

        Raises:
          FloatingPointError: the model's logits for a question are not finite.
          Stopped: should_stop returned True; unfinished traces are lost.
        """
        self.statistics = Statistics()
        batch, names = make_request_batch(
            requests,
            self._program.shape,
            num_shards=self._num_shards,
            seed=seed,
            round_index=round_index,
            temperature=temperature,
            stop_table=self._stop_table(),
        )
        started = time.monotonic()
        with ThreadPoolExecutor(max_workers=1) as fetcher:
            for chunk in self._chunks(parameters, self._program.place_batch(batch), fetcher):
                yield [
                    self._trace(chunk.shards[shard], row, *names[shard][trace])
                    for shard in chunk.reported
                    for row, trace in enumerate(_finished_rows(chunk.shards[shard]))
                ]
                self.statistics.seconds = time.monotonic() - started
                if chunk.num_left and should_stop():
                    raise Stopped

    def _chunks(self, parameters: nnx.State, batch: RequestBatch, fetcher: ThreadPoolExecutor) -> Iterator[ChunkResult]:
        """Decodes chunk after chunk until no trace is left."""
        ready_at = time.monotonic()
        slots = self._program.start(parameters, self._program.place_prefix(self._prefix))
        in_flight: collections.deque[tuple[float, Future[ChunkResult]]] = collections.deque()
        num_left = 1
        while num_left:
            while len(in_flight) < CHUNKS_IN_FLIGHT:
                slots, finished = self._program.decode_chunk(parameters, batch, slots)
                in_flight.append((time.monotonic(), fetcher.submit(_fetch, finished, self._num_shards)))
            queued_at, future = in_flight.popleft()
            self.statistics.idle_seconds += max(0.0, queued_at - ready_at)
            chunk = future.result()
            num_left, ready_at = chunk.num_left, chunk.ready_at
            self.statistics.add_chunk([chunk.shards[shard] for shard in chunk.reported])
            yield chunk
        for _, future in in_flight:  # wait for the queued chunk, so that the caller gets the devices to itself
            future.result()

    def _stop_table(self) -> np.ndarray:
        if self._stop_strings is None:
            return np.zeros(self._program.abstract_batch.stop_table.shape, np.uint8)
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
        return Trace(
            id=question_id,
            sample=sample,
            completion=self._prompt.text(token_ids),
            token_ids=token_ids,
            logprob=logprob,
            finish_reason="stop" if stopped or found else "length",
            stop_string=found[1] if found else None,
        )


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
