"""Slots without a model, to watch what a demand asks of them: chunks, queues and delays as in think/engine.py."""

import dataclasses
from collections import Counter, deque
from typing import Protocol

from tpt_jax.prune.candidate import Candidate
from tpt_jax.prune.demand import Demand
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.records import TraceName


class Model(Protocol):
    """Knows every trace before it is sampled."""

    def length(self, name: TraceName) -> int: ...

    def candidate(self, pipeline: Pipeline, name: TraceName) -> Candidate: ...


@dataclasses.dataclass
class Device:
    """What the slots did. A chunk's results are seen two chunks later, as in the engine."""

    num_slots: int
    num_steps: int = 0
    num_busy: int = 0
    num_open_steps: int = 0  # while questions were left that had not been asked
    num_open_busy: int = 0
    written: dict[TraceName, int] = dataclasses.field(default_factory=dict)  # traces, with their lengths
    num_requests: Counter[str] = dataclasses.field(default_factory=Counter)  # prefills, by question


def sample(
    demand: Demand, pipeline: Pipeline, model: Model, num_slots: int, num_shards: int = 1, steps: int = 32
) -> list[Device]:
    """Runs the demand against simulated slots, a queue for each shard; returns what they did."""
    devices = [Device(num_slots) for _ in range(num_shards)]
    queues: list[list[TraceName]] = [[] for _ in devices]
    slots: list[list[tuple[TraceName, int] | None]] = [[None] * num_slots for _ in devices]
    started, num_finished = [0] * num_shards, [0] * num_shards
    recently_finished = [deque([num_slots // 2], maxlen=4) for _ in devices]
    chunks: deque[list[list[TraceName]]] = deque()

    def run_chunk(shard: int) -> list[TraceName]:
        device, finished, has_more = devices[shard], [], demand.has_more(shard)
        for _ in range(steps):
            for index, slot in enumerate(slots[shard]):
                if slot is None and started[shard] < len(queues[shard]):
                    name = queues[shard][started[shard]]
                    slots[shard][index] = (name, model.length(name))
                    started[shard] += 1
            busy = sum(slot is not None for slot in slots[shard])
            if not busy:
                break
            is_open = has_more or started[shard] < len(queues[shard])
            device.num_steps += 1
            device.num_busy += busy
            device.num_open_steps += is_open
            device.num_open_busy += busy * is_open
            for index, slot in enumerate(slots[shard]):
                if slot is not None:
                    name, left = slot
                    ends = left == 1 or not demand.is_needed(name)
                    slots[shard][index] = None if ends else (name, left - 1)
                    finished += [name] if ends else []
                    if left == 1:
                        device.written[name] = model.length(name)
        return finished

    while not demand.is_settled:
        while len(chunks) < 2:
            for shard, queue in enumerate(queues):
                waiting = len(queue) - started[shard]
                count = num_slots // 8 + 3 * max(recently_finished[shard]) - waiting
                for name, samples in demand.take(shard, count, num_slots - (len(queue) - num_finished[shard])):
                    queue += [(name, sample) for sample in samples]
                    devices[shard].num_requests[name] += 1
            chunks.append([run_chunk(shard) for shard in range(num_shards)])
        for shard, finished in enumerate(chunks.popleft()):
            num_finished[shard] += len(finished)
            recently_finished[shard].append(len(finished))
            demand.add(model.candidate(pipeline, name) for name in finished if name in devices[shard].written)
    assert all(len(queue) == len(set(queue)) for queue in queues)  # nothing is asked for twice
    return devices
