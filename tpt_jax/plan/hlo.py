"""What a compiled program costs one device, read from its optimised HLO text: bytes, flops, collectives.

XLA's own cost analysis counts a loop's body once, and takes an array that a nested fusion slices for read as a whole.
This one multiplies a loop's body by its trips and counts what is sliced. Loops must count from 0 to a constant, as scan
and fori_loop make them; of a conditional it takes the branch that moves most.

Bytes are those to and from main memory: what stays in on-chip memory is left out, and an array that two instructions
read counts twice. Flops are those of products, which is nearly all; of kernels it knows splash attention's.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id"}
MOVES = {"bitcast", "copy", "get-tuple-element"}  # inside a fusion: done as far as what follows asks for it
SLICES = {"dynamic-slice", "slice", "gather"}

HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
CALLEE = re.compile(r"(?:calls|body|to_apply)=%?([\w.\-]+)")
COLLECTIVE = re.compile(r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?")
SPLASH_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}  # of every query with every key
SPLASH_KERNEL = re.compile(f"({'|'.join(SPLASH_PRODUCTS)})")


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
        return sum(size for size, layout in self._arrays() if "S(" not in layout)

    @property
    def bytes_anywhere(self) -> int:
        """Of its result, in whichever memory."""
        return sum(size for size, _ in self._arrays())

    @property
    def sizes(self) -> list[int]:
        """Of the dimensions of its result, or of the first array of a tuple."""
        return _sizes(ARRAY.findall(self.shape)[0][1])

    @property
    def constant(self) -> int | None:
        """Its value, where it is a whole number that the program holds."""
        value = self.attribute(r" constant\((\d+)\)") if self.opcode == "constant" else None
        return None if value is None else int(value)

    def attribute(self, pattern: str) -> str | None:
        """What a pattern's group finds in the line."""
        found = re.search(pattern, self.text)
        return found[1] if found else None

    def _arrays(self) -> Iterator[tuple[int, str]]:
        for kind, sizes, layout in ARRAY.findall(self.shape):
            if kind in SIZES:
                yield SIZES[kind] * math.prod(_sizes(sizes)), layout


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
        """To and from main memory in one run of the program."""
        return self._bytes(self._entry)

    def flops(self) -> int:
        """Of the products in one run of the program."""
        return sum(times * _flops(each, near) for each, near, times in self._executed(self._entry, 1))

    def collectives(self) -> Counter[str]:
        """By kind, the bytes that a device sends to others in one run, by the usual rings."""
        sent: Counter[str] = Counter()
        for each, near, times in self._executed(self._entry, 1):
            if found := COLLECTIVE.fullmatch(each.opcode):
                sent[found[1]] += times * _sent(found[1], each, near, is_start=found[2] is not None)
        return sent

    def _executed(self, computation: Computation, times: int) -> Iterator[tuple[Instruction, Computation, int]]:
        """Every instruction, inside fusions too, with the computation that it stands in and how often it runs."""
        for each in computation.values():
            if each.opcode == "while":
                yield from self._executed(self._callee(each), times * self._trips(each))
            elif each.opcode == "conditional":
                yield from self._executed(max(self._branches(each), key=self._bytes), times)
            elif each.opcode in ("call", "fusion", "async-start"):
                yield from self._executed(self._callee(each), times)
            else:
                yield each, computation, times

    def _bytes(self, computation: Computation) -> int:
        return sum(self._bytes_of(instruction, computation) for instruction in computation.values())

    def _bytes_of(self, instruction: Instruction, near: Computation) -> int:
        opcode, operands = instruction.opcode, [near[name] for name in instruction.operands if name in near]
        if opcode in FREE or opcode.endswith("-done"):
            return 0
        if opcode == "while":
            return self._trips(instruction) * self._bytes(self._callee(instruction))
        if opcode == "conditional":
            return max(map(self._bytes, self._branches(instruction)))
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

    def _branches(self, conditional: Instruction) -> list[Computation]:
        names = conditional.attribute(r"branch_computations=\{([^}]*)\}")
        if names is None:
            pair = (conditional.attribute(rf"{which}_computation=%?([\w.\-]+)") for which in ("true", "false"))
            return [self._computations[name] for name in pair if name]
        return [self._computations[name] for name in re.findall(r"[\w.\-]+", names)]

    def _callee(self, instruction: Instruction) -> Computation:
        return self._computations[CALLEE.search(instruction.text)[1]]  # pyright: ignore[reportOptionalSubscript]

    def _trips(self, loop: Instruction) -> int:
        condition = self._computations[str(loop.attribute(r"condition=%?([\w.\-]+)"))]
        limits = [each.constant for each in condition.values() if each.constant is not None]
        return max(1, -(-max(limits, default=1) // self._stride(condition, self._callee(loop))))

    def _stride(self, condition: Computation, body: Computation) -> int:
        """By how much a turn of a loop counts on: XLA does two turns in one where it overlaps products with sending."""
        compared = next(each for each in condition.values() if each.is_root).operands
        places = [condition[name].attribute(r"get-tuple-element\(.*\), index=(\d+)") for name in compared]
        place = next((int(found) for found in places if found is not None), None)
        results = next(each for each in body.values() if each.is_root).operands
        counted = body[results[place]] if place is not None and place < len(results) else None
        if counted is None or counted.opcode != "add":
            return 1
        return next((found for name in counted.operands if (found := body[name].constant) is not None), 1)

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


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]


def _sent(kind: str, instruction: Instruction, near: Computation, *, is_start: bool) -> int:
    """Bytes that leave a device: all but its own part, and twice that where parts are summed and given back."""
    given = sum(near[name].bytes_anywhere for name in instruction.operands if name in near)
    result = instruction.bytes_anywhere - (given if is_start else 0)  # what starts has its operand in its result too
    match kind:
        case "all-gather":
            return max(0, result - given)
        case "reduce-scatter":
            return max(0, given - result)
        case "all-reduce":
            return 2 * given
    return given


def _flops(instruction: Instruction, near: Computation) -> int:
    operands = [near[name] for name in instruction.operands if name in near]
    if instruction.opcode == "dot":
        contracted = _sizes(instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or "")
        return 2 * math.prod(instruction.sizes) * math.prod(operands[0].sizes[axis] for axis in contracted)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, operands[0].sizes, operands[1].sizes)
    if kernel := SPLASH_KERNEL.search(instruction.name):
        return SPLASH_PRODUCTS[kernel[1]] * _attention_flops(instruction)
    return 0


def _convolution_flops(instruction: Instruction, left: list[int], right: list[int]) -> int:
    """Products are convolutions on a TPU: a dimension that both sides have is a window that meets itself once."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.text)
    assert labels is not None  # every convolution has them
    of_left, of_right, of_result = labels.groups()
    result = instruction.sizes
    flops = 2 * result[of_result.index("b")] * result[of_result.index("f")] * right[of_right.index("i")]
    for axis in range(len(of_result) - 2):
        window = {
            name: int(numbers.split("x")[axis].split("_")[0])
            for name, numbers in re.findall(r"(size|stride|pad|lhs_dilate|rhs_dilate)=([\dx_\-]+)", instruction.text)
        }
        inputs = left[of_left.index(str(axis))]
        flops *= _meetings(inputs, right[of_right.index(str(axis))], result[of_result.index(str(axis))], window)
    return flops


def _meetings(inputs: int, kernel: int, outputs: int, window: dict[str, int]) -> int:
    """How often a window's place meets an input, neither padding nor a gap between inputs, along one axis."""
    gap, stride, step = window.get("lhs_dilate", 1), window.get("stride", 1), window.get("rhs_dilate", 1)
    last = (inputs - 1) * gap
    places = (output * stride - window.get("pad", 0) + tap * step for output in range(outputs) for tap in range(kernel))
    return sum(0 <= place <= last and place % gap == 0 for place in places)


def _attention_flops(kernel: Instruction) -> int:
    """Of one product of every query with every key: what the mask lets the kernel skip is not known here."""
    operands = kernel.text.partition("operand_layout_constraints=")[2]
    batch, heads, length, width = next(
        sizes for sizes in map(_sizes, re.findall(r"bf16\[([\d,]+)\]", operands)) if len(sizes) == 4
    )
    return 2 * batch * heads * length * length * width
