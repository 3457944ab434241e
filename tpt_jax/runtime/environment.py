"""Prepares JAX for this process: its platform, a cache of compiled programs between runs, and quiet libraries."""

import functools
import importlib.util
import logging
import os
import resource
import threading
import warnings
from importlib import metadata
from pathlib import Path

import jax

from tpt_jax.errors import MachineError, UserError
from tpt_jax.io import streams
from tpt_jax.terminal import say

# Orbax logs the traceback of a failed background write through absl or asyncio, and raises the error besides.
QUIET_LOGGERS = {
    "absl": logging.CRITICAL,
    "asyncio": logging.CRITICAL,
    "jax": logging.ERROR,
    "orbax": logging.ERROR,
    "grain": logging.ERROR,
}
QUIET_WARNINGS = (
    "Error (reading|writing) persistent compilation cache",  # for each program, if the disk is full: it costs time only
    "coroutine .* was never awaited",  # of Orbax, after the error that a failed write raises
)

GOOGLE = "0x1ae0"  # PCI vendor of TPUs, but also of virtual disks and network cards, which have these classes:
STORAGE_AND_NETWORK = ("0x01", "0x02")
GPU_PLATFORMS = ("gpu", "cuda", "rocm")

# What XLA needs at least; it aborts the process where it gets less.
NUM_THREADS, NUM_THREADS_PER_CORE = 32, 4  # with those of a run and of the tokenizer
ADDRESS_SPACE = 4 * 10**9  # bytes


def prepare(*, keep_programs: bool = True) -> None:
    """Call it before JAX compiles anything; calling it again changes nothing.

    Args:
      keep_programs: keep compiled programs in JAX_COMPILATION_CACHE_DIR, or in ~/.cache/tpt_jax/compilations. False for
        programs of absent devices, which cannot be loaded again.

    Raises:
      UserError: JAX_PLATFORMS names a platform that this machine or this installation lacks.
      MachineError: the limits of threads or memory are too low.
    """
    streams.open_missing()  # XLA writes its own messages to standard error
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or its import warns that PyTorch is missing
    for name, level in QUIET_LOGGERS.items():
        if logging.getLogger(name).level == logging.NOTSET:  # unless the user has set one
            logging.getLogger(name).setLevel(level)
    for message in QUIET_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    _check_limits()
    _choose_platform()
    if keep_programs:
        _keep_programs()
    else:
        jax.config.update("jax_enable_compilation_cache", False)


def may_have_tpu(root: Path = Path("/")) -> bool:
    """Whether this machine shows any sign of a TPU. Without one, libtpu looks for it for seconds, and complains.

    Args:
      root: of the file system.
    """
    if os.environ.get("JAX_FORCE_TPU_INIT") or any(root.glob("dev/accel*")) or any(root.glob("dev/vfio/[0-9]*")):
        return True
    return any(
        vendor.read_text().strip() == GOOGLE
        and not vendor.with_name("class").read_text().startswith(STORAGE_AND_NETWORK)
        for vendor in root.glob("sys/bus/pci/devices/*/vendor")
    )


@functools.cache
def _check_limits() -> None:
    """Checks the limit of memory, and starts and ends as many threads as will be needed.

    Raises:
      MachineError: there is too little.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE:
        raise MachineError(f"the limit of memory is {limit / 1e9:.1f} GB, and JAX needs 4 GB; raise it (ulimit -v)")
    number = NUM_THREADS + NUM_THREADS_PER_CORE * (os.cpu_count() or 1)
    is_over = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for _ in range(number):
            thread = threading.Thread(target=is_over.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError as error:
        raise MachineError(
            f"only {len(threads)} of {number} threads could be started ({error}); raise the limit of processes (ulimit "
            "-u, or that of the container)"
        ) from error
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _choose_platform() -> None:
    """Leaves out TPUs where there are none, if JAX is free to choose; otherwise checks what it was told to use."""
    plugins = {entry.name for entry in metadata.entry_points(group="jax_plugins")}
    has_cuda = any(name.startswith("xla_cuda") for name in plugins)
    told: str | None = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if told:
        for name in told.split(","):
            _check_platform(told, name, plugins)
    elif importlib.util.find_spec("libtpu") is not None and not may_have_tpu():
        if not plugins:
            jax.config.update("jax_platforms", "cpu")
        elif has_cuda and len(plugins) == 1:
            jax.config.update("jax_platforms", "cuda,cpu")  # JAX skips cuda where there is no GPU


def _check_platform(told: str, name: str, plugins: set[str]) -> None:
    """Checks that JAX can start a platform of those that it was told to use, as far as is known before it tries.

    Raises:
      UserError: it cannot.
    """
    setting, fix = f"JAX_PLATFORMS ({told})", "or unset it, and JAX takes the best that there is"
    if name == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise UserError(f"{setting}: libtpu is not installed; run: pip install 'tpt_jax[tpu]', {fix}")
    if name == "tpu" and not may_have_tpu():
        raise UserError(f"{setting}: this machine shows no TPU; write cpu, {fix}")
    if name in GPU_PLATFORMS and not plugins:
        raise UserError(f"{setting}: JAX's GPU plugin is not installed; run: pip install 'tpt_jax[cuda]', {fix}")
    if name not in ("cpu", "tpu", "proxy", *GPU_PLATFORMS) and not plugins:  # proxy: TPUs through Pathways
        raise UserError(f"{setting}: JAX has no platform {name!r}; write cpu, gpu or tpu, {fix}")


def _keep_programs() -> None:
    """Keeps compiled programs on disk; without a place for them, every process compiles its own."""
    enabled: bool = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    if not enabled or jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        folder = Path.home() / ".cache" / "tpt_jax" / "compilations"
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "no permission to write")
    except (OSError, RuntimeError) as error:  # a RuntimeError: nobody's home
        reason = error.strerror if isinstance(error, OSError) else "no home folder"
        say(f"compiled programs are not kept ({reason}); set JAX_COMPILATION_CACHE_DIR to a folder for them")
        jax.config.update("jax_enable_compilation_cache", False)
    else:
        jax.config.update("jax_compilation_cache_dir", str(folder))
