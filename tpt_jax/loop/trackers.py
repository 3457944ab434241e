"""Trackers: libraries that draw a run's curves beside those of others. The run's own record is metrics.jsonl."""

import contextlib
import importlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any

from tpt_jax.config import TrackersConfig
from tpt_jax.config_parsing import plain_values
from tpt_jax.errors import UserError
from tpt_jax.io.files import write_atomically
from tpt_jax.io.paths import Path
from tpt_jax.loop.events import scalars
from tpt_jax.terminal import say

NOTES = "trackers.json"  # in the run folder: the run's id, and the newest point that each tracker may have had
PHASES = ("think", "train", "evaluate", "round")  # in the order in which a round logs them

NOTHING = ()  # sorts before every place

Line = Mapping[str, Any]  # of metrics.jsonl
Place = tuple[int, int, int]  # of a line in the order of a run: round, phase, step


def require_trackers(config: TrackersConfig) -> None:
    """Imports the libraries of the trackers that a config names; call it before anything that takes time.

    Raises:
      UserError: a library is not installed, or nobody is logged in.
    """
    for library, project in _projects(config).items():
        option = f"trackers.{library} ({project})"
        try:
            module = importlib.import_module(library)
        except ImportError as error:
            raise UserError(f"{option} needs {library}; run: pip install 'tpt_jax[{library}]'") from error
        is_local = os.environ.get("WANDB_MODE") in ("offline", "disabled")
        if library == "wandb" and not is_local and module.api.api_key is None:
            raise UserError(f"{option}: nobody is logged in; run `wandb login`, or set WANDB_MODE=offline")


class Trackers:
    """Sends lines of metrics.jsonl to the trackers of a run.

    A tracker that fails is left out from then on: one line says so, and the run goes on. A resumed run continues the
    same run of the tracker, and sends nothing twice.
    """

    def __init__(self, config: TrackersConfig, folder: Path, *, name: str, files: Path, last: Line | None):
        """Starts the trackers.

        Args:
          folder: the run folder.
          name: the run's name; runs with other seeds may share it.
          files: a folder on a disk for what a tracker stores itself.
          last: the last line of the log, before a resumed run drops those that it will repeat.
        """
        self._runs: dict[str, Any] = {}
        self._new: set[str] = set()  # those that have had nothing of this run yet
        self._sent: dict[str, Place] = {}  # by library: what is not after this has been sent
        projects = _projects(config)
        if not projects:
            return
        notes = folder / NOTES
        noted = json.loads(notes.read_text()) if notes.is_file() else {"id": uuid.uuid4().hex, "sent": {}}
        for library, project in projects.items():
            key = f"{library}/{project}"
            if key not in noted["sent"]:
                self._new.add(library)
                noted["sent"][key] = None
            else:
                places = [tuple(noted["sent"][key] or ()), place(last) if last else ()]
                if max(places):
                    noted["sent"][key] = self._sent[library] = max(places)  # pyright: ignore[reportArgumentType]
        write_atomically(notes, json.dumps(noted) + "\n")
        for library, project in projects.items():
            with self._forgiving(library):
                self._runs[library] = START[library](project, name, noted["id"], str(files))

    def catch_up(self, lines: Iterable[Line]) -> None:
        """Sends the lines of a run so far to the trackers that were named later than these were written."""
        if late := self._new & self._runs.keys():
            for line in lines:
                self._send(line, late)

    def log(self, line: Line) -> None:
        here = place(line)
        self._send(line, {library for library in self._runs if here > self._sent.get(library, NOTHING)})

    def close(self) -> None:
        for library in list(self._runs):
            with self._forgiving(library):
                self._runs.pop(library)
                importlib.import_module(library).finish()  # with run.finish() Trackio would call it again at exit

    def _send(self, line: Line, libraries: Set[str]) -> None:
        values = {**scalars(line), f"{line['phase']}/step": line["step"], "round": line["round"]}
        for library in libraries & self._runs.keys():
            with self._forgiving(library):
                self._runs[library].log(values)

    @contextlib.contextmanager
    def _forgiving(self, library: str) -> Iterator[None]:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # trackio prints; standard output is for results
                yield
        except Exception as error:
            self._runs.pop(library, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"{library}: {reason}; the run goes on without it, and metrics.jsonl has all curves")


def place(line: Line) -> Place:
    """Where a line stands in the order of a run: a later line has a larger place."""
    return line["round"], PHASES.index(line["phase"]), line["step"]


def _projects(config: TrackersConfig) -> dict[str, str]:
    """The projects by library, of those that are named."""
    return {library: project for library, project in plain_values(config).items() if project is not None}


def _start_wandb(project: str, name: str, run_id: str, files: str) -> Any:
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb.init(project=project, name=name, dir=files, id=run_id, resume="allow")
    for phase in PHASES:
        run.define_metric(f"{phase}/*", step_metric="round" if phase == "round" else f"{phase}/step")
    return run


def _start_trackio(project: str, name: str, run_id: str, files: str) -> Any:
    import trackio  # pyright: ignore[reportMissingImports]

    # Trackio knows a run by its name only.
    return trackio.init(project=project, name=f"{name}-{run_id[:8]}", resume="allow", embed=False)


START: Mapping[str, Callable[[str, str, str, str], Any]] = {"wandb": _start_wandb, "trackio": _start_trackio}
