"""The formats of files with many records: JSON lines, a JSON or YAML list, CSV, Parquet; most also gzipped."""

import abc
import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import yaml

from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.files import existing_file, parse_line
from tpt_jax.io.paths import AnyPath, Path, size
from tpt_jax.io.yaml_text import parse_yaml

YAML_SUFFIXES = (".yaml", ".yml")
GZIP_SUFFIX = ".gz"
PARQUET_SUFFIX = ".parquet"
CSV_DELIMITERS = {".csv": ",", ".tsv": "\t"}
ROWS_PER_BATCH = 1024  # of a Parquet file, in memory at once
BUFFER_BYTES = 2**17
MAX_UNPACKED_RATIO, MAX_UNPACKED_BYTES = 200, 2**28  # a gzip file may exceed one of these, not both
MAX_CELL = 2**24  # characters in a cell of a CSV file
MAX_TRIED_BYTES = 2**24  # a smaller gzip file is unpacked once before it is read, which takes a second

Load = Callable[[], dict[str, Any]]  # raises InvalidRecordError if the record is no object


class RecordFile(abc.ABC):
    """A file's records; each iteration reads the file anew."""

    def __init__(self, path: Path):
        self.path = path

    @abc.abstractmethod
    def __iter__(self) -> Iterator[tuple[str, Load]]:
        """Yields for each record its position, for messages, and a function that loads it."""

    @abc.abstractmethod
    def count(self) -> int:
        """The number of records, broken ones included."""


class RecordFiles(RecordFile):
    """The records of several files of a folder, one after the other."""

    def __init__(self, path: Path, files: Sequence[RecordFile]):
        super().__init__(path)
        self._files = files

    def __iter__(self) -> Iterator[tuple[str, Load]]:
        return itertools.chain.from_iterable(self._files)

    def count(self) -> int:
        return sum(file.count() for file in self._files)


def open_records(path: AnyPath) -> RecordFile:
    """The records of a file, whose format follows from its suffix, or else from its first character.

    Only JSON lines, CSV and Parquet are read record by record; a list is held in memory.

    Raises:
      UserError: the file is missing or cannot be read.
    """
    path = existing_file(path)
    if path.suffix == PARQUET_SUFFIX:
        return _ParquetRows(path)
    if path.suffix == GZIP_SUFFIX and size(path) <= MAX_TRIED_BYTES:
        with _opened(path) as file:
            while file.read(BUFFER_BYTES):  # a bomb is found before its records are
                pass
    suffix = pathlib.PurePath(plain_name(path)).suffix
    if suffix in CSV_DELIMITERS:
        return _CsvRows(path, CSV_DELIMITERS[suffix])
    with _opened(path) as file:
        if suffix in YAML_SUFFIXES:
            return _Items(path, _parse_list(path, "YAML", file.read()))
        first = next((line for line in _lines(file) if line.strip()), b"")
        if first.lstrip().startswith(b"["):
            return _Items(path, _parse_list(path, "JSON", first + file.read()))
    return _Lines(path)


def plain_name(path: AnyPath) -> str:
    """A file's name without .gz."""
    return path.name.removesuffix(GZIP_SUFFIX)


class _Lines(RecordFile):
    def __iter__(self) -> Iterator[tuple[str, Load]]:
        with _opened(self.path) as file:
            for number, line in enumerate(_lines(file), start=1):
                if line.strip():
                    yield f"{self.path}:{number}", lambda line=line: parse_line(line)

    def count(self) -> int:
        with _opened(self.path) as file:
            return sum(1 for line in _lines(file) if line.strip())


class _Items(RecordFile):
    def __init__(self, path: Path, items: list[Any]):
        super().__init__(path)
        self._items = items

    def __iter__(self) -> Iterator[tuple[str, Load]]:
        for index, item in enumerate(self._items):
            yield f"{self.path}, item {index + 1}", lambda item=item: _require_object(item)

    def count(self) -> int:
        return len(self._items)


class _CsvRows(RecordFile):
    """Rows under a first line with the names of the columns; all values are text, and empty cells are left out."""

    def __init__(self, path: Path, delimiter: str):
        super().__init__(path)
        self._delimiter = delimiter
        with self._open() as (_, names):
            _check_column_names(path, names)

    def __iter__(self) -> Iterator[tuple[str, Load]]:
        with self._open() as (rows, names):
            for cells in rows:
                if cells:  # no empty line
                    yield f"{self.path}:{rows.line_num}", lambda cells=cells: _named_cells(names, cells)

    def count(self) -> int:
        with self._open() as (rows, _):
            return sum(1 for cells in rows if cells)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[Any, list[str]]]:
        """Yields the rows below the first line, and the names in it."""
        csv.field_size_limit(MAX_CELL)
        try:
            with _opened(self.path) as file:
                text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
                rows = csv.reader(text, delimiter=self._delimiter, strict=True)
                yield rows, next(rows, [])
                text.detach()  # or it would close what `_opened` closes
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(
                f"{self.path}: not CSV in UTF-8 ({error}); save it again as such, or as JSON lines"
            ) from error


def _check_column_names(path: Path, names: list[str]) -> None:
    if not names:
        return  # an empty file
    if len(names) == 1 and ";" in names[0]:
        raise UserError(f"{path}: its columns are separated by semicolons; separate them by commas")
    if "" in names or len({*names}) < len(names):
        raise UserError(f"{path}: the first line ({','.join(names):.200}) must name every column, each once")


def _named_cells(names: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(names):
        raise InvalidRecordError(f"has {len(cells)} cells under {len(names)} column names; quote cells with commas")
    return {name: cell for name, cell in zip(names, cells, strict=True) if cell}


class _ParquetRows(RecordFile):
    """Rows, named by their index from 0, as in a data frame."""

    def __init__(self, path: Path):
        super().__init__(path)
        with self._open():  # refuses what is no Parquet file
            pass

    def __iter__(self) -> Iterator[tuple[str, Load]]:
        with self._open() as table:
            batches = table.iter_batches(batch_size=ROWS_PER_BATCH)
            for index, row in enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches)):
                yield f"{self.path}, row {index}", lambda row=row: row

    def count(self) -> int:
        with self._open() as table:
            return table.metadata.num_rows

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise UserError(f"{self.path}: reading Parquet needs pyarrow; pip install pyarrow") from error
        try:
            with self.path.open("rb") as file, pyarrow.parquet.ParquetFile(file) as table:
                yield table
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path}: cannot be read as Parquet ({reason}); make or download it again") from error


# Reading.


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The content of a file, unpacked if its name ends in .gz."""
    with path.open("rb") as file:
        if path.suffix != GZIP_SUFFIX:
            yield file
            return
        try:
            with gzip.open(file) as unpacked:
                reader = _Unpacked(path, unpacked, size(path))
                yield io.BufferedReader(reader, BUFFER_BYTES)  # faster than GzipFile's own lines
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: not a complete gzip file ({error}); make or download it again") from error


class _Unpacked(io.RawIOBase):
    """What a gzip file unpacks to, as long as it is no bomb: text is packed to a tenth, zeros to a thousandth."""

    def __init__(self, path: Path, unpacked: gzip.GzipFile, num_packed: int):
        self._path, self._unpacked, self._num_packed = path, unpacked, num_packed
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer.

        Raises:
          UserError: the file unpacks to more than any text does.
        """
        data = self._unpacked.read(len(buffer))
        self._count += len(data)
        if self._count > max(MAX_UNPACKED_BYTES, MAX_UNPACKED_RATIO * self._num_packed):
            raise UserError(
                f"{self._path}: unpacks to more than {MAX_UNPACKED_RATIO} times its size, as no text does; "
                "unpack it yourself, if it is what you want"
            )
        buffer[: len(data)] = data
        return len(data)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file, without the byte order mark that editors on Windows write."""
    lines = iter(file)
    if first := next(lines, b"").removeprefix(codecs.BOM_UTF8):
        yield first
    yield from lines


class _Loader(yaml.SafeLoader):
    """Keeps everything but plain numbers as text: in PyYAML's YAML 1.1, 12:30 is 750 and no is false."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (as PyYAML declares it)


for _kind, _pattern in {
    "null": "|~|null|Null|NULL",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?(0|[1-9][0-9]*)\.[0-9]+",
    "merge": "<<",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)


def _parse_list(path: Path, kind: str, content: bytes) -> list[Any]:
    try:
        items = parse_yaml(content, _Loader) if kind == "YAML" else json.loads(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not {kind} ({reason}); write a list of objects, or JSON lines") from error
    if items is None:  # an empty YAML file
        return []
    if not isinstance(items, list):
        raise UserError(f"{path}: of type {type(items).__name__}, not a list; write a list of objects")
    return items


def _require_object(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise InvalidRecordError(f"of type {type(item).__name__}, not an object; write a list of objects")
    return item
