"""Curves and figures: metrics.jsonl is the record; TensorBoard, trackers and the terminal show it."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import rich.box
from rich.table import Table

from tpt_jax.config import TrackersConfig
from tpt_jax.io.files import checked_line, naming, write_pieces
from tpt_jax.io.paths import AnyPath, Path, copy, is_remote, to_path
from tpt_jax.loop.events import EventFiles, remove_events
from tpt_jax.loop.run_folder import read_log_lines
from tpt_jax.loop.trackers import Trackers
from tpt_jax.terminal import say

SECONDS_BETWEEN_UPLOADS = 30.0
MAX_SHARE_OF_UPLOADS = 0.05  # of a run's time, however long its curves have become


class MetricsLog:
    """Writes one JSON line per step or round, and the same numbers to TensorBoard and, on request, trackers.

    Files in a bucket cannot be appended to: they are written on a local disk and copied there from time to time.
    """

    def __init__(
        self,
        path: AnyPath,
        *,
        name: str,
        trackers: TrackersConfig,
        is_kept: Callable[[dict], bool],
        on_line: Callable[[], None] = lambda: None,
    ):
        """Opens the log of a run.

        Args:
          is_kept: whether to keep a line of a killed process; False for steps that will be repeated.
          on_line: called after each line.
        """
        self._on_line = on_line
        self._target = to_path(path)
        self._is_remote = is_remote(self._target)
        self._folder = to_path(tempfile.mkdtemp()) if self._is_remote else self._target.parent
        self._folder.mkdir(parents=True, exist_ok=True)
        self._events = EventFiles(self._folder / "tensorboard")
        last = None
        local = self._folder / self._target.name
        if self._target.is_file():
            if self._is_remote:
                write_pieces(local, _texts(self._target))
            last = self._resume(local, is_kept)
        self._file = open(local, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._next_upload = time.monotonic() + SECONDS_BETWEEN_UPLOADS
        self._trackers = Trackers(trackers, self._target.parent, name=name, files=self._folder, last=last)
        self._trackers.catch_up(line for _, line in read_log_lines(local) if line is not None)

    def _resume(self, path: Path, is_kept: Callable[[dict], bool]) -> dict | None:
        """Drops lines that will be repeated, and draws the rounds anew that lost some or have not ended.

        Returns:
          The last line before that.
        """
        last: dict | None = None
        dropped: set[int] = set()  # indices of lines
        is_cut = False  # the last line lacks its end
        starts: dict[int, int] = {}  # the first line of each round, among those that stay
        lost: set[int] = set()  # rounds
        ended: set[int] = set()
        num_changed = 0
        for index, (text, line) in enumerate(read_log_lines(path)):
            last = line or last
            is_cut = not text.endswith(b"\n")
            if line is not None and is_kept(line):
                starts.setdefault(line["round"], index - len(dropped))
                if line["phase"] == "round":
                    ended.add(line["round"])
            else:
                num_changed += line is None and not is_cut
                dropped.add(index)
                lost.update([line["round"]] if line is not None and "round" in line else [])
        if dropped or is_cut:
            write_pieces(path, (text for index, text in enumerate(_texts(path)) if index not in dropped))
        if num_changed:
            say(f"{path}: {num_changed} lines were changed since they were written; the curves lack them")
        again = lost | (starts.keys() - ended)
        remove_events(self._target.parent / "tensorboard", again)
        first = min((starts[index] for index in again & starts.keys()), default=None)
        if first is not None:
            for _, line in read_log_lines(path, first):
                if line is not None and line["round"] in again:
                    self._events.write(line)
        return last

    def log(self, round_index: int, phase: str, step: int, values: Mapping[str, float]) -> None:
        """One line of scalars; `step` counts within the round and phase."""
        line = {"time": time.time(), "round": round_index, "phase": phase, "step": step, **values}
        with naming(self._folder / "tensorboard"):
            self._events.write(line)  # first: a round whose last line is in the record has all its events
        with naming(self._folder / self._target.name):
            self._file.write(checked_line(line))
        self._trackers.log(line)
        if phase == "round" or time.monotonic() > self._next_upload:
            self._upload()
        self._on_line()

    def close(self) -> None:
        with naming(self._folder):
            self._file.close()
            self._events.close()
        self._upload()
        self._trackers.close()
        if self._is_remote:
            self._folder.rmtree()

    def _upload(self) -> None:
        if not self._is_remote:
            return
        started = time.monotonic()
        copy(self._folder, self._target.parent)
        pause = max(SECONDS_BETWEEN_UPLOADS, (time.monotonic() - started) / MAX_SHARE_OF_UPLOADS)
        self._next_upload = time.monotonic() + pause


def _texts(path: Path) -> Iterator[str]:
    """The lines of a log, each with its end; a killed process may have left bytes that are no text."""
    with path.open("rb") as lines:
        yield from (text.decode("utf-8", errors="replace").removesuffix("\n") + "\n" for text in lines)


def round_table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    """The rounds so far, for the terminal; rates in percent. "~" marks an estimate from first samples only."""
    k = rounds[0]["k"]
    table = _table("round", "Pass@1", "95%", f"Pass@{k}", f"Maj@{k}", "strict", "sampled", "correct", "kept", "time")
    for metrics in rounds:
        low, high = metrics["intervals"]["pass_at_1"]
        train_rate = metrics.get("train_pass_at_1")
        table.add_row(
            str(metrics["round"]),
            f"{100 * metrics['pass_at_1']:.1f}",
            f"± {50 * (high - low):.1f}",
            f"{100 * metrics['pass_at_k']:.1f}",
            "–" if metrics["maj_at_k"] is None else f"{100 * metrics['maj_at_k']:.1f}",
            f"{100 * metrics['strict_pass_at_1']:.1f}",
            str(metrics["num_traces"] or "–"),
            "–" if train_rate is None else f"{'~' * metrics['train_is_estimate']}{100 * train_rate:.1f}",
            str(metrics["num_kept"] or "–"),
            f"{sum(metrics['seconds'].values()):.0f} s",
        )
    return table


def monitor_table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    """What the rounds so far did to the model's variety, for the terminal; see loop/monitors.py."""
    table = _table("round", "change", "95%", "won", "lost", "answers", "equations", "entropy", "tokens")
    for metrics in rounds:
        mean, low, high = metrics["paired"].get("pass_at_1", (None, None, None))
        table.add_row(
            str(metrics["round"]),
            "–" if mean is None else f"{100 * mean:+.1f}",
            "–" if mean is None else f"{100 * low:+.1f} to {100 * high:+.1f}",
            str(metrics["num_won"]) if mean is not None else "–",
            str(metrics["num_lost"]) if mean is not None else "–",
            f"{100 * metrics['distinct_answers']:.0f}",
            f"{100 * metrics['distinct_calculations']:.0f}",
            f"{metrics['mean_token_entropy']:.3f}",
            f"{metrics['mean_tokens']:.0f}",
        )
    return table


def _table(*headings: str) -> Table:
    table = Table(box=rich.box.SIMPLE, padding=(0, 1, 0, 0))  # ten columns fit into 80 characters
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
