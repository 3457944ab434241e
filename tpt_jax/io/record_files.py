"""Files with many records, a few of which may be broken: those are reported and left out."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tpt_jax.errors import InvalidRecordError, UserError, one_line
from tpt_jax.io.files import parse_line
from tpt_jax.io.paths import to_path
from tpt_jax.io.record_formats import RecordFile, open_records
from tpt_jax.records import FinishReason
from tpt_jax.terminal import say

MAX_BROKEN_SHARE = 0.01  # of a file's records; if more are broken, it is probably the wrong file
MAX_REPORTED = 5  # broken records named in a message
MAX_ID = 1_000  # characters; ids stand in every trace, and in messages
NOT_IN_IDS = {"Cc", "Cs", "Zl", "Zp"}  # controls, NUL and line ends among them, and lone surrogates

Record = TypeVar("Record")


# Reading.


def read_records(path: str | os.PathLike[str], read: Callable[[int, dict[str, Any]], Record]) -> list[Record]:
    """Reads a file of JSON lines, a JSON list, or (by its suffix) a YAML list, CSV or Parquet; most also gzipped.

    Args:
      read: makes a record from an object and its index, from 0; raises InvalidRecordError if it cannot.

    Raises:
      UserError: the file is missing, or more than 1% of its records are broken; names the first five.
    """
    return read_all(open_records(to_path(path)), read)


def read_all(file: RecordFile, read: Callable[[int, dict[str, Any]], Record]) -> list[Record]:
    """Reads records that are open already, as read_records."""
    return list(_valid(file.path, _candidates(file, read)))


def stream_records(file: RecordFile, count: int, read: Callable[[int, dict[str, Any]], Record]) -> Iterator[Record]:
    """Yields the records of a file as they are read, as read_records.

    Once more than 1% are known to be broken, the rest of the file is read for the message, but not yielded.

    Args:
      count: the file's number of records.
    """
    return _valid(file.path, _candidates(file, read), max_broken=MAX_BROKEN_SHARE * count)


def _candidates(
    file: RecordFile, read: Callable[[int, dict[str, Any]], Record]
) -> Iterator[tuple[str, Callable[[], Record]]]:
    for index, (place, load) in enumerate(file):
        yield place, lambda index=index, load=load: read(index, load())


def read_folder(
    folder: str | os.PathLike[str], pattern: str, read: Callable[[str, dict[str, Any]], Record]
) -> list[Record]:
    """Reads a folder of JSON files, one object each, in natural order: 2.json before 10.json.

    Args:
      pattern: glob pattern of the files, relative to the folder.
      read: makes a record from a file's relative path and its object; raises InvalidRecordError if it cannot.

    Raises:
      UserError: there are no such files, or more than 1% of them are broken; names the first five.
    """
    root = to_path(folder)
    names = sorted((str(file.relative_to(root)) for file in root.glob(pattern)), key=_natural_order)
    if not names:
        raise UserError(f"{root}: holds no {pattern}; give a folder of JSON files, one object each")
    candidates = (
        (f"{root}/{name}", lambda name=name: read(name, parse_line((root / name).read_bytes()))) for name in names
    )
    return list(_valid(root, candidates))


def read_items(
    source: str, items: Iterable[dict[str, Any]], read: Callable[[int, dict[str, Any]], Record]
) -> list[Record]:
    """Makes records from objects in memory, by the same rules as read_records.

    Args:
      source: where the objects come from, for messages.

    Raises:
      UserError: more than 1% of them are broken; names the first five.
    """
    candidates = (
        (f"{source}, item {index + 1}", lambda index=index, item=item: read(index, item))
        for index, item in enumerate(items)
    )
    return list(_valid(source, candidates))


def _valid(
    source: str | os.PathLike[str],
    candidates: Iterable[tuple[str, Callable[[], Record]]],
    max_broken: float = float("inf"),
) -> Iterator[Record]:
    """Yields the valid records; reports the broken ones at the end.

    Args:
      candidates: for each record its position, for messages, and a function that makes it or raises InvalidRecordError.
      max_broken: nothing is yielded once more than these are broken.

    Raises:
      UserError: more than 1% are broken.
    """
    count = num_broken = 0
    reported: list[tuple[str, str]] = []
    for place, make in candidates:
        count += 1
        try:
            record = make()
        except InvalidRecordError as error:
            num_broken += 1
            if num_broken <= MAX_REPORTED:
                reported.append((place, str(error)))
            continue
        if num_broken <= max_broken:
            yield record
    text = _describe_broken(reported) + ("; ..." if num_broken > MAX_REPORTED else "")
    if num_broken > MAX_BROKEN_SHARE * count:
        raise UserError(
            f"{source}: {num_broken} of {count} records cannot be used, more than {MAX_BROKEN_SHARE:.0%}: {text}"
        )
    if num_broken:
        say(one_line(f"{source}: leaving out {num_broken} of {count} records: {text}"))


def _describe_broken(broken: Sequence[tuple[str, str]]) -> str:
    """Broken records by reason: "a.jsonl:3, a.jsonl:7: not JSON; ..."."""
    places_by_reason: dict[str, list[str]] = {}
    for place, reason in broken:
        places_by_reason.setdefault(reason, []).append(place)
    return "; ".join(f"{', '.join(places)}: {reason}" for reason, places in places_by_reason.items())


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key that puts 2 before 10."""
    return [(int(token), "") if token.isdecimal() else (0, token) for token in re.split(r"(\d+)", name)]


# Fields.


def parse_id(line: Mapping[str, Any], default: int | str | None) -> str:
    """A record's "id", or the default if it has none.

    Raises:
      InvalidRecordError: there is neither; or the id is neither text nor an integer, or no text for one line.
    """
    value = _integer_if_whole(line.get("id"))
    name = default if value is None else value
    if name is None:
        raise InvalidRecordError('lacks an "id"; write the id of its question')
    if isinstance(name, bool) or not isinstance(name, int | str):
        raise InvalidRecordError(f'has an "id" of type {type(name).__name__}; write text or an integer')
    name = str(name)
    if len(name) > MAX_ID:
        raise InvalidRecordError(f'has an "id" of {len(name):,} characters; write {MAX_ID:,} at most')
    if not name.isprintable() and any(unicodedata.category(each) in NOT_IN_IDS for each in name):
        raise InvalidRecordError(f'has an "id" with a control character ({name!r:.80}); leave it out')
    return name


def parse_sample(line: Mapping[str, Any], default: int) -> int:
    """A trace's "sample", its index among its question's traces, or the default if it has none.

    Raises:
      InvalidRecordError: it is not an integer from 0.
    """
    value = _integer_if_whole(line.get("sample"))
    sample = default if value is None else value
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 0:
        raise InvalidRecordError(f'"sample" ({sample!r:.80}) is not an integer from 0; number samples from 0')
    return sample


def parse_finish_reason(line: Mapping[str, Any]) -> FinishReason:
    """A trace's "finish_reason", "stop" if it has none.

    Raises:
      InvalidRecordError: it is neither "stop" nor "length".
    """
    value = line.get("finish_reason")
    if value is None or value == "stop":
        return "stop"
    if value == "length":
        return "length"
    raise InvalidRecordError(
        f'"finish_reason" ({value!r:.80}) is neither "stop" nor "length"; write "stop" if the model ended its turn '
        '(text-generation-inference: eos_token, stop_sequence), "length" if it was cut off'
    )


def parse_number(line: Mapping[str, Any], key: str) -> float:
    """A number under a key, 0 if there is none.

    Raises:
      InvalidRecordError: it is no number.
    """
    value = line.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise InvalidRecordError(f'"{key}" ({value!r:.80}) is not a number')
    return value or 0.0


def parse_numbers(line: Mapping[str, Any], key: str) -> tuple[float, ...]:
    """A list of numbers under a key, empty if there is none.

    Raises:
      InvalidRecordError: it is no such list.
    """
    values = line.get(key)
    if values is None:
        return ()
    if not isinstance(values, list) or not {*map(type, values)} <= {int, float}:
        raise InvalidRecordError(f'"{key}" ({values!r:.80}) is not a list of numbers')
    return tuple(values)


def _integer_if_whole(value: Any) -> Any:
    """2 for 2.0: tables with missing cells hold integers as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
