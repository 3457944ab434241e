"""Counts XLA compilations; after a run's first round there should be none."""

import functools
from typing import Any

import jax

BACKEND_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompilationCounter:
    """Counts the compilations in this process from construction on; hits of the persistent cache count too."""

    def __init__(self) -> None:
        self._start = self._taken = _totals()["count"]
        self._start_seconds = _totals()["seconds"]

    @property
    def count(self) -> int:
        return int(_totals()["count"] - self._start)

    @property
    def seconds(self) -> float:
        return _totals()["seconds"] - self._start_seconds

    def take(self) -> int:
        """The number of compilations since the last call, or since construction."""
        taken, self._taken = self._taken, _totals()["count"]
        return int(self._taken - taken)


@functools.cache
def _totals() -> dict[str, float]:
    """The process's totals, from the first call on: JAX cannot remove a listener, so there is one for all counters."""
    totals = {"count": 0.0, "seconds": 0.0}

    def on_event(event: str, duration_secs: float, **_: Any) -> None:
        if event == BACKEND_COMPILE_EVENT:
            totals["count"] += 1
            totals["seconds"] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(on_event)
    return totals
