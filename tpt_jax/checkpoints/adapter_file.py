"""What a checkpoint of adapters says about itself: their settings, and the model they belong to."""

import dataclasses
import json
import os
import zlib
from typing import Any

from tpt_jax.checkpoints.checksums import CHECKSUMS
from tpt_jax.config import LoRAConfig
from tpt_jax.config_parsing import plain_values, settings
from tpt_jax.errors import UserError
from tpt_jax.io.paths import Path

ADAPTERS = "adapters.json"
SAMPLES, SAMPLE_BYTES = 64, 64 * 2**10  # of each file, for the fingerprint: 4 MiB however large the model is


@dataclasses.dataclass(frozen=True)
class AdapterFile:
    """The adapters in a checkpoint.

    Attributes:
      base: name or folder of the model whose weights are frozen.
      fingerprint: of the base's weights, to refuse others.
    """

    base: str
    fingerprint: str
    lora: LoRAConfig

    @classmethod
    def read(cls, folder: Path) -> "AdapterFile | None":
        """The file in a folder; None if the folder holds all weights.

        Raises:
          UserError: the file is damaged.
        """
        path = folder / ADAPTERS
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_text())
            return cls(str(values["base"]), str(values["fingerprint"]), settings(LoRAConfig, values["lora"]))
        except (ValueError, KeyError, TypeError, UserError) as error:
            raise UserError(f"{path}: cannot be read ({error}); use another checkpoint") from error

    def write(self, folder: Path) -> None:
        values: dict[str, Any] = {**dataclasses.asdict(self), "lora": plain_values(self.lora)}
        (folder / ADAPTERS).write_text(json.dumps(values, indent=2) + "\n")


def fingerprint(folder: Path) -> str:
    """A checksum of samples of a model's weights, the same wherever the folder lies."""
    checksums = folder / CHECKSUMS
    if checksums.exists():  # those of all files
        return f"{zlib.crc32(checksums.read_bytes()):08x}"
    crc = 0
    for path in sorted(folder.glob("*.safetensors"), key=lambda path: path.name):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            for start in range(0, size, max(SAMPLE_BYTES, size // SAMPLES)):
                file.seek(start)
                crc = zlib.crc32(file.read(SAMPLE_BYTES), crc)
    return f"{crc:08x}"
