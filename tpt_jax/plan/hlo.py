"""Cost of a compiled program on one device, from its optimized HLO text: bytes and flops.

XLA's own cost analysis counts a loop body once, and counts an array as read in full if a nested fusion slices it.
Module multiplies a loop body by its trip count and counts only the slice. Loops must count from 0 to a constant, like
those of scan and fori_loop. A conditional costs as much as its most expensive branch.

Bytes are those moved to and from main memory: on-chip memory is not counted, and an array read by two instructions
counts twice. Flops are those of matrix products, which is nearly all of them; splash attention is the only kernel whose
flops are known.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

SIZEOF = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id"}
MOVES = {"bitcast", "copy", "get-tuple-element"}  # in a fusion, executed only for the elements used
SLICES = {"dynamic-slice", "slice", "gather"}

HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
CALLEE = re.compile(r"(?:calls|body|to_apply)=%?([\w.\-]+)")
SPLASH_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}  # query x key products
SPLASH_KERNEL = re.compile(f"({'|'.join(SPLASH_PRODUCTS)})")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Size of the result in main memory; memory spaces S(1), S(2), ... are on the chip."""
        return sum(size for size, layout in self.arrays() if "S(" not in layout)

    @property
    def bytes_anywhere(self) -> int:
        """Size of the result in any memory."""
        return sum(size for size, _ in self.arrays())

    @property
    def sizes(self) -> list[int]:
        """Dimensions of the result, or of the first array of a tuple."""
        return _sizes(ARRAY.findall(self.shape)[0][1])

    @property
    def constant(self) -> int | None:
        """Value of an integer constant; None for other instructions."""
        value = self.attribute(r" constant\((\d+)\)") if self.opcode == "constant" else None
        return None if value is None else int(value)

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the instruction's text."""
        match = re.search(pattern, self.text)
        return match[1] if match else None

    def arrays(self) -> list[tuple[int, str]]:
        """Size in bytes and memory layout of each array of the result."""
        return [
            (SIZEOF[dtype] * math.prod(_sizes(sizes)), layout)
            for dtype, sizes, layout in ARRAY.findall(self.shape)
            if dtype in SIZEOF
        ]


Computation = dict[str, Instruction]


class Module:
    """A parsed HLO module."""

    def __init__(self, text: str):
        self._computations: dict[str, Computation] = {}
        current: Computation = {}
        for line in text.splitlines():
            if header := HEADER.match(line):
                current = self._computations.setdefault(header[1], {})
                if line.startswith("ENTRY"):
                    self.entry = current
            elif match := INSTRUCTION.match(line):
                root, name, shape, opcode, rest = match.groups()
                operands = tuple(re.findall(r"%([\w.\-]+)", rest[: _closing(rest)]))
                current[name] = Instruction(name, shape, opcode, operands, line, root is not None)

    def bytes(self) -> int:
        """Bytes moved to and from main memory in one run of the program."""
        return self._bytes(self.entry)

    def flops(self) -> int:
        """Flops of the matrix products in one run of the program."""
        return self._flops(self.entry)

    def executed(self, computation: Computation, times: int = 1) -> Iterator[tuple[Instruction, Computation, int]]:
        """Every instruction, including those in fusions, with its computation and how often it runs."""
        for instruction in computation.values():
            yield from self._expanded(instruction, computation, times)

    def _expanded(
        self, instruction: Instruction, scope: Computation, times: int
    ) -> Iterator[tuple[Instruction, Computation, int]]:
        if instruction.opcode == "while":
            yield from self.executed(self.callee(instruction), times * self.trip_count(instruction))
        elif instruction.opcode == "conditional":
            yield from self.executed(self.costliest_branch(instruction), times)
        elif instruction.opcode in ("call", "fusion", "async-start"):
            yield from self.executed(self.callee(instruction), times)
        else:
            yield instruction, scope, times

    def costliest_branch(self, conditional: Instruction) -> Computation:
        """The branch with the most bytes; flops decide between equal ones."""
        return max(self._branches(conditional), key=lambda branch: (self._bytes(branch), self._flops(branch)))

    def flops_of(self, instruction: Instruction, scope: Computation) -> int:
        """Flops of the matrix products of one instruction of a computation, with all that it calls."""
        return sum(
            times * _product_flops(inner, within) for inner, within, times in self._expanded(instruction, scope, 1)
        )

    def _flops(self, computation: Computation) -> int:
        return sum(self.flops_of(instruction, computation) for instruction in computation.values())

    def _bytes(self, computation: Computation) -> int:
        return sum(self.bytes_of(instruction, computation) for instruction in computation.values())

    def bytes_of(self, instruction: Instruction, scope: Computation) -> int:
        """Bytes that one instruction of a computation moves to and from main memory, with all that it calls."""
        opcode, operands = instruction.opcode, operands_of(instruction, scope)
        if opcode in FREE or opcode.endswith("-done"):
            return 0
        if opcode == "while":
            return self.trip_count(instruction) * self._bytes(self.callee(instruction))
        if opcode == "conditional":
            return max(map(self._bytes, self._branches(instruction)))
        if opcode == "call":
            return self._bytes(self.callee(instruction))
        if opcode == "fusion":
            callee = self.callee(instruction)
            read = sum(min(self._read_bytes(callee, index), operand.bytes) for index, operand in enumerate(operands))
            return read + min(instruction.bytes, self._written_bytes(callee))
        if opcode in ("copy-start", "slice-start"):  # a tuple of result and operand, in either order
            moved = min(size for size, _ in instruction.arrays()[:2])
            written = instruction.bytes - sum(operand.bytes for operand in operands)
            return written + min(moved, sum(operand.bytes for operand in operands))
        if opcode in SLICES:
            return 2 * instruction.bytes
        if opcode == "dynamic-update-slice":
            return 2 * operands[1].bytes
        return instruction.bytes + sum(operand.bytes for operand in operands)

    def _branches(self, conditional: Instruction) -> list[Computation]:
        names = conditional.attribute(r"branch_computations=\{([^}]*)\}")
        if names is None:
            pair = (conditional.attribute(rf"{which}_computation=%?([\w.\-]+)") for which in ("true", "false"))
            return [self._computations[name] for name in pair if name]
        return [self._computations[name] for name in re.findall(r"[\w.\-]+", names)]

    def callee(self, instruction: Instruction) -> Computation:
        """The computation that a fusion, call or loop runs."""
        return self._computations[CALLEE.search(instruction.text)[1]]  # pyright: ignore[reportOptionalSubscript]

    def trip_count(self, loop: Instruction) -> int:
        """How often a loop's body runs."""
        condition = self._computations[str(loop.attribute(r"condition=%?([\w.\-]+)"))]
        limits = [instruction.constant for instruction in condition.values() if instruction.constant is not None]
        return max(1, -(-max(limits, default=1) // self._stride(condition, self.callee(loop))))

    def _stride(self, condition: Computation, body: Computation) -> int:
        """Increment of the loop counter; XLA unrolls a loop by two to overlap products with communication."""
        compared = operands_of(_root(condition), condition)
        indices = [value.attribute(r"get-tuple-element\(.*\), index=(\d+)") for value in compared]
        counter = next((int(index) for index in indices if index is not None), None)
        results = _root(body).operands
        update = body[results[counter]] if counter is not None and counter < len(results) else None
        if update is None or update.opcode != "add":
            return 1
        return next((step for name in update.operands if (step := body[name].constant) is not None), 1)

    def _read_bytes(self, computation: Computation, index: int) -> int:
        """Bytes that a fused computation reads of one of its parameters."""
        marker = f"parameter({index})"
        parameter = next(instruction for instruction in computation.values() if marker in instruction.text)
        return self._read_bytes_of(parameter, computation)

    def _read_bytes_of(self, value: Instruction, computation: Computation) -> int:
        if value.is_root:
            return value.bytes
        read = 0
        for user in computation.values():
            if value.name not in user.operands:
                continue
            if user.opcode in MOVES or (user.opcode == "fusion" and self._only_moves(self.callee(user))):
                read += self._read_bytes_of(user, computation)
            elif user.opcode == "convert":  # computed only for the elements used
                read += self._read_bytes_of(user, computation) * value.bytes // max(1, user.bytes)
            elif user.opcode in SLICES and user.operands[0] == value.name:
                read += user.bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
                continue  # updated in place
            elif user.opcode == "fusion":
                callee = self.callee(user)
                indices = [index for index, name in enumerate(user.operands) if name == value.name]
                read += sum(self._read_bytes(callee, index) for index in indices)
            else:
                return value.bytes
        return min(read, value.bytes)

    def _only_moves(self, computation: Computation) -> bool:
        return {instruction.opcode for instruction in computation.values()} <= {"parameter", *MOVES}

    def _written_bytes(self, computation: Computation) -> int:
        """Bytes a fusion writes: its results, or only the updated slice of an operand updated in place."""
        root = _root(computation)
        results = [computation[name] for name in root.operands] if root.opcode == "tuple" else [root]
        return sum(self._result_bytes(result, computation) for result in results)

    def _result_bytes(self, result: Instruction, computation: Computation) -> int:
        while result.opcode == "bitcast":
            result = computation[result.operands[0]]
        return computation[result.operands[1]].bytes if result.opcode == "dynamic-update-slice" else result.bytes


def _root(computation: Computation) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.is_root)


def operands_of(instruction: Instruction, scope: Computation) -> list[Instruction]:
    """The instructions of a computation whose results another one takes."""
    return [scope[name] for name in instruction.operands if name in scope]


def _closing(text: str) -> int:
    """Index of the parenthesis that closes one opened before the text."""
    depth = 1
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index
    return len(text)


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]


def _product_flops(instruction: Instruction, scope: Computation) -> int:
    operands = operands_of(instruction, scope)
    if instruction.opcode == "dot":
        contracted = _sizes(instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or "")
        return 2 * math.prod(instruction.sizes) * math.prod(operands[0].sizes[axis] for axis in contracted)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, operands[0].sizes, operands[1].sizes)
    if kernel := SPLASH_KERNEL.search(instruction.name):
        return SPLASH_PRODUCTS[kernel[1]] * _attention_flops(instruction)
    return 0


def _convolution_flops(instruction: Instruction, left: list[int], right: list[int]) -> int:
    """Flops of a product written as a convolution, as on TPU: each batch dimension is a window that matches once."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.text)
    assert labels is not None  # every convolution has them
    left_labels, right_labels, result_labels = labels.groups()
    result = instruction.sizes
    flops = 2 * result[result_labels.index("b")] * result[result_labels.index("f")] * right[right_labels.index("i")]
    for axis in range(len(result_labels) - 2):
        window = {
            name: int(numbers.split("x")[axis].split("_")[0])
            for name, numbers in re.findall(r"(size|stride|pad|lhs_dilate|rhs_dilate)=([\dx_\-]+)", instruction.text)
        }
        input_size = left[left_labels.index(str(axis))]
        kernel_size, output_size = right[right_labels.index(str(axis))], result[result_labels.index(str(axis))]
        flops *= _num_taps(input_size, kernel_size, output_size, window)
    return flops


def _num_taps(input_size: int, kernel_size: int, output_size: int, window: dict[str, int]) -> int:
    """Along one axis, how often a kernel element meets an input rather than padding or a gap between inputs."""
    gap, stride, step = window.get("lhs_dilate", 1), window.get("stride", 1), window.get("rhs_dilate", 1)
    last = (input_size - 1) * gap
    offset = window.get("pad", 0)
    positions = (output * stride - offset + tap * step for output in range(output_size) for tap in range(kernel_size))
    return sum(0 <= position <= last and position % gap == 0 for position in positions)


def _attention_flops(kernel: Instruction) -> int:
    """Flops of one product of all queries with all keys; blocks the kernel skips because of the mask are not known."""
    operands = kernel.text.partition("operand_layout_constraints=")[2]
    batch, heads, length, head_dim = next(
        sizes for sizes in map(_sizes, re.findall(r"bf16\[([\d,]+)\]", operands)) if len(sizes) == 4
    )
    return 2 * batch * heads * length * length * head_dim
