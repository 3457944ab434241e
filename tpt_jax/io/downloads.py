"""Files of a checkpoint that somebody else made: one may be cut off, huge, no file at all, or a link to a secret."""

import json
import os
import stat
from collections.abc import Iterable
from typing import Any

from tpt_jax.errors import UserError
from tpt_jax.io.paths import AnyPath, is_remote, size

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how such a file begins (git-lfs docs/spec.md)
MAX_JSON_BYTES = 2**28  # the largest published tokenizer.json has a seventh of it


def check_downloaded(path: AnyPath) -> None:
    """Raises UserError if a file is empty, a pointer that git-lfs has left in its place, or a device or pipe."""
    if not is_remote(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError(f"{path}: is a device or a pipe, not a file; download the file again")
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
    if (num_bytes := size(path)) > MAX_JSON_BYTES:
        raise UserError(f"{path}: has {num_bytes:,} bytes, more than {MAX_JSON_BYTES:,}; download the file again")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
        raise UserError(f"{path}: not JSON ({error}); download the file again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must be a JSON object, not {type(value).__name__}; download the file again")
    return value


def check_links(folder: AnyPath, names: Iterable[str]) -> None:
    """Checks files that are copied into checkpoints and exports: a link in a download could make that publish a secret.

    A link may lead to another place in the folder, or, in a download cache, to the cache's copy of the file
    (snapshots/REVISION/config.json is a link to ../../blobs/HASH).

    Raises:
      UserError: a file, or one in a subfolder, is a link to somewhere else.
    """
    if is_remote(folder):
        return
    root = os.path.realpath(folder)
    revisions = os.path.dirname(root)
    blobs = os.path.join(os.path.dirname(revisions), "blobs")
    allowed = (root, blobs) if os.path.basename(revisions) == "snapshots" else (root,)
    for name in names:
        path = os.path.join(folder, name)
        below = (os.path.join(parent, each) for parent, folders, files in os.walk(path) for each in folders + files)
        for each in (path, *below):
            target = os.path.realpath(each)
            if os.path.lexists(each) and all(os.path.commonpath((target, place)) != place for place in allowed):
                raise UserError(
                    f"{each}: is a link to {target}, outside of the folder, and would be copied into checkpoints; "
                    "put the file itself there"
                )
