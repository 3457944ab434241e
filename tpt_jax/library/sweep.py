"""`sweep`: all runs of a plan in one process, resumed where an earlier process stopped."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpt_jax.config import RunConfig
from tpt_jax.config_parsing import plain_values, read_tree
from tpt_jax.errors import UserError
from tpt_jax.io.paths import Path as SweepPath
from tpt_jax.io.paths import folder_name, to_path
from tpt_jax.io.tables import print_table, stdout_console
from tpt_jax.library.run import run_rounds
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.loop.setup import Workshop
from tpt_jax.loop.sharing import SharedStages, Sharing
from tpt_jax.loop.sweep_plan import Arm, Settings, SweepFolder, SweepPlan, make_plan
from tpt_jax.loop.trackers import require_trackers
from tpt_jax.loop.versions import with_versions
from tpt_jax.report.live import LivePage
from tpt_jax.report.show import Report
from tpt_jax.report.sweep_page import write_sweep_report
from tpt_jax.report.sweep_read import ArmResult, SweepResult
from tpt_jax.report.sweep_words import findings, sweep_table
from tpt_jax.runtime import environment, hosts
from tpt_jax.runtime.one_at_a_time import own_folder
from tpt_jax.terminal import percent, say

FILE_WIDTH = 160  # characters of a printed line, where no terminal sets it

Failures = Mapping[tuple[str, int], str]  # by arm and seed


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
      path: the sweep's folder; `path / "arms" / ARM / "seed-0"` is a run folder.
      arms: the results, in the order of the plan; the others are compared with the first. Only on the first host.
      failures: why runs failed, by arm and seed; the same call tries them again.
      report: the HTML report; `report.show()` shows it in a notebook.
    """

    path: SweepPath
    arms: tuple[ArmResult, ...]
    failures: Failures
    report: Report


def print_sweep(result: SweepResult) -> None:
    """Prints the table of the arms so far to standard output, and at the end what they show."""
    console = stdout_console(FILE_WIDTH)
    print_table(console, sweep_table(result))
    if all(arm.is_done or arm.failures for arm in result.arms):
        for sentence in findings(result):
            console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def sweep(
    config: RunConfig | str | os.PathLike[str],
    *,
    vary: Mapping[str, Sequence[Any]] | None = None,
    arms: Mapping[str, Settings] | None = None,
    seeds: int | None = None,
    sweep_dir: str | os.PathLike[str] | None = None,
    on_arm: Callable[[SweepResult], None] = print_sweep,
    **overrides: Any,
) -> Sweep:
    """Runs configs that differ in some settings, each with several seeds, as `tpt sweep`; resumes a folder that exists.

    The first arm is what the others are compared with. A stage whose inputs are equal to those of one that an earlier
    run has done is taken over from there; the results are those of separate runs. If keep_checkpoints has removed a
    checkpoint by then, it is trained again.

    Args:
      config: a YAML file, which may have a section `sweep`, or a loaded config.
      vary: the values of each key, by its dotted name: {"train.rows": [8, 16]}; every combination is an arm.
      arms: settings of arms by name, {"control": {"prune.steps": ["any"]}}; each with every combination of `vary`.
      seeds: runs of each arm, from the config's seed on; the file's number, or 1, if not given.
      sweep_dir: the sweep's folder, on a disk or gs://BUCKET/...; sweeps/NAME if not given.
      on_arm: called on the first host after every arm, with the results so far.
      overrides: keys of the config file for all arms: num_rounds=1, train={"rows": 8}.

    Raises:
      UserError: an arm's config is invalid, or names something that is missing; or the folder holds another sweep.
        Nothing is computed before all arms are checked. Once runs have started, one that fails (nothing to train on, a
        loss that is not finite) is noted, and the others go on; on several hosts it ends the sweep.
    """
    environment.prepare()
    tree = plain_values(config) if isinstance(config, RunConfig) else read_tree(Path(config))
    plan = make_plan(tree, overrides, vary=vary, arms=arms, seeds=seeds)
    path = to_path(sweep_dir or os.path.join("sweeps", folder_name(plan.name, "--sweep_dir")))
    result, failures = None, {}
    with own_folder(path, "--sweep_dir"), Workshop() as workshop:
        plan = with_recorded_versions(plan, SweepFolder(path))
        folder = SweepFolder.open(path, plan)
        unfinished = hosts.broadcast("unfinished runs", lambda: _unfinished(folder, plan))
        _set_up_all([arm for arm in plan.arms if unfinished[arm.name]], workshop)
        if hosts.is_first():
            folder.begin(plan)
        stages = _finished_stages(folder, plan)
        for arm in plan.arms:
            for seed in unfinished[arm.name]:
                run_folder = RunFolder(folder.run(arm, seed))
                message = _try_to_run(plan.run_config(arm, seed), run_folder, workshop, stages)
                if message is not None:
                    failures[arm.name, seed] = message
            if hosts.is_first() and (unfinished[arm.name] or arm is plan.arms[-1]):
                result = write_sweep_report(folder, plan, failures)
                on_arm(result)
        hosts.barrier("end of the sweep")
    return Sweep(folder.path, result.arms if result else (), failures, Report(folder.report))


def with_recorded_versions(plan: SweepPlan, folder: SweepFolder) -> SweepPlan:
    """The plan with the versions of the arms' models, those of the sweep if it has started."""

    def read_started() -> list[RunConfig | None]:
        has_started = folder.plan_file.is_file() and folder.has_results()
        started = {arm.name: arm.config for arm in folder.read_plan().arms} if has_started else {}
        return [started.get(arm.name) for arm in plan.arms]

    configs = with_versions([arm.config for arm in plan.arms], read_started)
    arms = (dataclasses.replace(arm, config=config) for arm, config in zip(plan.arms, configs, strict=True))
    return dataclasses.replace(plan, arms=tuple(arms))


def _unfinished(folder: SweepFolder, plan: SweepPlan) -> dict[str, list[int]]:
    """The seeds whose runs are not finished, by arm."""

    def is_finished(arm: Arm, seed: int) -> bool:
        return RunFolder(folder.run(arm, seed)).is_finished(arm.config)

    return {arm.name: [seed for seed in plan.seeds if not is_finished(arm, seed)] for arm in plan.arms}


def _set_up_all(arms: Sequence[Arm], workshop: Workshop) -> None:
    """Reads and compiles what the arms need, so that a mistake in the last one is found before the first one starts."""
    for arm in arms:
        try:
            if hosts.is_first():
                require_trackers(arm.config.trackers)
            workshop.set_up(arm.config, ("think", "evaluate"))
            workshop.trainer(arm.config)
        except UserError as error:
            raise UserError(f"arm {arm.name!r}: {error}") from error


def _finished_stages(folder: SweepFolder, plan: SweepPlan) -> SharedStages:
    """The stages that earlier processes finished."""
    stages = SharedStages()
    if hosts.is_first():
        for arm in plan.arms:
            for seed in plan.seeds:
                stages.add_run(RunFolder(folder.run(arm, seed)))
    return stages


def _try_to_run(config: RunConfig, folder: RunFolder, workshop: Workshop, stages: SharedStages) -> str | None:
    """Runs or resumes one run; the message if it fails by its own settings."""
    say(f"{config.name}: {folder.path}")

    def show(rounds: Sequence[Mapping[str, Any]]) -> None:
        say(f"{config.name}: round {rounds[-1]['round']}: Pass@1 {percent(rounds[-1]['pass_at_1'])}")

    try:
        with own_folder(folder.path, "--sweep_dir"):
            run_rounds(config, folder, workshop, show, LivePage(folder), Sharing(stages, folder, config))
    except (UserError, FloatingPointError) as error:
        if hosts.count() > 1:  # the others may not have failed here
            raise
        say(f"{config.name}: failed: {error}")
        return str(error)
    return None
