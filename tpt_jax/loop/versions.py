"""Which version of a model or a data set by name a run uses: the one that it found when it started."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from tpt_jax.checkpoints.model_names import current_version
from tpt_jax.config import RunConfig
from tpt_jax.io.hub import find_commit
from tpt_jax.io.paths import Path
from tpt_jax.loop.run_folder import has_results, read_config
from tpt_jax.runtime import hosts
from tpt_jax.tasks import FileConfig


def with_version(config: RunConfig, path: Path) -> RunConfig:
    """The config of a run or an evaluation in a folder, with the versions of its model and data sets.

    All hosts call it together.

    Raises:
      UserError, MachineError: see `with_versions`.
    """
    return with_versions([config], lambda: [read_config(path / "config.yaml") if has_results(path) else None])[0]


def with_versions(
    configs: Sequence[RunConfig], read_started: Callable[[], Sequence[RunConfig | None]]
) -> list[RunConfig]:
    """Configs with the versions of their models and data sets: those given, those of started runs, or the present ones.

    All hosts call it together; the first one reads and asks for all.

    Args:
      read_started: reads what each run was started with; None for a new one.

    Raises:
      UserError: a model or data set does not exist, or cannot be read; or a run's config cannot be.
      MachineError: the Hugging Face Hub or Kaggle cannot be reached.
    """
    find = functools.cache(current_version)
    find_data = functools.cache(find_commit)

    def model(config: RunConfig, started: RunConfig | None) -> str | None:
        if config.model.version is not None:
            return config.model.version
        if started is not None and started.model.path == config.model.path and started.model.version is not None:
            return started.model.version
        return find(config.model.path)

    def data(config: RunConfig, started: RunConfig | None) -> dict[str, str]:
        if not isinstance(config.task, FileConfig):
            return {}
        known = dict(started.task.versions) if started is not None and isinstance(started.task, FileConfig) else {}
        known |= config.task.versions
        names = {split.name.repository: split.name for split in config.task.hub_splits()}
        return {repository: known.get(repository) or find_data(name) for repository, name in names.items()}

    def find_all() -> list[tuple[str | None, dict[str, str]]]:
        pairs = zip(configs, read_started(), strict=True)
        return [(model(config, started), data(config, started)) for config, started in pairs]

    found = hosts.broadcast("versions of models and data sets", find_all)
    return [_with(config, *versions) for config, versions in zip(configs, found, strict=True)]


def _with(config: RunConfig, model: str | None, data: Mapping[str, str]) -> RunConfig:
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, version=model))
    if isinstance(config.task, FileConfig):
        config = dataclasses.replace(config, task=dataclasses.replace(config.task, versions=data))
    return config
