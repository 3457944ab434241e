"""Paths on a disk or in a bucket, through etils' epath."""

import os
import pathlib

from etils import epath

from tpt_jax.errors import UserError

Path = epath.Path
MAX_FOLDER_NAME = 255  # bytes, on common file systems
AnyPath = pathlib.Path | epath.Path  # callers may pass either


def to_path(name: str | os.PathLike[str]) -> Path:
    """A path from user input: a local path, with ~ expanded, or "gs://BUCKET/..."."""
    return epath.Path(name).expanduser()


def is_remote(path: AnyPath) -> bool:
    """Whether the path is in a bucket: writes there are atomic, and objects cannot be appended to or renamed."""
    return "://" in os.fspath(path)


def folder_name(name: str, option: str = "--run_dir") -> str:
    """The name of a run or sweep, if its folder can have it too.

    Args:
      option: that names a folder otherwise.

    Raises:
      UserError: it would be a folder somewhere else, or none.
    """
    if name in (".", "..") or "/" in name or len(name.encode()) > MAX_FOLDER_NAME:
        raise UserError(f"name ({name!r:.80}): cannot be a folder's name; give {option} too, or another name")
    return name


def size(path: AnyPath) -> int:
    """Bytes of a file."""
    return to_path(path).stat().length if is_remote(path) else os.path.getsize(path)


def modified_at(path: AnyPath) -> float:
    """When a file was last written, in seconds since 1970."""
    # Not with epath's stat on a disk: it fails if the file's owner has no name on this machine, as in containers.
    return to_path(path).stat().mtime if is_remote(path) else os.path.getmtime(path)


def copy(source: AnyPath, target: AnyPath) -> None:
    """Copies a file, or a folder with everything in it, from any file system to any other."""
    for path in files_below(to_path(source)) if source.is_dir() else [to_path(source)]:
        destination = to_path(target) / path.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_bytes(path.read_bytes())


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders, sorted; none if there is no such folder."""
    # Not with epath's walk: in a bucket it gives paths without the bucket's name.
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for entry in entries for path in (files_below(entry) if entry.is_dir() else [entry])]
