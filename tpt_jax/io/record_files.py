"""Reading a file of many records, a few of which may be broken: those are named and counted, and the rest goes on."""

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

MAX_BROKEN_SHARE = 0.01  # of a file's records; where more are broken, the file is not what its user thinks it is
MAX_NAMED = 5
YAML = (".yaml", ".yml")

Record = TypeVar("Record")


class _Loader(yaml.SafeLoader):
    """Gives texts as they stand, but for the plainest numbers: to PyYAML's YAML 1.1, 12:30 is 750 and no is false."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (as PyYAML declares it)


for _kind, _pattern in {
    "null": "|~|null|Null|NULL",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?(0|[1-9][0-9]*)\.[0-9]+",
    "merge": "<<",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)


def read_records(path: str | os.PathLike[str], read: Callable[[int, dict[str, Any]], Record]) -> list[Record]:
    """The records of a file of JSON lines, of one JSON list, or (by its suffix) of a YAML list.

    Args:
      read: makes a record of an object and its number, from 0; raises InvalidRecordError where it cannot.

    Raises:
      UserError: the file is missing, or more than 1% of its records are broken; names the first five.
    """
    items = enumerate(_items(to_path(path)))
    return _collect(
        path, ((place, lambda index=index, item=item: read(index, item())) for index, (place, item) in items)
    )


def read_folder(
    folder: str | os.PathLike[str], pattern: str, read: Callable[[str, dict[str, Any]], Record]
) -> list[Record]:
    """The records of a folder of JSON files, one object each; 2.json stands before 10.json.

    Args:
      pattern: of the files' paths below the folder.
      read: makes a record of such a path and the object in the file; raises InvalidRecordError where it cannot.

    Raises:
      UserError: there are no such files, or more than 1% of them are broken; names the first five.
    """
    root = to_path(folder)
    names = sorted((str(file.relative_to(root)) for file in root.glob(pattern)), key=_in_order)
    if not names:
        raise UserError(f"{root}: holds no {pattern}; give a folder of JSON files, one object each")
    return _collect(
        root,
        ((f"{root}/{name}", lambda name=name: read(name, parse_line((root / name).read_bytes()))) for name in names),
    )


def read_items(
    source: str, items: Iterable[dict[str, Any]], read: Callable[[int, dict[str, Any]], Record]
) -> list[Record]:
    """The records of objects that are in memory already, by the same rules.

    Args:
      source: where they come from, for messages.

    Raises:
      UserError: more than 1% of them are broken; names the first five.
    """
    numbered = enumerate(items)
    return _collect(
        source,
        ((f"{source}, item {index + 1}", lambda index=index, item=item: read(index, item)) for index, item in numbered),
    )


def id_of(line: Mapping[str, Any], default: int | str | None) -> str:
    """What a record is called: its "id", else the default.

    Raises:
      InvalidRecordError: it has neither, or its id is neither a text nor a whole number.
    """
    given = _whole(line.get("id"))
    name = default if given is None else given
    if name is None:
        raise InvalidRecordError('lacks an "id"; write that of its question')
    if isinstance(name, bool) or not isinstance(name, int | str):
        raise InvalidRecordError(f'has an "id" of type {type(name).__name__}; write a text or a whole number')
    return str(name)


def sample_of(line: Mapping[str, Any], default: int) -> int:
    """Which of its question's traces one is.

    Raises:
      InvalidRecordError: it is no whole number from 0.
    """
    given = _whole(line.get("sample"))
    sample = default if given is None else given
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 0:
        raise InvalidRecordError(f"the sample {sample!r:.80} is no whole number from 0; number samples from 0")
    return sample


def finish_reason_of(line: Mapping[str, Any]) -> FinishReason:
    """How a trace ended; one that does not say so came to its end.

    Raises:
      InvalidRecordError: in another way than the two that there are.
    """
    given = line.get("finish_reason")
    if given is None or given == "stop":
        return "stop"
    if given == "length":
        return "length"
    raise InvalidRecordError(
        f'the finish_reason {given!r:.80} is neither "stop" nor "length"; write "stop" where the model ended its turn '
        '(text-generation-inference says eos_token or stop_sequence), "length" where it was cut'
    )


def _whole(value: Any) -> Any:
    """2 for 2.0, as tables with missing cells write whole numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _collect(path: str | os.PathLike[str], items: Iterable[tuple[str, Callable[[], Record]]]) -> list[Record]:
    """The records that can be made; items are the places where they stand and what makes them."""
    records: list[Record] = []
    broken: list[tuple[str, str]] = []
    for place, make in items:
        try:
            records.append(make())
        except InvalidRecordError as error:
            broken.append((place, str(error)))
    count = len(records) + len(broken)
    if len(broken) > MAX_BROKEN_SHARE * count:
        raise UserError(
            f"{path}: {len(broken)} of {count} records cannot be used, more than {MAX_BROKEN_SHARE:.0%}: "
            f"{_named(broken)}"
        )
    if broken:
        say(f"{path}: {len(broken)} of {count} records are left out: {_named(broken)}")
    return records


def _named(broken: Sequence[tuple[str, str]]) -> str:
    """Where the first ones stand and what is wrong with them; those of one fault together."""
    by_reason: dict[str, list[str]] = {}
    for place, reason in broken[:MAX_NAMED]:
        by_reason.setdefault(reason, []).append(place)
    named = "; ".join(f"{', '.join(places)}: {reason}" for reason, places in by_reason.items())
    return f"{named}; ..." if len(broken) > MAX_NAMED else named


def _in_order(name: str) -> list[tuple[int, str]]:
    """A sorting key by which 2 comes before 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _items(path: AnyPath) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Where each record stands, and what gives it or raises InvalidRecordError."""
    content = _content(existing_file(path))
    if path.suffix in YAML or content.lstrip().startswith(b"["):
        for index, item in enumerate(_list(path, content)):
            yield f"{path}, item {index + 1}", lambda item=item: _object(item)
        return
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", lambda line=line: parse_line(line)


def _content(path: AnyPath) -> bytes:
    """Without the byte-order mark that editors on Windows begin a file with."""
    return path.read_bytes().removeprefix(codecs.BOM_UTF8)


def _list(path: AnyPath, content: bytes) -> list[Any]:
    kind = "YAML" if path.suffix in YAML else "JSON"
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


def _object(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise InvalidRecordError(f"of type {type(item).__name__}, not an object")
    return item
