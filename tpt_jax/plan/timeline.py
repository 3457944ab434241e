"""How long a compiled program's collectives take, and for how long it waits for them.

The text of a TPU program is its schedule: instructions run in the order in which they are written. A clock follows
them. Every instruction takes the larger of its compute and memory time. A collective holds its links from its start, or
from when they are free; the program waits at its end if that is not over, and at once if it is not asynchronous.
"""

import dataclasses
from collections import Counter, defaultdict

from tpt_jax.plan.chips import Chip
from tpt_jax.plan.collectives import event_of
from tpt_jax.plan.hlo import Computation, Instruction, Module
from tpt_jax.plan.network import Collective, Link, Network, Transfer


@dataclasses.dataclass(frozen=True)
class Wires:
    """The collectives of one run of a program, on one device.

    Attributes:
      sent: bytes sent to other devices, by kind of collective.
      seconds: for which the busiest link is taken, or the latency of the collectives that are waited for, if more.
      waited_seconds: for which no computation runs, because it needs the result of a collective.
      waited_bytes: bytes that travel meanwhile.
    """

    sent: dict[str, int]
    seconds: float
    waited_seconds: float
    waited_bytes: int

    def share(self, num_parts: int) -> "Wires":
        """Those of one of so many equal parts of the program."""
        return Wires(
            {kind: size // num_parts for kind, size in self.sent.items()},
            self.seconds / num_parts,
            self.waited_seconds / num_parts,
            self.waited_bytes // num_parts,
        )


def wires_of(module: Module, chip: Chip, network: Network) -> Wires:
    """Follows a program's schedule."""
    timeline = _Timeline(module, chip, network)
    timeline.run(module.entry, 1)
    busiest = max(timeline.busy.values(), default=0.0)
    seconds = max(busiest, timeline.synchronous_seconds)
    return Wires(dict(timeline.sent), seconds, timeline.waited_seconds, round(timeline.waited_bytes))


class _Timeline:
    """Sums over a program's loops; each run of a loop's body is like the others."""

    def __init__(self, module: Module, chip: Chip, network: Network):
        self._module, self._chip, self._network = module, chip, network
        self.sent: Counter[str] = Counter()
        self.busy: defaultdict[Link, float] = defaultdict(float)
        self.synchronous_seconds = 0.0
        self.waited_seconds = 0.0
        self.waited_bytes = 0.0

    def run(self, computation: Computation, times: int) -> float:
        """Follows one run of a computation that runs so many times; returns its seconds."""
        now = 0.0
        free: defaultdict[Link, float] = defaultdict(float)
        pending: dict[str, tuple[Collective, Transfer, float]] = {}

        for instruction in computation.values():
            event = event_of(instruction, computation, self._module)
            if event and event.collective:
                transfer = self._network.transfer(event.collective)
                begin = max([now, *(free[link] for link in transfer.links)])
                free.update(dict.fromkeys(transfer.links, begin + transfer.busy))
                pending[event.key] = (event.collective, transfer, begin + transfer.seconds)
                self._count(event.collective, transfer, times)
                if event.action == "runs":
                    self.synchronous_seconds += times * transfer.seconds
            if event is None or (event.action == "runs" and instruction.opcode == "fusion"):
                now += self._seconds(instruction, computation, times)
            if event and event.action != "starts" and event.key in pending:
                collective, transfer, end = pending.pop(event.key)
                wait = max(0.0, end - now)
                now += wait
                self.waited_seconds += times * wait
                share = min(1.0, wait / transfer.seconds) if transfer.seconds else 0.0
                self.waited_bytes += times * share * self._network.sent(collective)
        return now

    def _count(self, collective: Collective, transfer: Transfer, times: int) -> None:
        self.sent[collective.kind] += times * self._network.sent(collective)
        for link in transfer.links:
            self.busy[link] += times * transfer.busy

    def _seconds(self, instruction: Instruction, scope: Computation, times: int) -> float:
        """Seconds of one run of an instruction that is no collective, including what it calls."""
        module = self._module
        if instruction.opcode == "while":
            trips = module.trip_count(instruction)
            return trips * self.run(module.callee(instruction), times * trips)
        if instruction.opcode == "conditional":
            return self.run(module.costliest_branch(instruction), times)
        if instruction.opcode == "call":
            return self.run(module.callee(instruction), times)
        flops, size = module.flops_of(instruction, scope), module.bytes_of(instruction, scope)
        return max(flops / self._chip.flops, size / self._chip.bandwidth)
