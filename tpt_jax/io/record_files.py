"""Files with many records, a few of which may be broken: those are reported and left out."""

import codecs
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import yaml

from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.files import existing_file, parse_line
from tpt_jax.io.paths import AnyPath, to_path
from tpt_jax.records import FinishReason
from tpt_jax.terminal import say

MAX_BROKEN_SHARE = 0.01  # of a file's records; if more are broken, it is probably the wrong file
MAX_REPORTED = 5  # broken records named in a message
YAML_SUFFIXES = (".yaml", ".yml")

Record = TypeVar("Record")


# Reading.


def read_records(path: str | os.PathLike[str], read: Callable[[int, dict[str, Any]], Record]) -> list[Record]:
    """Reads a file of JSON lines, a JSON list, or (by its suffix) a YAML list.

    Args:
      read: makes a record from an object and its index, from 0; raises InvalidRecordError if it cannot.

    Raises:
      UserError: the file is missing, or more than 1% of its records are broken; names the first five.
    """
    objects = enumerate(_objects_in(to_path(path)))
    return _read_valid(
        path, ((place, lambda index=index, load=load: read(index, load())) for index, (place, load) in objects)
    )


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
    return _read_valid(
        root,
        ((f"{root}/{name}", lambda name=name: read(name, parse_line((root / name).read_bytes()))) for name in names),
    )


def read_items(
    source: str, items: Iterable[dict[str, Any]], read: Callable[[int, dict[str, Any]], Record]
) -> list[Record]:
    """Makes records from objects in memory, by the same rules as read_records.

    Args:
      source: where the objects come from, for messages.

    Raises:
      UserError: more than 1% of them are broken; names the first five.
    """
    return _read_valid(
        source,
        (
            (f"{source}, item {index + 1}", lambda index=index, item=item: read(index, item))
            for index, item in enumerate(items)
        ),
    )


def _read_valid(source: str | os.PathLike[str], candidates: Iterable[tuple[str, Callable[[], Record]]]) -> list[Record]:
    """The valid records; reports the broken ones.

    Args:
      candidates: for each record its position, for messages, and a function that makes it or raises InvalidRecordError.

    Raises:
      UserError: more than 1% are broken.
    """
    records: list[Record] = []
    broken: list[tuple[str, str]] = []
    for place, make in candidates:
        try:
            records.append(make())
        except InvalidRecordError as error:
            broken.append((place, str(error)))
    count = len(records) + len(broken)
    if len(broken) > MAX_BROKEN_SHARE * count:
        raise UserError(
            f"{source}: {len(broken)} of {count} records cannot be used, more than {MAX_BROKEN_SHARE:.0%}: "
            f"{_describe_broken(broken)}"
        )
    if broken:
        say(f"{source}: leaving out {len(broken)} of {count} records: {_describe_broken(broken)}")
    return records


def _describe_broken(broken: Sequence[tuple[str, str]]) -> str:
    """The first broken records, by reason: "a.jsonl:3, a.jsonl:7: not JSON; ..."."""
    places_by_reason: dict[str, list[str]] = {}
    for place, reason in broken[:MAX_REPORTED]:
        places_by_reason.setdefault(reason, []).append(place)
    text = "; ".join(f"{', '.join(places)}: {reason}" for reason, places in places_by_reason.items())
    return f"{text}; ..." if len(broken) > MAX_REPORTED else text


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key that puts 2 before 10."""
    return [(int(token), "") if token.isdecimal() else (0, token) for token in re.split(r"(\d+)", name)]


# Fields.


def parse_id(line: Mapping[str, Any], default: int | str | None) -> str:
    """A record's "id", or the default if it has none.

    Raises:
      InvalidRecordError: there is neither, or the id is neither text nor an integer.
    """
    value = _integer_if_whole(line.get("id"))
    name = default if value is None else value
    if name is None:
        raise InvalidRecordError('lacks an "id"; write the id of its question')
    if isinstance(name, bool) or not isinstance(name, int | str):
        raise InvalidRecordError(f'has an "id" of type {type(name).__name__}; write text or an integer')
    return str(name)


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


def _integer_if_whole(value: Any) -> Any:
    """2 for 2.0: tables with missing cells hold integers as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Formats.


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


def _objects_in(path: AnyPath) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """For each object its position, for messages, and a function that loads it or raises InvalidRecordError."""
    content = existing_file(path).read_bytes().removeprefix(codecs.BOM_UTF8)  # editors on Windows write one
    if path.suffix in YAML_SUFFIXES or content.lstrip().startswith(b"["):
        for index, item in enumerate(_parse_list(path, content)):
            yield f"{path}, item {index + 1}", lambda item=item: _require_object(item)
        return
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", lambda line=line: parse_line(line)


def _parse_list(path: AnyPath, content: bytes) -> list[Any]:
    kind = "YAML" if path.suffix in YAML_SUFFIXES else "JSON"
    try:
        items = yaml.load(content, _Loader) if kind == "YAML" else json.loads(content)
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
