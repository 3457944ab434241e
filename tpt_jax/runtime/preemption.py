"""Preemption: a machine about to be taken away sends SIGTERM, and disappears seconds later.

A single process stops at once, since every file it writes is complete or absent. While it holds state worth
saving, it polls `should_stop` between steps instead. Several hosts must stop at the same step; JAX's preemption service
agrees on it.
"""

import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from tpt_jax.errors import Stopped

# Signals are per process, and so are these.
_requested = threading.Event()
_deferred = threading.Event()  # the running code polls should_stop
_steps = itertools.count()


def listen() -> None:
    """Treats SIGTERM as a request to stop; on several hosts JAX itself listens."""
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, _on_signal)


@contextlib.contextmanager
def defer() -> Iterator[None]:
    """While the body runs, a request to stop waits until the body polls `should_stop`."""
    _deferred.set()
    try:
        yield
    finally:
        _deferred.clear()


def should_stop() -> bool:
    """Whether to save and stop now; every host polls at every step, in the same order."""
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(next(_steps))
    return _requested.is_set()


def _on_signal(number: int, frame: FrameType | None) -> None:
    _requested.set()
    if not _deferred.is_set():
        raise Stopped
