"""TPU devices to compile for without having a TPU."""

import importlib.util
import os
from typing import Any

from tpt_jax.errors import UserError
from tpt_jax.plan.chips import chip_of, slice_shape

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # Keep libtpu from probing for a TPU and its metadata server.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two plans may run at once
}


def prepare_environment() -> None:
    """Sets libtpu's environment. Call it before JAX is imported."""
    os.environ.update(ENVIRONMENT)


def tpu_devices(topology: str) -> list[Any]:
    """The devices of a topology like "v5e:2x4" or "v5p:4x4x4".

    Raises:
      UserError: libtpu is not installed, or does not know the topology.
    """
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise UserError("tpt plan needs libtpu (but no TPU); run: pip install 'tpt_jax[tpu]'")
    chip, shape = chip_of(topology), slice_shape(topology)
    wraps = chip.wraps(shape)
    options: dict[str, Any] = {"wrap": (*wraps, *(False,) * (3 - len(shape)))}
    if topology.startswith("v4:"):  # a chip's two cores are one device, as on a VM
        options["chip_config_name"] = "megacore"
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except Exception as error:  # the runtime has its own exception types
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--topology {topology}: unknown to libtpu ({reason}); write one like v5e:2x4, v6e:8x8 or v5p:4x4x4"
        ) from error
