"""Counts XLA compilations; a run must not compile anything after its first round."""

from typing import Any

import jax

BACKEND_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompilationCounter:
    """Counts XLA compilations in this process since construction, including hits of the persistent cache."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self._taken = 0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def take(self) -> int:
        """Number of compilations since the last call, or since construction."""
        new = self.count - self._taken
        self._taken = self.count
        return new

    def _on_event(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == BACKEND_COMPILE_EVENT:
            self.count += 1
            self.seconds += duration_secs
