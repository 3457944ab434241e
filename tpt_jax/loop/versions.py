"""Which version of a model by name a run uses: the one that it found when it started, whatever has changed since."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from tpt_jax.checkpoints.model_names import current_version
from tpt_jax.config import RunConfig
from tpt_jax.io.paths import Path
from tpt_jax.loop.run_folder import has_results, read_config
from tpt_jax.runtime import hosts


def with_version(config: RunConfig, path: Path) -> RunConfig:
    """The config of a run or an evaluation in a folder, with the version of its model; all hosts call it together.

    Raises:
      UserError, MachineError: see `with_versions`.
    """
    return with_versions([config], lambda: [read_config(path / "config.yaml") if has_results(path) else None])[0]


def with_versions(
    configs: Sequence[RunConfig], read_started: Callable[[], Sequence[RunConfig | None]]
) -> list[RunConfig]:
    """Configs with the versions of their models: those given, else those of the started runs, else the present ones.

    All hosts call it together; the first one reads and asks for all.

    Args:
      read_started: reads what each run was started with; None for a new one.

    Raises:
      UserError: a model does not exist, or cannot be read; or a run's config cannot be.
      MachineError: the Hugging Face Hub or Kaggle cannot be reached.
    """
    find = functools.cache(current_version)

    def version(config: RunConfig, started: RunConfig | None) -> str | None:
        if config.model.version is not None:
            return config.model.version
        if started is not None and started.model.path == config.model.path and started.model.version is not None:
            return started.model.version
        return find(config.model.path)

    found = hosts.broadcast("versions of the models", lambda: [*map(version, configs, read_started())])
    return [
        dataclasses.replace(config, model=dataclasses.replace(config.model, version=version))
        for config, version in zip(configs, found, strict=True)
    ]
