"""`init_project`: a folder with a working project of the user's own."""

import os
from pathlib import Path

from tpt_jax.config import RunName
from tpt_jax.config_parsing import check_value
from tpt_jax.errors import UserError
from tpt_jax.io.files import make_folder, write_atomically
from tpt_jax.io.paths import is_remote, to_path

TEMPLATE = Path(__file__).parent / "project_template"  # a project that works, called NAME
NAME = "own_task"


def init_project(folder: str | os.PathLike[str], name: str | None = None) -> tuple[Path, ...]:
    """Writes a project: config, questions, checker with tests, examples for `check_task`, README. See `tpt init`.

    Args:
      folder: new or empty.
      name: of its runs; the folder's name if not given.

    Returns:
      The files, relative to the folder.

    Raises:
      UserError: the folder is not empty, or cannot be written, or the name is no file name.
    """
    path = to_path(folder)
    if is_remote(path):
        raise UserError(f"{path}: in a bucket; give a folder on a disk")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: is not an empty folder; give a new one")
    name = _checked_name(Path(os.path.abspath(path)).name if name is None else name)
    make_folder(path)
    if not os.access(path, os.W_OK):
        raise UserError(f"{path}: no permission to write; give another folder")
    sources = sorted(source for source in TEMPLATE.iterdir() if source.is_file())
    for source in sources:
        write_atomically(path / source.name, source.read_text(encoding="utf-8").replace(NAME, name))
    return tuple(Path(source.name) for source in sources)


def _checked_name(name: str) -> str:
    """A name that YAML, a shell and a file system take as it is."""
    check_value("name", name, RunName)
    if not all(each.isascii() and (each.isalnum() or each in "_-.") for each in name) or not name[0].isalpha():
        raise UserError(f"name ({name!r}): write a letter, then letters, digits and _ - . only, as --name own_task")
    return name
