"""What the builders share: raw files that are downloaded, or lie in a folder already."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from tpt_jax.errors import InvalidRecordError
from tpt_jax.io.paths import AnyPath
from tpt_jax.io.record_files import read_records

Examples = Iterator[tuple[int, dict[str, Any]]]


class RawBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set in the order and with the fields that it is published with.

    Attributes:
      FILES: the raw files' names, in a folder that the user has filled, and where each is downloaded from.
      SOURCE: who publishes them, for messages.
      FIELDS: of an example.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Optional: the raw files, as they are published."  # without it, no manual_dir

    FILES: ClassVar[Mapping[str, str]]
    SOURCE: ClassVar[str]
    FIELDS: ClassVar[Mapping[str, Any]]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(dict(self.FIELDS))
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def raw_files(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, AnyPath]:
        """FILES, by name."""
        return self.manual_files(dl_manager) or dl_manager.download(dict(self.FILES))

    def manual_files(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, AnyPath]:
        """FILES, by name, where the user has put them; empty where they are not."""
        try:
            folder = dl_manager.manual_dir
        except AssertionError:  # there is no such folder
            return {}
        files = {name: folder / name for name in self.FILES}
        return files if all(file.exists() for file in files.values()) else {}

    def examples(self, path: AnyPath) -> list[dict[str, Any]]:
        """The examples in a file of JSON lines.

        Raises:
          UserError: more than 1% of the lines cannot be used, as read_records says.
        """

        def read(index: int, line: dict[str, Any]) -> dict[str, Any]:
            missing = [name for name in self.FIELDS if name not in line]
            if missing:
                raise InvalidRecordError(f'lacks "{missing[0]}"; get the file anew from {self.SOURCE}')
            return {name: line[name] for name in self.FIELDS}

        return read_records(path, read)


def numbered(examples: list[dict[str, Any]]) -> Examples:
    """With the keys that tensorflow-datasets wants."""
    yield from enumerate(examples)
