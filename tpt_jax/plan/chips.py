"""Peak figures of the TPU chips, on which a plan's bounds rest.

Flops and bandwidth: cloud.google.com/tpu/docs, the page of each version ("Key chip specifications"). Memory: what the
compiler leaves to a program, taken from its own out-of-memory errors. All figures are per JAX device: one chip (a v4
chip's two cores are one device), except on tpu7x, where it is half a chip.
"""

import dataclasses
from collections.abc import Mapping

from tpt_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device of a TPU version.

    Attributes:
      memory: bytes available to a program.
      flops: peak per second, in bfloat16.
      bandwidth: peak bytes per second to and from main memory.
      per_chip: JAX devices per chip, for counting chip-hours.
    """

    memory: float
    flops: float
    bandwidth: float
    per_chip: int = 1


CHIPS: Mapping[str, Chip] = {
    "v4": Chip(30.75 * GIB, 275e12, 1228e9),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9),
    "v6e": Chip(31.25 * GIB, 918e12, 1640e9),
    "tpu7x": Chip(94.75 * GIB, 1153.5e12, 3690e9, per_chip=2),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology like "v5e:2x4".

    Raises:
      UserError: unknown TPU version.
    """
    version = topology.partition(":")[0]
    if version not in CHIPS:
        raise UserError(f"--topology {topology}: must begin with one of {', '.join(CHIPS)}, as in v5e:2x4")
    return CHIPS[version]
