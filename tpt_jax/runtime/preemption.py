"""Stopping in time: a machine that is to be taken away sends SIGTERM, and some seconds later it is gone.

A process that is alone stops at once, for whatever it writes is there whole or not at all; but where it has something
to save first, it asks `should_stop` between two steps. Several hosts must stop at the same step: JAX's preemption
service tells each of them which one.
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

_requested = threading.Event()
_saving = threading.Event()  # whoever runs will ask should_stop
_steps = itertools.count()


def listen() -> None:
    """Takes SIGTERM as a request to stop; several hosts have JAX listen."""
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, _on_signal)


@contextlib.contextmanager
def saves_first() -> Iterator[None]:
    """While the body runs, a request to stop waits until the body asks for it."""
    _saving.set()
    try:
        yield
    finally:
        _saving.clear()


def should_stop() -> bool:
    """Whether to save and stop now; every host asks at every step, in the same order."""
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(next(_steps))
    return _requested.is_set()


def _on_signal(number: int, frame: FrameType | None) -> None:
    _requested.set()
    if not _saving.is_set():
        raise Stopped
