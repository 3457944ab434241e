"""MATH, competition mathematics (Hendrycks et al., arXiv 2103.03874), as its authors publish it."""

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.files import parse_line
from tpt_jax.io.paths import AnyPath, files_below, to_path
from tpt_jax.tasks.builders.raw import Examples, RawBuilder, numbered

_URL = "https://people.eecs.berkeley.edu/~hendrycks/MATH.tar"
KEYS = ("problem", "level", "type", "solution")


class TptMath(RawBuilder):
    """7,500 training and 5,000 test problems in seven subjects; solutions have their answer in a box.

    `path` is the problem's place in its split, as in "algebra/12.json".
    """

    FILES: ClassVar[Mapping[str, str]] = {"train": _URL, "test": _URL}
    SOURCE = f"{_URL} (its MATH folder holds them)"
    FIELDS: ClassVar[Mapping[str, Any]] = {name: tfds.features.Text() for name in ("path", *KEYS)}

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        folders = self.manual_files(dl_manager)
        if folders:
            return {split: self._generate_examples(list(_in_folder(folders[split]))) for split in self.FILES}
        with tarfile.open(dl_manager.download(_URL)) as archive:  # tensorflow-datasets needs TensorFlow to unpack it
            return {split: self._generate_examples(list(_in_archive(archive, split))) for split in self.FILES}

    def _generate_examples(self, problems: list[tuple[str, bytes]]) -> Examples:
        # By subject, then by number: 12.json comes after 2.json.
        ordered = sorted(problems, key=lambda problem: (problem[0].partition("/")[0], len(problem[0]), problem[0]))
        return numbered([{"path": path, **_read(path, content)} for path, content in ordered])


def _in_folder(folder: AnyPath) -> Iterator[tuple[str, bytes]]:
    """Each problem's path, as in "algebra/12.json", and what stands there."""
    for path in files_below(to_path(folder)):
        if path.suffix == ".json":
            yield f"{path.parent.name}/{path.name}", path.read_bytes()


def _in_archive(archive: tarfile.TarFile, split: str) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        path = PurePosixPath(member.name)
        content = archive.extractfile(member) if path.match(f"MATH/{split}/*/*.json") else None
        if content is not None:
            yield f"{path.parent.name}/{path.name}", content.read()


def _read(path: str, content: bytes) -> dict[str, str]:
    try:
        problem = parse_line(content)
        return {name: str(problem[name]) for name in KEYS}
    except (InvalidRecordError, KeyError) as error:
        raise UserError(f"{path}: not a problem of MATH ({error}); get the files anew from {_URL}") from error
