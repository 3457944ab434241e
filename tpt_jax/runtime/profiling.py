"""Profiles: what host and devices did during some steps, for XProf (or TensorBoard's profile plugin) and Perfetto."""

import gzip
import json
import tempfile
from types import TracebackType
from typing import Self

import jax

from tpt_jax.io.paths import Path, copy, is_remote, to_path
from tpt_jax.terminal import say

PYTHON_TRACER_OFF = 0  # each call of a Python function would be in the trace: larger, and slower to take


class Profile:
    """A trace of consecutive steps of a stage, which ends with the `with` block at the latest.

    XProf reads FOLDER/plugins/profile/NAME; HOST.perfetto.json.gz in it is for Perfetto. Each host writes
    what it and its own devices did. A trace that fails, or cannot be written, does not end the stage.
    """

    def __init__(self, folder: Path, name: str, steps: range):
        """Prepares a trace; an empty range traces nothing."""
        self._folder = folder
        self._name = name
        self._steps = steps
        self._is_waiting = True  # for the first step to trace
        self._local: Path | None = None  # where the trace is written first; None while there is none

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and self._is_waiting and self._steps:
            say(f"profile {self._name}: the stage ended before step {self._steps.start}; nothing was traced")
        self._stop()

    def is_edge(self, step: int) -> bool:
        """Whether the trace starts or ends right before a step; let the steps before it end first."""
        return bool(self._steps) and step in (self._steps.start, self._steps.stop)

    def reach(self, step: int) -> None:
        """Call it before each step is dispatched."""
        if self._local is not None and step not in self._steps:
            self._stop()
        elif self._is_waiting and step in self._steps:
            self._is_waiting = False
            self._start()

    def _start(self) -> None:
        local = to_path(tempfile.mkdtemp()) if is_remote(self._folder) else self._folder
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = PYTHON_TRACER_OFF
        options.session_id = self._name  # on every host: XProf shows them together
        try:
            jax.profiler.start_trace(local, profiler_options=options)
        except Exception as error:
            self._fail(error)
        else:
            self._local = local

    def _stop(self) -> None:
        if self._local is None:
            return
        local, self._local = self._local, None
        session = local / "plugins" / "profile" / self._name
        try:
            jax.profiler.stop_trace()
            for trace in session.glob("*.trace.json.gz"):
                _write_for_perfetto(trace)
            if local != self._folder:
                copy(local, self._folder)
                local.rmtree()
        except Exception as error:
            self._fail(error)
        else:
            say(f"profile: {self._folder / session.relative_to(local)}")

    def _fail(self, error: Exception) -> None:
        say(f"profile {self._name}: {' '.join(str(error).split())}; there is no trace")


def _write_for_perfetto(trace: Path) -> None:
    """Writes a trace without its metadata, which Perfetto does not like (says jax.profiler)."""
    events = json.loads(gzip.decompress(trace.read_bytes()))
    events.pop("metadata", None)
    name = trace.name.removesuffix(".trace.json.gz") + ".perfetto.json.gz"
    (trace.parent / name).write_bytes(gzip.compress(json.dumps(events).encode(), compresslevel=5))
