"""JSON files of a checkpoint, and what to do about one that was not downloaded whole."""

import json
from typing import Any

from tpt_jax.errors import UserError
from tpt_jax.io.paths import AnyPath

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how such a file begins (git-lfs docs/spec.md)


def check_downloaded(path: AnyPath) -> None:
    """Raises UserError if the file is empty, or git-lfs has left a pointer in place of its contents."""
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if not start:
        raise UserError(f"{path}: is empty; download the file again")
    if start == LFS_POINTER:
        raise UserError(f"{path}: is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder")


def read_json_object(path: AnyPath) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      UserError: the file holds something else, for example because the download was cut off.
    """
    check_downloaded(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
        raise UserError(f"{path}: not JSON ({error}); download the file again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must be a JSON object, not {type(value).__name__}; download the file again")
    return value
