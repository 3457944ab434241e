"""Files: JSON lines read with every mistake named by its line, and whatever is written there whole or not at all."""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.paths import AnyPath, Path, is_remote, to_path


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON-lines file; blank lines are skipped.

    Raises:
      UserError: the file is missing, or a line is not a JSON object (named by file and line).
    """
    path = existing_file(path)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield parse_line(line)
            except InvalidRecordError as error:
                raise UserError(f"{path}:{number}: {error}") from error


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file of JSON lines that is there.

    Raises:
      UserError: it is not.
    """
    path = to_path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a JSON-lines file, one object a line")
    return path


def parse_line(line: bytes) -> dict[str, Any]:
    """The object in a line.

    Raises:
      InvalidRecordError: there is none.
    """
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidRecordError(f"not UTF-8 ({error.reason}); write the file in UTF-8") from error
    except json.JSONDecodeError as error:
        raise InvalidRecordError(f"not JSON ({error.msg}); write one object a line") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets
        raise InvalidRecordError(f"not JSON that can be read ({error}); write one object a line") from error
    if not isinstance(value, dict):
        raise InvalidRecordError(f"of type {type(value).__name__}, not an object; write one object a line")
    return value


def digest(path: str | os.PathLike[str]) -> str:
    """What a file's content is known by.

    Raises:
      UserError: there is no such file.
    """
    path = existing_file(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_output(path: pathlib.Path, inputs: Iterable[pathlib.Path]) -> None:
    """Makes sure, before the work, that its result can be written; makes the folder.

    Raises:
      UserError: it cannot, or would take the place of an input or of what is no plain file.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"--output {path}: not a plain file; give the name of one")
    for given in inputs:
        if path.exists() and given.exists() and path.samefile(given):
            raise UserError(f"--output {path}: this is {given}, which is read; give another file")
    make_folder(path.parent)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--output {path}: may not be written; give a file that may")


def make_folder(path: AnyPath) -> None:
    """Makes a folder where there is none.

    Raises:
      UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}); give a folder that can") from error


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file that is there whole or not at all, whenever the process is killed.

    Raises:
      UserError: its folder cannot be made.
    """
    path = to_path(path)
    make_folder(path.parent)
    if is_remote(path):
        path.write_text(text)
        return
    path = to_path(os.path.realpath(path))  # of a link, what it leads to is replaced
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_jsonl(path: str | os.PathLike[str], lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines atomically."""
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))
