"""Published data sets through tensorflow-datasets: downloaded once, kept as array_record files, read with grain."""

import contextlib
import functools
import hashlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from tpt_jax.errors import UserError
from tpt_jax.terminal import say

Name = Literal["gsm8k", "math", "mbpp"]


def read_builder(
    name: Name, split: str, manual_dir: Path | None = None, data_dir: Path | None = None
) -> list[dict[str, Any]]:
    """The examples of a split, in the order and with the fields that they are published with.

    Args:
      manual_dir: holds the raw files as they are published: nothing is downloaded.
      data_dir: where the array_record files are kept; None for where tensorflow-datasets keeps its own
        ($TFDS_DATA_DIR or ~/tensorflow_datasets).

    Raises:
      UserError: no raw files, no network, or files that are not what they should be.
    """
    # Slow to import, and grain imports JAX: only when it is used.
    import grain
    import tensorflow_datasets as tfds

    from tpt_jax.tasks.builders.gsm8k import TptGsm8k
    from tpt_jax.tasks.builders.math import TptMath
    from tpt_jax.tasks.builders.mbpp import TptMbpp

    kind = {"gsm8k": TptGsm8k, "math": TptMath, "mbpp": TptMbpp}[name]
    config = None
    if manual_dir is not None:
        manual_dir = manual_dir.expanduser()
        _check_files(manual_dir, kind.FILES, kind.SOURCE)
        # Known by what is in them: other files in the same folder are another data set, not the one that is kept.
        config = tfds.core.BuilderConfig(name=f"manual_{_digest(manual_dir, kind.FILES)}")
    make = functools.partial(kind, data_dir=data_dir, config=config, file_format="array_record")
    try:
        with _quietly():
            builder = make()
            if not builder.is_prepared():
                say(f"{name}: making array_record files of {manual_dir or kind.SOURCE} in {builder.data_dir}")
                builder = _prepared(make, tfds.download.DownloadConfig(manual_dir=manual_dir))
            source: Any = builder.as_data_source(split=split)
    except UserError:
        raise
    except Exception as error:  # of many kinds: no network, a proxy, a full disk, other bytes than expected
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name}: tensorflow-datasets could not make it of {manual_dir or kind.SOURCE} ({reason}); put "
            f"{' and '.join(kind.FILES)} from {kind.SOURCE} into a folder and set task.manual_dir to it"
        ) from error
    examples: Any = grain.MapDataset.source(source).map(_plain)
    return [examples[index] for index in range(len(examples))]


def refuse_both(folder: Path | None, manual_dir: Path | None) -> None:
    """For a task's config, which may name one place for the published files.

    Raises:
      UserError: it names two.
    """
    if folder is not None and manual_dir is not None:
        raise UserError("task.folder and task.manual_dir: both are given; give one")


def _prepared(make: Callable[[], Any], config: Any) -> Any:
    """A builder with its files made: by us, or by another process of the run that was quicker."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder = make()
    try:
        builder.download_and_prepare(download_config=config)
    except Exception:
        builder = make()
        if not builder.is_prepared():
            raise
    return builder


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Libraries tell what they do on standard output, and warn of what a first time and a retry always bring."""
    loggers = [logging.getLogger(name) for name in ("absl", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_files(folder: Path, files: Iterable[str], source: str) -> None:
    for name in files:
        if not (folder / name).exists():
            raise UserError(
                f"{folder / name}: no such file; put {' and '.join(files)} from {source} there, or leave out "
                "task.manual_dir to download"
            )


def _digest(folder: Path, files: Iterable[str]) -> str:
    """What the files, and those in folders, are known by."""
    hashed = hashlib.sha256()
    for name in files:
        top = folder / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                hashed.update(f"{path.relative_to(folder)} {content}\n".encode())
    return hashed.hexdigest()[:16]


def _plain(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example with plain values, for the library gives bytes and NumPy's own."""
    return {key: _plain_value(value) for key, value in example.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, list):
        return [_plain_value(item) for item in value]
    return _plain_value(value.tolist()) if hasattr(value, "tolist") else value
