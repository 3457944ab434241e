"""Published data sets through tensorflow-datasets: downloaded once, stored as array_record files, read with grain."""

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


def read_dataset(
    name: Name, split: str, manual_dir: Path | None = None, data_dir: Path | None = None
) -> list[dict[str, Any]]:
    """Reads a split's examples, in their published order and with their published fields.

    Args:
      manual_dir: folder with the published raw files, to convert instead of downloading.
      data_dir: folder for the array_record files; None for tensorflow-datasets' own, $TFDS_DATA_DIR or
        ~/tensorflow_datasets.

    Raises:
      UserError: raw files are missing or invalid, or the download fails.
    """
    # Slow to import, and grain imports JAX, so only when needed.
    import grain
    import tensorflow_datasets as tfds

    from tpt_jax.tasks.builders.gsm8k import TptGsm8k
    from tpt_jax.tasks.builders.math import TptMath
    from tpt_jax.tasks.builders.mbpp import TptMbpp

    builder_class = {"gsm8k": TptGsm8k, "math": TptMath, "mbpp": TptMbpp}[name]
    config = None
    if manual_dir is not None:
        manual_dir = manual_dir.expanduser()
        _check_files(manual_dir, builder_class.FILES, builder_class.SOURCE)
        # Named by content: if the raw files change, they are converted again.
        config = tfds.core.BuilderConfig(name=f"manual_{_checksum(manual_dir, builder_class.FILES)}")
    make_builder = functools.partial(builder_class, data_dir=data_dir, config=config, file_format="array_record")
    try:
        with _quiet_libraries():
            builder = make_builder()
            if not builder.is_prepared():
                say(f"{name}: converting {manual_dir or builder_class.SOURCE} to array_record in {builder.data_dir}")
                builder = _prepare(make_builder, tfds.download.DownloadConfig(manual_dir=manual_dir))
            source: Any = builder.as_data_source(split=split)
    except UserError:
        raise
    except Exception as error:  # of any type: no network, a proxy, a full disk, a wrong checksum
        reason = " ".join(str(error).split())
        files = " and ".join(builder_class.FILES)
        raise UserError(
            f"{name}: tensorflow-datasets failed on {manual_dir or builder_class.SOURCE} ({reason}); put {files} from "
            f"{builder_class.SOURCE} into a folder and set task.manual_dir to it"
        ) from error
    examples: Any = grain.MapDataset.source(source).map(_to_plain_values)
    return [examples[index] for index in range(len(examples))]


def check_one_source(folder: Path | None, manual_dir: Path | None) -> None:
    """Checks that a task's config names at most one folder of published files.

    Raises:
      UserError: it names two.
    """
    if folder is not None and manual_dir is not None:
        raise UserError("task.folder and task.manual_dir: both are set; set one")


def _prepare(make_builder: Callable[[], Any], config: Any) -> Any:
    """A builder whose files are prepared by this process or, if it was faster, by another one of the run."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder = make_builder()
    try:
        builder.download_and_prepare(download_config=config)
    except Exception:
        builder = make_builder()
        if not builder.is_prepared():
            raise
    return builder


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silences libraries that print progress and log warnings about every first download and retry."""
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


def _checksum(folder: Path, files: Iterable[str]) -> str:
    """Checksum of the files' names and contents; a folder among them stands for all files in it."""
    total = hashlib.sha256()
    for name in files:
        root = folder / name
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                total.update(f"{path.relative_to(folder)} {content}\n".encode())
    return total.hexdigest()[:16]


def _to_plain_values(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example with Python's own types instead of bytes and NumPy's."""
    return {key: _plain_value(value) for key, value in example.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, list):
        return [_plain_value(item) for item in value]
    return _plain_value(value.tolist()) if hasattr(value, "tolist") else value
