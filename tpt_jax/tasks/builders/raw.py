"""Base class of the builders: raw files are downloaded, or taken from a folder."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from tpt_jax.errors import InvalidRecordError
from tpt_jax.io.paths import AnyPath
from tpt_jax.io.record_files import read_records

Examples = Iterator[tuple[int, dict[str, Any]]]


class RawBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set in its published order, with its published fields.

    Attributes:
      FILES: URL of each raw file, by its name in a folder supplied by the user.
      SOURCE: where the files are published, for messages.
      FIELDS: an example's fields and their types.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Optional: the raw files, as published."  # required for manual_dir to work

    FILES: ClassVar[Mapping[str, str]]
    SOURCE: ClassVar[str]
    FIELDS: ClassVar[Mapping[str, Any]]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(dict(self.FIELDS))
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def raw_files(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, AnyPath]:
        """Path of each of FILES, downloaded unless the user supplies them."""
        return self.manual_files(dl_manager) or dl_manager.download(dict(self.FILES))

    def manual_files(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, AnyPath]:
        """Path of each of FILES in the user's folder; empty if any is missing."""
        try:
            folder = dl_manager.manual_dir
        except AssertionError:  # there is no such folder
            return {}
        files = {name: folder / name for name in self.FILES}
        return files if all(file.exists() for file in files.values()) else {}

    def examples(self, path: AnyPath) -> list[dict[str, Any]]:
        """Reads examples from a file of JSON lines.

        Raises:
          UserError: more than 1% of the lines are invalid; see read_records.
        """

        def read(index: int, line: dict[str, Any]) -> dict[str, Any]:
            missing = [name for name in self.FIELDS if name not in line]
            if missing:
                raise InvalidRecordError(f'lacks "{missing[0]}"; download the file again from {self.SOURCE}')
            return {name: line[name] for name in self.FIELDS}

        return read_records(path, read)


def with_keys(examples: list[dict[str, Any]]) -> Examples:
    """Examples with the keys that tensorflow-datasets requires."""
    yield from enumerate(examples)
