"""Prepares JAX for this process: caches compiled programs between runs, and keeps libraries quiet."""

import logging
import os
from pathlib import Path

import jax

QUIET_LOGGERS = ("absl", "jax", "orbax", "grain")


def prepare(*, keep_programs: bool = True) -> None:
    """Call it before JAX compiles anything; calling it again changes nothing.

    Args:
      keep_programs: keep compiled programs in JAX_COMPILATION_CACHE_DIR, or in ~/.cache/tpt_jax/compilations. False for
        programs of absent devices, which cannot be loaded again.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or its import warns that PyTorch is missing
    for name in QUIET_LOGGERS:
        if logging.getLogger(name).level == logging.NOTSET:  # unless the user has set one
            logging.getLogger(name).setLevel(logging.ERROR)
    if not keep_programs:
        jax.config.update("jax_enable_compilation_cache", False)
    elif jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        cache = Path.home() / ".cache" / "tpt_jax" / "compilations"
        jax.config.update("jax_compilation_cache_dir", str(cache))
