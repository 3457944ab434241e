"""Peak figures of the TPU chips, on which a plan's bounds rest, and the peak flops of GPUs, for MFU.

Flops and bandwidth: cloud.google.com/tpu/docs, the page of each version ("Key chip specifications"). Memory: what the
compiler leaves to a program, taken from its own out-of-memory errors. All figures are per JAX device: one chip (a v4
chip's two cores are one device), except on tpu7x, where it is half a chip.

Links between chips (ICI): Austin et al., "How to Scale Your Model", chapter 2, which gives what a link carries in one
direction. The pages of the versions give ten percent more, as the sum of both directions of all links: 400 GB/s for the
four links of a v5e, 800 for those of a v6e, 1,200 for the six of a v5p or tpu7x. The book has no tpu7x; its links are
taken to be those of a v5p, shared by the two devices of a chip.

Flops of GPUs: NVIDIA's data sheet of each, "BFLOAT16 Tensor Core" without sparsity, half of that with it.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from tpt_jax.errors import UserError

GIB = 2**30
POD_AXIS = 16  # chips along an axis of a whole pod of v5e or v6e
CUBE = 4  # chips along an edge of the cubes of which slices with a 3D torus consist


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device of a TPU version.

    Attributes:
      memory: bytes available to a program.
      flops: peak per second, in bfloat16.
      bandwidth: peak bytes per second to and from main memory.
      link_bandwidth: bytes per second over the link to a neighbor, in one direction.
      torus_axes: axes of the interconnect: 2 or 3, with two neighbors on each.
      per_chip: JAX devices per chip, for counting chip-hours.
    """

    memory: float
    flops: float
    bandwidth: float
    link_bandwidth: float
    torus_axes: int
    per_chip: int = 1

    def wraps(self, shape: Sequence[int]) -> tuple[bool, ...]:
        """Which axes of a slice are rings; the others are lines, without a link between their ends.

        A 2D slice wraps along an axis that spans the pod, which is 16 chips; a 3D slice along all axes if it consists
        of whole cubes of 4 x 4 x 4, whose faces the optical switches join. MaxText's table of slices
        (accelerator_to_spec_map.py) says the same. Twisted tori (4x4x8, 4x8x8) count as plain ones.
        """
        if self.torus_axes == 2:
            return tuple(size == POD_AXIS for size in shape)
        return (all(size % CUBE == 0 for size in shape),) * len(shape)


CHIPS: Mapping[str, Chip] = {
    "v4": Chip(30.75 * GIB, 275e12, 1228e9, 45e9, torus_axes=3),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 45e9, torus_axes=2),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, 90e9, torus_axes=3),
    "v6e": Chip(31.25 * GIB, 918e12, 1640e9, 90e9, torus_axes=2),
    "tpu7x": Chip(94.75 * GIB, 1153.5e12, 3690e9, 45e9, torus_axes=3, per_chip=2),
}


TPU_KINDS: Mapping[str, str] = {  # what JAX calls them
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
}
GPU_FLOPS: Mapping[str, float] = {  # by the start of the name, the longer of two first
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100": 989.5e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak flops per second in bfloat16 of a JAX device, by its `device_kind`; None if the chip is not known."""
    if device_kind in TPU_KINDS:
        return CHIPS[TPU_KINDS[device_kind]].flops
    names = (name for name in GPU_FLOPS if device_kind == name or device_kind.startswith((f"{name} ", f"{name}-")))
    return GPU_FLOPS.get(next(names, ""))


def chip_of(topology: str) -> Chip:
    """The chip of a topology like "v5e:2x4".

    Raises:
      UserError: unknown TPU version.
    """
    version = topology.partition(":")[0]
    if version not in CHIPS:
        raise UserError(f"--topology {topology}: must begin with one of {', '.join(CHIPS)}, as in v5e:2x4")
    return CHIPS[version]


def slice_shape(topology: str) -> tuple[int, ...]:
    """Chips along each axis of a topology: (2, 4) for "v5e:2x4".

    Raises:
      UserError: not whole numbers with an x between them.
    """
    sizes = topology.partition(":")[2].split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise UserError(f"--topology {topology}: must give the chips of each axis, as in v5e:2x4 or v5p:4x4x4")
    return tuple(map(int, sizes))
