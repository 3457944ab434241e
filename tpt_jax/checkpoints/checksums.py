"""Checksums of a checkpoint's files, written with it, so that damage is noticed before it is used."""

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor

from tpt_jax.errors import UserError
from tpt_jax.io.files import write_atomically
from tpt_jax.io.paths import Path, files_below
from tpt_jax.runtime import hosts

CHECKSUMS = "digests.json"
COMMIT_TIME = "_CHECKPOINT_METADATA"  # orbax changes it when the folder gets its final name
CHUNK = 16 * 2**20  # bytes read at a time
NUM_READERS = 8


class BrokenCheckpointError(UserError):
    """A checkpoint's files differ from those that were written."""


def write_checksums(folder: Path) -> None:
    """Writes the size and the CRC-32 of every file in a folder into one more file."""
    names = sorted(_names(folder))
    with ThreadPoolExecutor(NUM_READERS) as pool:
        checksums = dict(zip(names, pool.map(lambda name: _checksum(folder / name), names), strict=True))
    write_atomically(folder / CHECKSUMS, json.dumps(checksums, indent=1) + "\n")


def verify_checksums(folder: Path) -> None:
    """Compares every file of a folder with its checksum; each host reads its share of the files.

    Raises:
      BrokenCheckpointError: on every host, with the name of the first file that is missing, truncated or changed.
    """
    faults = [fault for host in hosts.all_gather(f"checksums of {folder.name}", _own_faults(folder)) for fault in host]
    if faults:
        raise BrokenCheckpointError(f"{folder}: {faults[0]}; use another checkpoint")


def _own_faults(folder: Path) -> list[str]:
    try:
        checksums = json.loads((folder / CHECKSUMS).read_text())
        files = sorted(checksums.items())
    except (OSError, ValueError, AttributeError):
        return [f"has no readable {CHECKSUMS}, so it is incomplete"]

    def find_fault(file: tuple[str, list[int]]) -> str | None:
        name, expected = file
        try:
            actual = _checksum(folder / name)
        except OSError:
            return f"{name} is missing"
        if actual == expected:
            return None
        return f"{name} has {actual[0]} of {expected[0]} bytes" if actual[0] != expected[0] else f"{name} was changed"

    with ThreadPoolExecutor(NUM_READERS) as pool:
        return [fault for fault in pool.map(find_fault, hosts.own_share(files)) if fault is not None]


def _checksum(path: Path) -> list[int]:
    """Size and CRC-32."""
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def _names(folder: Path) -> list[str]:
    return [os.fspath(path.relative_to(folder)) for path in files_below(folder) if path.name != COMMIT_TIME]
