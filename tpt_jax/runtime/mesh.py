"""The device mesh, with axes `data`, `fsdp` and `tensor`."""

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
    """Arranges devices in a mesh.

    Args:
      devices: all of JAX's devices if None.

    Raises:
      UserError: the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    num_devices = len(devices)
    sizes = [config.data, config.fsdp, config.tensor]
    if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"mesh: sizes {tuple(sizes)} must be positive, or -1 for at most one; try fsdp: -1")
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        if num_devices % known:
            raise UserError(
                f"mesh: data x fsdp x tensor = {tuple(sizes)} does not fit {num_devices} devices; "
                f"the product of the other sizes ({known}) must be a divisor of {num_devices}"
            )
        sizes[sizes.index(-1)] = num_devices // known
    if math.prod(sizes) != num_devices:
        raise UserError(
            f"mesh: data x fsdp x tensor = {' x '.join(map(str, sizes))} = {math.prod(sizes)}, "
            f"but JAX sees {num_devices} device{'s' * (num_devices > 1)}; set one size to -1 to use all devices"
        )
    return Mesh(_arrange(devices, sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(devices: Sequence[Any], sizes: Sequence[int]) -> np.ndarray:
    """An array of devices in which neighbors on a mesh axis are neighbors on the torus; `data` spans the slices.

    Raises:
      UserError: mesh.data is not a multiple of the number of slices.
    """
    num_slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    if num_slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    data, fsdp, tensor = sizes
    if data % num_slices:
        raise UserError(
            f"mesh.data ({data}) must be a multiple of the {num_slices} slices, because only the data axis may cross "
            f"the network between slices; try {num_slices}"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // num_slices, fsdp, tensor), (num_slices, 1, 1), devices, allow_split_physical_axes=True
    )
