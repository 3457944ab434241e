"""Seals: what the files of a checkpoint were when it was written, so that a broken one is known before it is used."""

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor

from tpt_jax.errors import UserError
from tpt_jax.io.files import write_atomically
from tpt_jax.io.paths import Path, files_below
from tpt_jax.runtime import hosts

CHECKSUMS = "digests.json"
COMMITTED_AT = "_CHECKPOINT_METADATA"  # orbax writes the time into it when the folder takes its name
PIECE = 16 * 2**20  # bytes that are read at a time
READERS = 8


class BrokenCheckpointError(UserError):
    """A checkpoint that is not what was written."""


def write_checksums(folder: Path) -> None:
    """Writes the size and the CRC of every file in a folder into one more."""
    names = sorted(_names(folder))
    with ThreadPoolExecutor(READERS) as pool:
        digests = dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))
    write_atomically(folder / CHECKSUMS, json.dumps(digests, indent=1) + "\n")


def verify_checksums(folder: Path) -> None:
    """Reads every file of a sealed folder, each host some of them.

    Raises:
      BrokenCheckpointError: a file is missing, cut short or changed; it is named, on every host.
    """
    faults = [
        fault for of_host in hosts.all_gather(f"the check of {folder.name}", _faults(folder)) for fault in of_host
    ]
    if faults:
        raise BrokenCheckpointError(f"{folder}: {faults[0]}; use another checkpoint")


def _faults(folder: Path) -> list[str]:
    try:
        digests = json.loads((folder / CHECKSUMS).read_text())
        files = sorted(digests.items())
    except (OSError, ValueError, AttributeError):
        return [f"has no {CHECKSUMS} that can be read: it was cut short"]

    def fault(file: tuple[str, list[int]]) -> str | None:
        name, written = file
        try:
            found = _digest(folder / name)
        except OSError:
            return f"{name} is missing"
        if found == written:
            return None
        return f"{name} has {found[0]} bytes of {written[0]}" if found[0] != written[0] else f"{name} was changed"

    with ThreadPoolExecutor(READERS) as pool:
        return [found for found in pool.map(fault, hosts.own_share(files)) if found is not None]


def _digest(path: Path) -> list[int]:
    """Size and CRC-32."""
    size = crc = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
    return [size, crc]


def _names(folder: Path) -> list[str]:
    return [os.fspath(path.relative_to(folder)) for path in files_below(folder) if path.name != COMMITTED_AT]
