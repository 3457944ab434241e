"""How long a collective takes on the links between the chips of a slice: a lower bound.

Times are those of ring algorithms, from Austin et al., "How to Scale Your Model" (jax-ml.github.io/scaling-book),
chapter 3. An axis of the torus that a group of devices goes all the way around is a ring, over which data travel both
ways; any other is a line, over whose end link all data must pass in one direction. Groups that extend along several
axes use the links of all of them at once. Groups that lie between each other's devices share links.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from jax.sharding import Mesh

from tpt_jax.plan.chips import chip_of, slice_shape

HOP_SECONDS = 1e-6  # "typically around 1us" for each hop, whatever its size: the book, chapter 3

Coordinates = tuple[int, ...]
Groups = tuple[tuple[int, ...], ...]  # partition ids; for a collective-permute, pairs of source and target
Link = tuple[Coordinates, int, int]  # from a chip, along an axis, up (1) or down (-1)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
      kind: all-gather, reduce-scatter, all-reduce, all-to-all or collective-permute.
      size: bytes of the whole array: an all-gather's result, the operand on one device of any other.
      groups: devices that exchange with each other; empty for one group of all devices.
    """

    kind: str
    size: int
    groups: Groups


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A collective on the links. `seconds` includes the latency of hops, `busy` does not: it is the time that each of
    `links` is taken."""

    seconds: float
    busy: float
    links: frozenset[Link]


@dataclasses.dataclass(frozen=True)
class _Side:
    """One axis of the box of chips that a group fills."""

    axis: int
    size: int
    stride: int  # between neighbors; also how many groups share the links
    is_ring: bool

    @property
    def ways(self) -> float:
        """Links, in one direction, that a device receives by."""
        return (2 if self.is_ring else 1) / self.stride

    @property
    def hops(self) -> int:
        return self.stride * (self.size // 2 if self.is_ring else self.size - 1)


@dataclasses.dataclass(frozen=True)
class Network:
    """The links between the devices of a slice.

    Attributes:
      shape: chips along each axis.
      wraps: which axes are rings.
      coordinates: of each partition of a program, in the order of the mesh's devices.
      link_bandwidth: bytes per second over one link in one direction.
    """

    shape: Coordinates
    wraps: tuple[bool, ...]
    coordinates: tuple[Coordinates, ...]
    link_bandwidth: float

    @classmethod
    def of(cls, mesh: Mesh, topology: str) -> "Network":
        """The network of a mesh on a slice like "v5e:2x4"."""
        chip, shape = chip_of(topology), slice_shape(topology)
        coordinates = tuple(tuple(device.coords[: len(shape)]) for device in mesh.devices.flat)
        return cls(shape, chip.wraps(shape), coordinates, chip.link_bandwidth)

    def transfer(self, collective: Collective) -> Transfer:
        """Time and links of a collective; devices on the same chip exchange for nothing."""
        if collective.kind == "collective-permute":
            return self._permute(collective)
        groups = collective.groups or (tuple(range(len(self.coordinates))),)
        sides, share = self._box(groups[0])
        if not sides:
            return Transfer(0.0, 0.0, frozenset())
        hops = sum(side.hops for side in sides)
        ways = sum(side.ways for side in sides)
        count = len(groups[0])
        gather = collective.size * (count - 1) / count / ways
        match collective.kind:
            case "all-reduce":  # a reduce-scatter, then an all-gather
                load, hops = 2 * gather, 2 * hops
            case "all-to-all":  # half of the data cross the middle of each axis
                load = max(collective.size * side.size / (4 * side.ways) for side in sides)
            case _:
                load = gather
        busy = load * share / self.link_bandwidth
        return Transfer(max(busy, HOP_SECONDS * hops), busy, self._links(frozenset(side.axis for side in sides)))

    def sent(self, collective: Collective) -> int:
        """Bytes that a device sends: everything but its own shard, twice that for an all-reduce."""
        if collective.kind == "collective-permute":
            return collective.size
        count = len(collective.groups[0]) if collective.groups else len(self.coordinates)
        rounds = 2 if collective.kind == "all-reduce" else 1
        return rounds * collective.size * (count - 1) // count

    def _box(self, group: Sequence[int]) -> tuple[list[_Side], int]:
        """Axes along which a group extends, and how many groups share its links if it does not fill its box."""
        chips = {self.coordinates[device] for device in group}
        sides, filled, volume = [], 1, 1
        for axis, size in enumerate(self.shape):
            places = sorted({chip[axis] for chip in chips})
            if len(places) == 1:
                continue
            gaps = {second - first for first, second in itertools.pairwise(places)}
            is_ring = self.wraps[axis] and gaps == {size / len(places)}
            sides.append(_Side(axis, len(places), max(gaps), is_ring))
            filled, volume = filled * len(places), volume * (places[-1] - places[0] + 1)
        if filled == len(chips):
            return sides, 1
        contiguous = [dataclasses.replace(side, stride=1) for side in sides]
        return contiguous, math.ceil(volume / len(chips))

    def _links(self, axes: frozenset[int]) -> frozenset[Link]:
        return frozenset((chip, axis, way) for chip in self.coordinates for axis in axes for way in (1, -1))

    def _permute(self, collective: Collective) -> Transfer:
        """Every message takes the shortest way, one axis after the other; messages share links."""
        routes = [self._route(self.coordinates[source], self.coordinates[to]) for source, to in collective.groups]
        load: Mapping[Link, int] = Counter(link for route in routes for link in route)
        busy = collective.size * max(load.values(), default=0) / self.link_bandwidth
        latency = HOP_SECONDS * max(map(len, routes), default=0)
        return Transfer(max(busy, latency), busy, frozenset(load))

    def _route(self, source: Coordinates, target: Coordinates) -> list[Link]:
        links, chip = [], list(source)
        for axis, size in enumerate(self.shape):
            distance = target[axis] - chip[axis]
            if self.wraps[axis] and abs(distance) > size / 2:
                distance -= math.copysign(size, distance)
            way = 1 if distance > 0 else -1
            for _ in range(abs(int(distance))):
                links.append((tuple(chip), axis, way))
                chip[axis] = (chip[axis] + way) % size
        return links
