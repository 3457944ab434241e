"""MATH, competition mathematics (Hendrycks et al., arXiv 2103.03874), as its authors publish it."""

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.files import parse_line
from tpt_jax.io.paths import AnyPath, files_below, to_path
from tpt_jax.tasks.builders.raw import Examples, RawBuilder, with_keys

_URL = "https://people.eecs.berkeley.edu/~hendrycks/MATH.tar"
KEYS = ("problem", "level", "type", "solution")


class TptMath(RawBuilder):
    """7,500 training and 5,000 test problems in seven subjects, with worked solutions that box their answer.

    The field `path` is the problem's file within its split, e.g. "algebra/12.json".
    """

    FILES: ClassVar[Mapping[str, str]] = {"train": _URL, "test": _URL}
    SOURCE = f"{_URL} (in its MATH folder)"
    FIELDS: ClassVar[Mapping[str, Any]] = {name: tfds.features.Text() for name in ("path", *KEYS)}

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        folders = self.manual_files(dl_manager)
        if folders:
            return {split: self._generate_examples(list(_read_folder(folders[split]))) for split in self.FILES}
        # Unpacked here, because tensorflow-datasets would need TensorFlow for it.
        with tarfile.open(dl_manager.download(_URL)) as archive:
            return {split: self._generate_examples(list(_read_archive(archive, split))) for split in self.FILES}

    def _generate_examples(self, problems: list[tuple[str, bytes]]) -> Examples:
        # By subject, then by number: 2.json before 12.json.
        ordered = sorted(problems, key=lambda problem: (problem[0].partition("/")[0], len(problem[0]), problem[0]))
        return with_keys([{"path": path, **_parse_problem(path, content)} for path, content in ordered])


def _read_folder(folder: AnyPath) -> Iterator[tuple[str, bytes]]:
    """Each problem's path within the split, e.g. "algebra/12.json", and the file's content."""
    for path in files_below(to_path(folder)):
        if path.suffix == ".json":
            yield f"{path.parent.name}/{path.name}", path.read_bytes()


def _read_archive(archive: tarfile.TarFile, split: str) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        path = PurePosixPath(member.name)
        content = archive.extractfile(member) if path.match(f"MATH/{split}/*/*.json") else None
        if content is not None:
            yield f"{path.parent.name}/{path.name}", content.read()


def _parse_problem(path: str, content: bytes) -> dict[str, str]:
    try:
        problem = parse_line(content)
        return {name: str(problem[name]) for name in KEYS}
    except (InvalidRecordError, KeyError) as error:
        raise UserError(f"{path}: not a MATH problem ({error}); download the files again from {_URL}") from error
