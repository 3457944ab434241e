"""TensorBoard's event files: one a round, so that the curves of a round that is repeated can be drawn anew."""

import itertools
import re
import time
from collections.abc import Mapping, Set
from typing import Any

from tpt_jax.io.paths import Path

COLUMNS = ("time", "round", "phase", "step")  # of a line of metrics.jsonl, besides the curves
SECONDS_BETWEEN_FLUSHES = 30.0
FILE_OF_ROUND = re.compile(r".*\.round-(\d+)")


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The curves of a line of metrics.jsonl, named by phase and round."""
    phase = line["phase"]
    scope = phase if phase == "round" else f"{phase}/round_{line['round']}"
    return {f"{scope}/{name}": value for name, value in line.items() if name not in COLUMNS}


class EventFiles:
    """Writes lines of metrics.jsonl as events; TensorBoard sees them within half a minute, or when a round ends."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._numbers = itertools.count()  # names differ even within a second
        self._next_flush = 0.0
        self._round: int | None = None
        self._writer: Any = None

    def write(self, line: Mapping[str, Any]) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import scalar

        if line["round"] != self._round:
            self.close()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._round, suffix = line["round"], f".{next(self._numbers)}.round-{line['round']:03}"
            self._writer = EventsWriter(str(self._folder / "events"), suffix)
        for name, value in scalars(line).items():
            self._writer.write_event(Event(wall_time=line["time"], step=line["step"], summary=scalar(name, value)))
        if line["phase"] == "round":
            self.close()
        elif time.monotonic() > self._next_flush:  # each waits for the disk
            self._writer.flush()
            self._next_flush = time.monotonic() + SECONDS_BETWEEN_FLUSHES

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._round = self._writer = None


def remove_events(folder: Path, rounds: Set[int]) -> None:
    """Removes the event files of rounds; those of others stay."""
    for path in folder.glob("events.*"):
        match = FILE_OF_ROUND.fullmatch(path.name)
        if match is not None and int(match[1]) in rounds:
            path.unlink()
