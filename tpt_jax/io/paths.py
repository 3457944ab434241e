"""Paths of a run's folder: on a disk, or in a bucket, as etils' epath reads and writes it."""

import os
import pathlib

from etils import epath

Path = epath.Path
AnyPath = pathlib.Path | epath.Path  # a caller's own will do


def to_path(name: str | os.PathLike[str]) -> Path:
    """A path from what the user wrote: a folder or a file, or "gs://BUCKET/..."."""
    return epath.Path(name).expanduser()


def is_remote(path: AnyPath) -> bool:
    """Whether it is an object in a bucket: written whole or not at all by itself, and never appended to or renamed."""
    return "://" in os.fspath(path)


def copy(source: AnyPath, target: AnyPath) -> None:
    """Copies a file, or a folder with all in it, from whatever file system to whatever other one."""
    for path in files_below(to_path(source)) if source.is_dir() else [to_path(source)]:
        to = to_path(target) / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(path.read_bytes())


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and in those inside it; none where there is no such folder."""
    # Not by walk: in a bucket that gives paths without its name.
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for each in inside for path in (files_below(each) if each.is_dir() else [each])]
