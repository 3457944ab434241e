"""Files and folders under a second name: linked where the file system can, else copied; complete or absent."""

import contextlib
import os

from tpt_jax.io.files import make_folder
from tpt_jax.io.paths import Path, copy, files_below, is_remote

COMMIT = "commit_success.txt"  # in a bucket, orbax's mark of a complete checkpoint


def link_file(source: Path, target: Path) -> None:
    """Gives a file that is never changed in place a second name, which replaces a file that has it already."""
    make_folder(target.parent)
    if is_remote(source) or is_remote(target):
        copy(source, target)
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        _link_or_copy(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)  # a rename to another link of the same file leaves both


def link_folder(source: Path, target: Path) -> None:
    """Gives a folder whose files are never changed in place, like a checkpoint, a second name that is not taken."""
    files = files_below(source)
    if is_remote(source) or is_remote(target):
        for path in sorted(files, key=lambda path: path.name == COMMIT):  # which makes it complete, so it comes last
            copy(path, target / path.relative_to(source))
        return
    temporary = target.with_name(f".{target.name}.tmp")
    if temporary.is_dir():
        temporary.rmtree()
    for path in files:
        destination = temporary / path.relative_to(source)
        make_folder(destination.parent)
        _link_or_copy(path, destination)
    temporary.rename(target)


def _link_or_copy(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):  # another file system, or one without links
        os.link(source, target)
        return
    copy(source, target)
