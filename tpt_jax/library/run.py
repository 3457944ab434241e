"""`run`: all rounds of a config, resumed where an earlier process stopped."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpt_jax.config import RunConfig
from tpt_jax.config_parsing import load_config
from tpt_jax.errors import UserError
from tpt_jax.io.paths import Path as RunPath
from tpt_jax.io.paths import folder_name, to_path
from tpt_jax.io.tables import print_table, stdout_console
from tpt_jax.loop.metrics import MetricsLog, monitor_table, round_table
from tpt_jax.loop.recovery import RoundState, make_line_filter, recover
from tpt_jax.loop.room import say_if_short
from tpt_jax.loop.rounds import Loop
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.loop.setup import Workshop
from tpt_jax.loop.sharing import Sharing
from tpt_jax.loop.trackers import require_trackers
from tpt_jax.loop.versions import with_version
from tpt_jax.loop.weights import Weights
from tpt_jax.report.live import PAGE_ERRORS, LivePage
from tpt_jax.report.show import Inline, Report
from tpt_jax.runtime import environment, hosts
from tpt_jax.runtime.one_at_a_time import own_folder

Metrics = Mapping[str, Any]  # a round's figures, as in its metrics.json


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      path: the run folder; `path / "checkpoints" / "003"` is the model after round 3.
      rounds: the figures of each round, from round 0, the base model.
      report: the HTML report; `report.show()` shows it in a notebook.
    """

    path: RunPath
    rounds: tuple[Metrics, ...]
    report: Report


def print_rounds(rounds: Sequence[Metrics]) -> None:
    """Prints tables of the rounds so far to standard output: their rates, and signs of collapse."""
    console = stdout_console()
    print_table(console, round_table(rounds))
    if len(rounds) > 1:
        print_table(console, monitor_table(rounds))


def run(
    config: RunConfig | str | os.PathLike[str],
    *,
    run_dir: str | os.PathLike[str] | None = None,
    on_round: Callable[[Sequence[Metrics]], None] = print_rounds,
    show_report: bool = False,
    **overrides: Any,
) -> Run:
    """Thinks, prunes, trains and evaluates, round after round, as `tpt run`; resumes the run if the folder holds it.

    Args:
      config: a YAML file, or a loaded config.
      run_dir: the run folder, on a disk or gs://BUCKET/...; runs/NAME if not given.
      on_round: called on the first host after every round, with the figures of all rounds so far.
      show_report: show the report in the notebook while the run goes on.
      overrides: keys of the config file: num_rounds=1, train={"rows": 8}.

    Raises:
      UserError: something that the config names is missing or does not fit, or the folder holds another run.
      MachineError: a model has to be downloaded, and cannot be.
      FloatingPointError: a loss, gradient or logit is not finite.
    """
    environment.prepare()
    if not isinstance(config, RunConfig):
        config = load_config(Path(config), overrides)
    elif overrides:
        raise UserError(f"run: {', '.join(overrides)}: a loaded config takes no overrides; give its file instead")
    path = to_path(run_dir or os.path.join("runs", folder_name(config.name)))
    with own_folder(path, "--run_dir"), Workshop() as workshop:
        config = with_version(config, path)
        folder = RunFolder.open(path, config)
        if hosts.is_first():
            require_trackers(config.trackers)  # now, rather than after the compilation
        page = LivePage(folder, Inline()) if show_report else LivePage(folder)
        rounds = run_rounds(config, folder, workshop, on_round, page)
        hosts.barrier("end of the run")
    return Run(folder.path, rounds, Report(folder.report))


def run_rounds(
    config: RunConfig,
    folder: RunFolder,
    workshop: Workshop,
    on_round: Callable[[Sequence[Metrics]], None],
    page: LivePage,
    sharing: Sharing | None = None,
) -> tuple[Metrics, ...]:
    """Runs or resumes all rounds in a run folder, and writes its report; returns the figures of each round.

    Args:
      page: the report, kept up to date on the first host.
      sharing: if the run is part of a sweep.
    """
    if hosts.is_first():
        say_if_short(folder.path, config, workshop.model(config).config)
    setup, trainer = workshop.set_up(config, ("think", "evaluate")), workshop.trainer(config)
    if hosts.is_first():
        folder.begin(config)
    recovered = recover(folder, config)
    if sharing is not None:
        sharing.begin()
    rounds: tuple[Metrics, ...] = ()
    with _live(page), _metrics_log(folder, config, recovered, page) as log:
        for states in Loop(setup, trainer, folder, Weights(setup, folder), log, sharing).run(recovered):
            rounds = tuple(state.metrics for state in states if state.metrics is not None)
            if hosts.is_first():
                on_round(rounds)
                page.write()
    return rounds


@contextlib.contextmanager
def _live(page: LivePage) -> Iterator[None]:
    """Writes the page at the start of a run and at its end, however it ends."""
    if not hosts.is_first():
        yield
        return
    page.write()
    try:
        yield
    except BaseException:
        with contextlib.suppress(*PAGE_ERRORS):  # what ended the run is what the user must see
            page.write(is_last=True)
        raise
    page.write(is_last=True)


@contextlib.contextmanager
def _metrics_log(
    folder: RunFolder, config: RunConfig, states: Sequence[RoundState], page: LivePage
) -> Iterator[MetricsLog | None]:
    """The log on the first host, None on others; the recovered states decide which of its lines stay."""
    if not hosts.is_first():
        yield None
        return
    log = MetricsLog(
        folder.metrics_log,
        name=config.name,
        trackers=config.trackers,
        is_kept=make_line_filter(folder, states),
        on_line=page.update,
    )
    with contextlib.closing(log):
        yield log
