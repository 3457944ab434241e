"""Bytes that a compiled program moves to and from a device's main memory, read from its optimised HLO text.

XLA's own cost analysis counts a loop's body once, and takes an array that a nested fusion slices for read as a whole.
This one multiplies a loop's body by its trips and counts what is sliced. What stays in on-chip memory is left out; an
array that two instructions read counts twice. Loops must count from 0 by 1 to a constant, as scan and fori_loop
make them; of a conditional it takes the branch that moves most.
"""

import dataclasses
import math
import re

SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id"}
MOVES = {"bitcast", "copy", "get-tuple-element"}  # inside a fusion: done as far as what follows asks for it
SLICES = {"dynamic-slice", "slice", "gather"}

HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
CALLEE = re.compile(r"(?:calls|body|to_apply)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Of its result in main memory; memory spaces S(1), S(2), ... are on the chip."""
        return sum(
            SIZES[kind] * math.prod(int(size) for size in sizes.split(",") if size)
            for kind, sizes, layout in ARRAY.findall(self.shape)
            if kind in SIZES and "S(" not in layout
        )


Computation = dict[str, Instruction]


class Module:
    """A parsed program."""

    def __init__(self, text: str):
        self._computations: dict[str, Computation] = {}
        current: Computation = {}
        for line in text.splitlines():
            if header := HEADER.match(line):
                current = self._computations.setdefault(header[1], {})
                if line.startswith("ENTRY"):
                    self._entry = current
            elif found := INSTRUCTION.match(line):
                root, name, shape, opcode, rest = found.groups()
                operands = tuple(re.findall(r"%([\w.\-]+)", rest[: _closing(rest)]))
                current[name] = Instruction(name, shape, opcode, operands, line, root is not None)

    def bytes(self) -> int:
        """Of one run of the program."""
        return self._bytes(self._entry)

    def _bytes(self, computation: Computation) -> int:
        return sum(self._bytes_of(instruction, computation) for instruction in computation.values())

    def _bytes_of(self, instruction: Instruction, near: Computation) -> int:
        opcode, operands = instruction.opcode, [near[name] for name in instruction.operands if name in near]
        if opcode in FREE or opcode.endswith("-done"):
            return 0
        if opcode == "while":
            return self._trips(instruction) * self._bytes(self._callee(instruction))
        if opcode == "conditional":
            branches = re.findall(r"[\w.\-]+", re.search(r"branch_computations=\{([^}]*)\}", instruction.text)[1])  # pyright: ignore
            return max(self._bytes(self._computations[name]) for name in branches)
        if opcode == "call":
            return self._bytes(self._callee(instruction))
        if opcode == "fusion":
            callee = self._callee(instruction)
            read = sum(min(self._read(callee, number), each.bytes) for number, each in enumerate(operands))
            return read + min(instruction.bytes, self._written(callee))
        if opcode in SLICES:
            return 2 * instruction.bytes
        if opcode == "dynamic-update-slice":
            return 2 * operands[1].bytes
        return instruction.bytes + sum(each.bytes for each in operands)

    def _callee(self, instruction: Instruction) -> Computation:
        return self._computations[CALLEE.search(instruction.text)[1]]  # pyright: ignore[reportOptionalSubscript]

    def _trips(self, loop: Instruction) -> int:
        condition = self._computations[re.search(r"condition=%?([\w.\-]+)", loop.text)[1]]  # pyright: ignore
        limits = [
            re.search(r"constant\((\d+)\)", each.text) for each in condition.values() if each.opcode == "constant"
        ]
        return max((int(limit[1]) for limit in limits if limit), default=1)

    def _read(self, computation: Computation, number: int) -> int:
        """How much of its parameter a fused computation reads."""
        mark = f"parameter({number})"
        return self._read_of(next(each for each in computation.values() if mark in each.text), computation)

    def _read_of(self, value: Instruction, computation: Computation) -> int:
        if value.is_root:
            return value.bytes
        read = 0
        for user in computation.values():
            if value.name not in user.operands:
                continue
            if user.opcode in MOVES or (user.opcode == "fusion" and self._moves_only(self._callee(user))):
                read += self._read_of(user, computation)
            elif user.opcode == "convert":  # computed only where it is used
                read += self._read_of(user, computation) * value.bytes // max(1, user.bytes)
            elif user.opcode in SLICES and user.operands[0] == value.name:
                read += user.bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
                continue  # written in place
            elif user.opcode == "fusion":
                callee = self._callee(user)
                read += sum(self._read(callee, place) for place, name in enumerate(user.operands) if name == value.name)
            else:
                return value.bytes
        return min(read, value.bytes)

    def _moves_only(self, computation: Computation) -> bool:
        return {each.opcode for each in computation.values()} <= {"parameter", *MOVES}

    def _written(self, computation: Computation) -> int:
        """A fusion's result, or what it updates where its result is an operand updated in place."""
        root = next(each for each in computation.values() if each.is_root)
        roots = [computation[name] for name in root.operands] if root.opcode == "tuple" else [root]
        return sum(self._update(each, computation) for each in roots)

    def _update(self, root: Instruction, computation: Computation) -> int:
        while root.opcode == "bitcast":
            root = computation[root.operands[0]]
        return computation[root.operands[1]].bytes if root.opcode == "dynamic-update-slice" else root.bytes


def _closing(text: str) -> int:
    """Where the parenthesis that is open at the start closes."""
    depth = 1
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index
    return len(text)
