"""A run's report while the run goes on: written again and again, and an open page shows the newest one by itself."""

import dataclasses
import time
from collections.abc import Callable

from tpt_jax.errors import MachineError, UserError
from tpt_jax.io.files import write_atomically
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.report.curves import read_curves
from tpt_jax.report.page import render
from tpt_jax.report.read import Run, read_runs
from tpt_jax.terminal import say

SECONDS_BETWEEN_PAGES = 10.0
PAGE_ERRORS = (UserError, MachineError, OSError)  # why a page cannot be written
MAX_SHARE_OF_PAGES = 0.02  # of a run's time, however long its curves have become


class LivePage:
    """Writes a run's report. Between rounds only the curves are read again: what a round has shown does not change."""

    def __init__(
        self,
        folder: RunFolder,
        on_page: Callable[[str], None] = lambda page: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Writes nothing yet.

        Args:
          on_page: called with each page written.
        """
        self._folder = folder
        self._on_page = on_page
        self._clock = clock
        self._run: Run | None = None
        self._next = 0.0
        self._has_failed = False

    def write(self, *, is_last: bool = False) -> None:
        """Writes the page of all there is; the last one no longer refreshes itself.

        Raises:
          PAGE_ERRORS: a file of the run cannot be read, or the page cannot be written.
        """
        started = self._clock()
        (self._run,) = read_runs([self._folder])
        self._render(self._run, started, is_last=is_last)

    def update(self) -> None:
        """Writes the page with newer curves if it is time to; a page that cannot be written does not end the run."""
        started = self._clock()
        if self._run is None or started < self._next:
            return
        try:
            self._render(dataclasses.replace(self._run, curves=read_curves(self._folder)), started, is_last=False)
        except PAGE_ERRORS as error:
            self._next = started + SECONDS_BETWEEN_PAGES
            if not self._has_failed:
                say(f"report: {error}; trying again until the round ends")
            self._has_failed = True

    def _render(self, run: Run, started: float, *, is_last: bool) -> None:
        page = render([run], refresh_seconds=None if is_last else round(SECONDS_BETWEEN_PAGES))
        write_atomically(self._folder.report, page)
        self._on_page(page)
        now = self._clock()
        self._next = now + max(SECONDS_BETWEEN_PAGES, (now - started) / MAX_SHARE_OF_PAGES)
