"""The wires of `tpt plan`: links between chips, times of collectives, and which of them a program waits for."""

import numpy as np
import pytest

from tpt_jax.errors import UserError
from tpt_jax.plan.chips import CHIPS, Chip, slice_shape
from tpt_jax.plan.collectives import replica_groups
from tpt_jax.plan.hlo import Module
from tpt_jax.plan.network import Collective, Groups, Network
from tpt_jax.plan.timeline import wires_of


def network(topology: str) -> Network:
    """Devices in the order of their coordinates, the last axis fastest."""
    chip, shape = CHIPS[topology.partition(":")[0]], slice_shape(topology)
    return Network(shape, chip.wraps(shape), tuple(map(tuple, np.ndindex(shape))), chip.link_bandwidth)


def groups_along(topology: str, *axes: int) -> Groups:
    """Groups of the devices that differ along these axes only."""
    shape = slice_shape(topology)
    others = [axis for axis in range(len(shape)) if axis not in axes]
    size = int(np.prod([shape[axis] for axis in axes]))
    devices = np.arange(np.prod(shape)).reshape(shape).transpose(*others, *axes).reshape(-1, size)
    return tuple(map(tuple, devices.tolist()))


@pytest.mark.parametrize(
    ("topology", "wraps"),
    [
        # As in MaxText's table of slices, accelerator_to_spec_map.py.
        ("v5e:4x4", (False, False)),
        ("v5e:8x16", (False, True)),
        ("v6e:16x16", (True, True)),
        ("v5p:2x2x4", (False, False, False)),
        ("v5p:4x4x4", (True, True, True)),
        ("v4:4x8x12", (True, True, True)),
    ],
)
def test_which_axes_of_a_slice_are_rings(topology: str, wraps: tuple[bool, ...]) -> None:
    assert network(topology).wraps == wraps


def test_topologies_that_are_no_sizes_are_refused() -> None:
    with pytest.raises(UserError, match=r"^--topology v5e:eight: must give the chips of each axis, as in v5e:2x4"):
        slice_shape("v5e:eight")


@pytest.mark.parametrize(
    ("topology", "kind", "axes", "size", "microseconds"),
    [
        # Worked examples of "How to Scale Your Model", chapter 3: question 2 of its "Worked Problems", and the gather
        # over an axis of four without a ring, three hops of a quarter each.
        ("v4:4x4x4", "all-gather", (0,), 2 * 1024 * 4096 // 4, 3 / 4 * 23.3),
        ("v4:4x4x4", "all-gather", (0, 1), 2 * 1024 * 4096, 15 / 16 * 46.6),
        ("v5e:4x4", "all-gather", (1,), 34e6, 3 * 34e6 / 4 / 45e9 * 1e6),
        ("v4:4x4x4", "all-gather", (0,), 256, 2),  # only latency: two hops each way
        # Twice for an all-reduce; a fourth of a gather of all devices' data for an all-to-all on a ring.
        ("v5e:16x16", "all-reduce", (0,), 90e6, 2 * 15 / 16 * 1000),
        ("v5e:16x16", "all-to-all", (0,), 90e6, 16 * 1000 / 4),
        ("v5e:4x4", "all-reduce", (0,), 1000, 2 * 3),
        ("v5e:4x4", "reduce-scatter", (0, 1), 90e6, 15 / 16 * 1000),
    ],
)
def test_times_of_collectives(
    topology: str, kind: str, axes: tuple[int, ...], size: float, microseconds: float
) -> None:
    transfer = network(topology).transfer(Collective(kind, int(size), groups_along(topology, *axes)))
    assert transfer.seconds * 1e6 == pytest.approx(microseconds, rel=2e-3)


def test_groups_between_each_other_share_links() -> None:
    """On a line of four and on a ring of sixteen, halves that alternate take twice as long as halves side by side."""
    line, ring = network("v5e:4x4"), network("v5e:16x16")

    def seconds(on: Network, *devices: int) -> float:
        return on.transfer(Collective("all-gather", 2**30, (devices,))).busy

    assert seconds(line, 0, 2) == 2 * seconds(line, 0, 1)
    assert seconds(ring, *range(0, 16, 2)) == seconds(ring, *range(8))  # but all the way around, there are two ways


def test_messages_share_links_and_take_the_shorter_way_around() -> None:
    ring = network("v5e:16x16")
    size, link = 45_000_000, 1e-3

    def seconds(*pairs: tuple[int, int]) -> float:
        return ring.transfer(Collective("collective-permute", size, pairs)).seconds

    assert seconds(*((i, (i + 1) % 16) for i in range(16))) == pytest.approx(link)
    assert seconds(*((i, (i + 3) % 16) for i in range(16))) == pytest.approx(3 * link)
    assert seconds((0, 1), (1, 0)) == pytest.approx(link)  # both ways at once
    assert seconds((0, 13), (15, 13)) == pytest.approx(2 * link)
    assert ring.transfer(Collective("collective-permute", 1, ((0, 13),))).seconds == pytest.approx(3e-6)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, use", ((0, 2), (1, 3))),
        ("replica_groups={}, use", ()),
        ("replica_groups=[2,2]<=[4], use", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0), use", ((0, 2), (1, 3))),
        ("source_target_pairs={{0,1},{1,0}}, metadata", ((0, 1), (1, 0))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, dimensions", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, dimensions", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, dimensions", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=4,'b'=1] {'a':(2)2}, dimensions", ((0, 1), (2, 3))),
    ],
)
def test_groups_of_devices(text: str, groups: Groups) -> None:
    assert replica_groups(text) == groups


# A loop of two trips: a permute, a kilobyte along a line of two, beside a product of 2,000,000 flops; the rest of the
# link's time is waited for. Then a synchronous sum.
LOOP = """\
%body (state: (s32[], f32[256])) -> (s32[], f32[256]) {
  %state = (s32[], f32[256]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[256]{0:S(1)} get-tuple-element(%state), index=1
  %one = s32[] constant(1)
  %next = s32[]{:S(6)} add(%i, %one)
  %start = (f32[256]{0:S(1)}, f32[256]{0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), \
source_target_pairs={{0,1},{1,0}}
  %left = f32[100,100]{1,0:S(1)} broadcast(%one)
  %product = f32[100,100]{1,0:S(1)} dot(%left, %left), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %done = f32[256]{0:S(1)} collective-permute-done(%start)
  ROOT %result = (s32[], f32[256]{0}) tuple(%next, %done)
}
%condition (state: (s32[], f32[256])) -> pred[] {
  %state = (s32[], f32[256]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(2)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}
ENTRY %main (start: (s32[], f32[256])) -> f32[256] {
  %start = (s32[], f32[256]{0}) parameter(0)
  %loop = (s32[], f32[256]{0}) while(%start), condition=%condition, body=%body
  %x = f32[256]{0:S(1)} get-tuple-element(%loop), index=1
  ROOT %sum = f32[256]{0:S(1)} all-reduce(%x), replica_groups={}
}"""


@pytest.mark.parametrize("flops_per_second", [1e9, 4e9])
def test_a_program_waits_for_what_it_does_not_overlap(flops_per_second: float) -> None:
    """The permute takes 1,024 us, the product 2,000 or 500; the constants' four bytes are on the chip."""
    pair = Network((1, 2), (False, False), ((0, 0), (0, 1)), link_bandwidth=1e6)
    chip = Chip(2**30, flops=flops_per_second, bandwidth=1e15, link_bandwidth=1e6, torus_axes=2)
    wires = wires_of(Module(LOOP), chip, pair)
    waits = 0 if flops_per_second == 1e9 else 2 * 524
    assert wires.sent == {"collective-permute": 2 * 1024, "all-reduce": 1024}
    assert wires.waited_seconds * 1e6 == pytest.approx(waits + 1024, rel=1e-3)
    assert wires.waited_bytes == pytest.approx(waits + 1024, rel=1e-3)
    assert wires.seconds * 1e6 == pytest.approx(3 * 1024, rel=1e-3)
    half = wires.share(2)
    assert half.sent == {"collective-permute": 1024, "all-reduce": 512}
    assert (half.seconds, half.waited_seconds) == (wires.seconds / 2, wires.waited_seconds / 2)
    assert half.waited_bytes == wires.waited_bytes // 2


# The compiler's three fusions of an asynchronous gather: each holds the same one, the second beside a product.
FUSIONS = """\
%begin (p: f32[256]) -> (f32[256], f32[512]) {
  %p = f32[256]{0:S(1)} parameter(0)
  %gather = f32[512]{0:S(1)} all-gather(%p), replica_groups={{0,1}}, frontend_attributes={chain_id="7"}
  ROOT %call = (f32[256]{0:S(1)}, f32[512]{0:S(1)}) custom-call(%gather), custom_call_target="AsyncCollectiveStart"
}
%async_collective_fusion (p: f32[256], m: f32[100,100]) -> (f32[100,100], f32[512]) {
  %p = f32[256]{0:S(1)} parameter(0)
  %m = f32[100,100]{1,0:S(1)} parameter(1)
  %gather = f32[512]{0:S(1)} all-gather(%p), replica_groups={{0,1}}, frontend_attributes={chain_id="7"}
  %product = f32[100,100]{1,0:S(1)} dot(%m, %m), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %both = (f32[100,100]{1,0:S(1)}, f32[512]{0:S(1)}) tuple(%product, %gather)
}
%end (p: f32[256]) -> f32[512] {
  %p = f32[256]{0:S(1)} parameter(0)
  %gather = f32[512]{0:S(1)} all-gather(%p), replica_groups={{0,1}}, frontend_attributes={chain_id="7"}
  ROOT %call = f32[512]{0:S(1)} custom-call(%gather), custom_call_target="AsyncCollectiveDone"
}
%all-reduce-scatter.1 (p: f32[512]) -> f32[256] {
  %p = f32[512]{0:S(1)} parameter(0)
  %sum = f32[512]{0:S(1)} all-reduce(%p), replica_groups={{0,1}}
  %zero = s32[] constant(0)
  ROOT %slice = f32[256]{0:S(1)} dynamic-slice(%sum, %zero), dynamic_slice_sizes={256}
}
ENTRY %main (p: f32[256], m: f32[100,100]) -> f32[256] {
  %p = f32[256]{0:S(1)} parameter(0)
  %m = f32[100,100]{1,0:S(1)} parameter(1)
  %start = (f32[256]{0:S(1)}, f32[512]{0:S(1)}) fusion(%p), kind=kCustom, calls=%begin
  %middle = (f32[100,100]{1,0:S(1)}, f32[512]{0:S(1)}) fusion(%p, %m), kind=kOutput, calls=%async_collective_fusion
  %done = f32[512]{0:S(1)} fusion(%p), kind=kCustom, calls=%end
  ROOT %scattered = f32[256]{0:S(1)} fusion(%done), kind=kCustom, calls=%all-reduce-scatter.1
}"""


def test_fusions_of_one_collective_count_once() -> None:
    """The product takes 500 of the gather's 1,024 us. A sum of which each device keeps its shard is half of one."""
    pair = Network((1, 2), (False, False), ((0, 0), (0, 1)), link_bandwidth=1e6)
    chip = Chip(2**30, flops=4e9, bandwidth=1e15, link_bandwidth=1e6, torus_axes=2)
    wires = wires_of(Module(FUSIONS), chip, pair)
    assert wires.sent == {"all-gather": 1024, "reduce-scatter": 1024}
    assert wires.seconds * 1e6 == pytest.approx(2 * 1024, rel=1e-3)
    assert wires.waited_seconds * 1e6 == pytest.approx(524 + 1024, rel=1e-3)
    assert wires.waited_bytes == pytest.approx(524 + 1024, rel=1e-3)
