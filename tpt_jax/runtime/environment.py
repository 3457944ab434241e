"""Prepares JAX for this process: caches compiled programs between runs, and keeps libraries quiet."""

import logging
import os
from pathlib import Path

import jax

# Orbax logs the traceback of a failed background write through absl, and raises the error besides.
QUIET_LOGGERS = {"absl": logging.CRITICAL, "jax": logging.ERROR, "orbax": logging.ERROR, "grain": logging.ERROR}


def prepare(*, keep_programs: bool = True) -> None:
    """Call it before JAX compiles anything; calling it again changes nothing.

    Args:
      keep_programs: keep compiled programs in JAX_COMPILATION_CACHE_DIR, or in ~/.cache/tpt_jax/compilations. False for
        programs of absent devices, which cannot be loaded again.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or its import warns that PyTorch is missing
    for name, level in QUIET_LOGGERS.items():
        if logging.getLogger(name).level == logging.NOTSET:  # unless the user has set one
            logging.getLogger(name).setLevel(level)
    if not keep_programs:
        jax.config.update("jax_enable_compilation_cache", False)
    elif jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        cache = Path.home() / ".cache" / "tpt_jax" / "compilations"
        jax.config.update("jax_compilation_cache_dir", str(cache))
