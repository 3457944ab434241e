"""Memory of the devices: how much there is, how much a program needs, and one line to say that it does not fit."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from tpt_jax.errors import UserError
from tpt_jax.runtime import hosts

GIB = 2**30
USABLE = 0.95  # share of a device's memory to plan with: fragmentation, and results on their way to the host
CPU_SHARE = 0.5  # of the machine's free memory, for all its emulated devices
TPU_OUT_OF_MEMORY = re.compile(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)")  # XLA's TPU compiler


class MemoryInUse(NamedTuple):
    """Memory of one device in use now, and the most there was since the process started; bytes."""

    now: int
    peak: int


def memory_in_use(devices: Sequence[Any]) -> list[MemoryInUse]:
    """The memory in use on each device; empty if they do not report it, as CPUs do not. No device waits for it."""
    reports: list[dict[str, int] | None] = [device.memory_stats() for device in devices]
    known = [report for report in reports if report is not None and "bytes_in_use" in report]
    if len(known) < len(devices):
        return []
    return [
        MemoryInUse(report["bytes_in_use"], report.get("peak_bytes_in_use", report["bytes_in_use"])) for report in known
    ]


@dataclasses.dataclass(frozen=True)
class MemoryNeed:
    """Memory a program needs on one device, against the memory available there; bytes."""

    needed: float
    available: float

    def __str__(self) -> str:
        return f"{self.needed / GIB:.1f} of {self.available / GIB:.2f} GiB"


class DoesNotFitError(UserError):
    """A program does not fit in the devices' memory. The message says what would fit."""

    def __init__(self, message: str, need: MemoryNeed | None):
        super().__init__(message)
        self.need = need


@contextlib.contextmanager
def explain_out_of_memory(advise: Callable[[MemoryNeed | None], str]) -> Iterator[None]:
    """Replaces the compiler's out-of-memory error with a one-line DoesNotFitError.

    Args:
      advise: writes the line; takes the memory needed, or None if the compiler does not report it.

    Raises:
      DoesNotFitError: the program does not fit.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = TPU_OUT_OF_MEMORY.search(str(error))
        need = MemoryNeed(*(float(size) * GIB for size in sizes.groups())) if sizes else None
        raise DoesNotFitError(advise(need), need) from error


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """What a program needs on one device while it runs, arguments and results included."""
    analysis: Any = compiled.memory_analysis()
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return max(analysis.peak_memory_in_bytes, analysis.argument_size_in_bytes + outputs)


def free_bytes(mesh: Mesh) -> int:
    """What programs may still take on each device of a mesh, to plan with: the least of all devices, on every host.

    Raises:
      UserError: the devices do not report their memory.
    """
    devices = mesh.local_devices
    if devices[0].platform == "cpu":
        free = int(CPU_SHARE * _free_bytes_of_machine()) // len(devices)
    else:
        reports: list[dict[str, int] | None] = [device.memory_stats() for device in devices]
        known = [report for report in reports if report is not None and "bytes_limit" in report]
        if len(known) < len(devices):
            raise UserError(f"num_slots (auto): {devices[0].device_kind} does not report its memory; give a number")
        free = min(int(USABLE * report["bytes_limit"]) - report.get("bytes_in_use", 0) for report in known)
    return min(hosts.all_gather("free memory", free))


def _free_bytes_of_machine() -> int:
    """Without what a container may not use."""
    report = Path("/proc/meminfo")
    if report.is_file():
        lines = dict(line.split(":", 1) for line in report.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    else:  # not Linux: all of its memory
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        free = min(free, int(text))
    return free
