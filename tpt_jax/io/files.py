"""JSON-lines files whose errors name the line, and atomic writes.

What a run writes for itself carries checksums, one a line: a flipped bit is noticed before it is trained on.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.paths import AnyPath, Path, is_remote, to_path

CHECKSUM = re.compile(rb', "crc32": "([0-9a-f]{8})"\}\s*\Z')  # the end of a line with a checksum
REWRITE = "delete it and `tpt run` writes it again"


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yields the objects in a JSON-lines file; skips blank lines.

    Raises:
      UserError: the file is missing, or a line is not a JSON object; names file and line.
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
    """The path of an existing file.

    Raises:
      UserError: there is no such file.
    """
    path = to_path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a JSON-lines file, one object per line")
    return path


def parse_line(line: bytes) -> dict[str, Any]:
    """Parses a line that holds one JSON object.

    Raises:
      InvalidRecordError: it does not, or it was changed since its checksum was written; the message says why.
    """
    line = without_checksum(line)
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidRecordError(f"not UTF-8 ({error.reason}); write the file in UTF-8") from error
    except json.JSONDecodeError as error:
        raise InvalidRecordError(f"not JSON ({error.msg}); write one object per line") from error
    except (ValueError, RecursionError) as error:  # too many digits in a number, or nested too deeply
        raise InvalidRecordError(f"not JSON that can be read ({error}); write one object per line") from error
    if not isinstance(value, dict):
        raise InvalidRecordError(f"of type {type(value).__name__}, not an object; write one object per line")
    return value


def checked_line(value: Mapping[str, Any]) -> str:
    """An object as a JSON line whose last field is the CRC-32 of the line without that field."""
    text = json.dumps(value)
    return f'{text[:-1]}, "crc32": "{_crc32(text.encode())}"}}\n'


def _crc32(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}"


def without_checksum(line: bytes) -> bytes:
    """The line that was given to `checked_line`, or any other line as it is.

    Raises:
      InvalidRecordError: it was changed since.
    """
    found = CHECKSUM.search(line)
    if found is None:
        return line
    text = line[: found.start()] + b"}"
    if _crc32(text) != found.group(1).decode():
        raise InvalidRecordError(
            "was changed since it was written; restore it, or drop its crc32 if the change is yours"
        )
    return text


def checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
      UserError: there is no such file.
    """
    path = existing_file(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_output(path: pathlib.Path, inputs: Iterable[AnyPath]) -> None:
    """Checks that an output file can be written, before any work is done; creates its folder.

    Raises:
      UserError: it cannot be written, is an input too, or is something other than a plain file.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"--output {path}: not a plain file; give a file name")
    for source in inputs:
        if not is_remote(source) and path.exists() and source.exists() and os.path.samefile(path, source):
            raise UserError(f"--output {path}: would overwrite the input {source}; give another file")
    make_folder(path.parent)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--output {path}: no permission to write; give a file that you may write")


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the path to errors of the file system in the body that name none, as those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def make_folder(path: AnyPath) -> None:
    """Creates a folder, and its parents, unless it exists.

    Raises:
      UserError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be created ({error.strerror}); give another folder") from error


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file so that it is complete or absent, even if the process is killed.

    Raises:
      UserError: its folder cannot be created.
    """
    write_pieces(path, [text])


def write_pieces(path: str | os.PathLike[str], pieces: Iterable[str]) -> None:
    """Writes pieces of text as `write_atomically`; on a disk, one is in memory at a time.

    Raises:
      UserError: its folder cannot be created.
    """
    path = to_path(path)
    make_folder(path.parent)
    if is_remote(path):
        path.write_text("".join(pieces))
        return
    path = to_path(os.path.realpath(path))  # replace a link's target, not the link
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with naming(path):
            with open(temporary, "w", encoding="utf-8") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_jsonl(path: str | os.PathLike[str], lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines atomically."""
    write_pieces(path, (json.dumps(line) + "\n" for line in lines))


def write_checked_jsonl(path: str | os.PathLike[str], lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines with checksums, atomically."""
    write_pieces(path, map(checked_line, lines))


def write_checked_object(path: str | os.PathLike[str], value: Mapping[Any, Any]) -> None:
    """Writes a JSON object with a checksum, atomically and for people to read."""
    crc32 = _crc32(json.dumps(value).encode())
    write_atomically(path, json.dumps({**value, "crc32": crc32}, indent=2) + "\n")


def read_checked_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file.

    Raises:
      UserError: the file holds something else, or was changed since it was written.
    """
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {REWRITE}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; {REWRITE}")
    crc32 = value.pop("crc32", None)
    if crc32 is not None and crc32 != _crc32(json.dumps(value).encode()):
        raise UserError(
            f"{path}: was changed since it was written; {REWRITE} (or drop its crc32 if the change is yours)"
        )
    return value
