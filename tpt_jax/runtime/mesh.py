"""The device mesh: three named axes, `data`, `fsdp` and `tensor`."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from tpt_jax.config import MeshConfig
from tpt_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Lays devices, all that there are unless some are given, out on the three axes.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    num_devices = len(devices)
    sizes = [config.data, config.fsdp, config.tensor]
    if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"mesh: sizes {tuple(sizes)} must be positive, at most one of them -1; try fsdp: -1")
    if -1 in sizes:
        others = math.prod(size for size in sizes if size != -1)
        if num_devices % others:
            raise UserError(
                f"mesh: data x fsdp x tensor of {tuple(sizes)} does not divide {num_devices} devices; "
                f"{others} must be a divisor of {num_devices}"
            )
        sizes[sizes.index(-1)] = num_devices // others
    if math.prod(sizes) != num_devices:
        raise UserError(
            f"mesh: data x fsdp x tensor = {' x '.join(map(str, sizes))} = {math.prod(sizes)}, "
            f"but JAX sees {num_devices} device{'s' * (num_devices > 1)}; set one of them to -1 to take what is left"
        )
    return Mesh(_arrange(devices, sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(devices: Sequence[Any], sizes: Sequence[int]) -> np.ndarray:
    """Devices such that neighbours on an axis are neighbours on the torus; of several slices, `data` goes over them.

    Raises:
      UserError: the data axis does not divide over the slices.
    """
    num_slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    if num_slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    data, fsdp, tensor = sizes
    if data % num_slices:
        raise UserError(
            f"mesh.data ({data}) must be a multiple of the {num_slices} slices, for only batches are split over the "
            f"network between them; try {num_slices}"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // num_slices, fsdp, tensor), (num_slices, 1, 1), devices, allow_split_physical_axes=True
    )
