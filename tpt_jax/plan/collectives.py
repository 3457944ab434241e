"""The collectives of a compiled program: what each exchanges, among which devices, and where it starts and ends.

A TPU's compiler writes one that runs beside computation in two ways: as an instruction -start and one -done, or as
three or more fusions (async-collective-start, async_collective_fusion, async-collective-done), each of which holds the
same collective, beside a matrix product or alone. Any other collective is waited for.
"""

import dataclasses
import math
import re
from typing import Literal

import numpy as np

from tpt_jax.plan.hlo import Computation, Instruction, Module, operands_of
from tpt_jax.plan.network import Collective, Groups

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
COLLECTIVE = re.compile(rf"({KINDS})(-start)?")
DONE = re.compile(rf"(?:{KINDS}|async)-done")
FUSED_SCATTER = "all-reduce-scatter"  # name of a computation whose all-reduce the compiler makes a reduce-scatter

LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
NAMED = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((?:\[([\d,]+)\](?:T\(([\d,]+)\))?|([\d,]+))\))? ?\{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True)
class Event:
    """What an instruction does to a collective.

    Attributes:
      action: "runs" if the instruction waits for it, after its own computation if it is a fusion.
      key: joins a start to its end.
      collective: None for an end.
    """

    action: Literal["starts", "ends", "runs"]
    key: str
    collective: Collective | None


def event_of(instruction: Instruction, scope: Computation, module: Module) -> Event | None:
    """The event that an instruction of a computation is; None if it only computes."""
    if match := COLLECTIVE.fullmatch(instruction.opcode):
        action = "starts" if match[2] else "runs"
        return Event(action, instruction.name, _collective(match[1], instruction, scope, is_start=bool(match[2])))
    if DONE.fullmatch(instruction.opcode):
        return Event("ends", instruction.operands[0], None)
    if instruction.opcode not in ("fusion", "async-start"):
        return None
    callee = module.callee(instruction)
    for inner, within, _ in module.executed(callee):
        if not (match := COLLECTIVE.fullmatch(inner.opcode)):
            continue
        collective = _collective(match[1], inner, within, is_start=False)
        if match[1] == "all-reduce" and FUSED_SCATTER in instruction.text:
            collective = dataclasses.replace(collective, kind="reduce-scatter")
        if instruction.opcode == "async-start":
            return Event("starts", instruction.name, collective)
        chain = inner.attribute(r'chain_id="(\d+)"')
        targets = {value.attribute(r'custom_call_target="(\w+)"') for value in callee.values()}
        if "AsyncCollectiveStart" in targets:
            return Event("starts", f"chain {chain}", collective)
        if "AsyncCollectiveDone" in targets:
            return Event("ends", f"chain {chain}", None)
        return None if chain else Event("runs", instruction.name, collective)
    return None


def _collective(kind: str, instruction: Instruction, scope: Computation, *, is_start: bool) -> Collective:
    operand_bytes = sum(operand.bytes_anywhere for operand in operands_of(instruction, scope))
    size = operand_bytes
    if kind == "all-gather":
        size = instruction.bytes_anywhere - (operand_bytes if is_start else 0)  # a start's tuple has its operand
    return Collective(kind, size, replica_groups(instruction.text))


def replica_groups(text: str) -> Groups:
    """Devices that exchange with each other, of an instruction's text; empty if all do. Pairs, for a permutation.

    XLA writes groups as lists ({{0,1},{2,3}}), as a range reshaped and transposed ([2,2]<=[2,2]T(1,0)), or as axes of a
    mesh with names (mesh['a'=2,'b'=2] {'a'}), whose devices may be transposed, too.
    """
    if match := LISTED.search(text):
        return tuple(
            tuple(int(device) for device in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", match[1])
        )
    if match := IOTA.search(text):
        return _rows(_range(match[2], match[3]).reshape(_numbers(match[1])))
    if match := NAMED.search(text):
        return _named_groups(*match.groups())
    return ()


def _named_groups(mesh: str, dims: str | None, order: str | None, listed: str | None, axes: str) -> Groups:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    count = math.prod(sizes.values())
    devices = np.array(_numbers(listed)) if listed else _range(dims or str(count), order)
    chosen = {}  # axis to the part of it that is grouped: the size of what is before the part, and its own
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        chosen[name] = (int(before), int(size)) if size else (1, sizes[name])
    shape, grouped = [], []
    for name, size in sizes.items():
        before, part = chosen.get(name, (1, 1))
        grouped.append(len(shape) + 1)
        shape += [before, part, size // (before * part)]
    others = [axis for axis in range(len(shape)) if axis not in grouped]
    group_size = math.prod(shape[axis] for axis in grouped)
    return _rows(devices.reshape(shape).transpose(*others, *grouped).reshape(-1, group_size))


def _range(dims: str, order: str | None) -> np.ndarray:
    """Numbers from 0, reshaped to dims and transposed."""
    sizes = _numbers(dims)
    values = np.arange(math.prod(sizes)).reshape(sizes)
    return values.transpose(_numbers(order)) if order else values


def _rows(groups: np.ndarray) -> Groups:
    return tuple(map(tuple, groups.tolist()))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
