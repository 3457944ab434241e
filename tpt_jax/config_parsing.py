"""Makes configs of YAML files, command-line options and keyword arguments; each mistake in them is one line."""

import copy
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import pydantic
import yaml

from tpt_jax.config import Project, RunConfig, RunName, StepRange, Steps
from tpt_jax.errors import UserError, suggestion
from tpt_jax.io.yaml_text import parse_yaml
from tpt_jax.tasks import TASKS
from tpt_jax.tasks.file import Source

Section = TypeVar("Section")
SWEEP = "sweep"  # the section of a file that `tpt sweep` reads, besides those of a run
OPTIONAL_TEXTS = (str | None, Project, StepRange, Path | None)


def load_config(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Reads a YAML file and applies overrides to it.

    A file may build on another one: `extends: quickstart.yaml`, a path relative to its own folder.

    Args:
      overrides: values by dotted key, e.g. {"train.rows": "8", "num_rounds": 1, "prune": {"steps": ["any"]}}. Text is
        parsed as YAML, as on the command line, unless the option itself holds text or a path. Other values are used
        unchanged; a mapping is merged into its section.

    Raises:
      UserError: the file is missing or invalid; or a key is unknown or its value invalid (names the first one).
    """
    tree = read_tree(path)
    if SWEEP in tree:
        raise UserError(f"{path}: describes a sweep; run it with `tpt sweep --config {path}`")
    return override(tree, overrides or {})


def read_tree(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The plain values of a YAML file and of those that it extends, before they are checked.

    Raises:
      UserError: the file is missing, or is not YAML.
    """
    return _read_tree(Path(path), extended_by=())


def override(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> RunConfig:
    """The config of plain values, after overrides as in `load_config`; the values themselves stay as they are.

    Raises:
      UserError: a key is unknown or its value invalid; names the first one.
    """
    tree = copy.deepcopy(dict(tree))
    for key, value in overrides.items():
        section, name = _enter(tree, key)
        section[name] = _parse_text(key, value, tree) if isinstance(value, str) else _merge(section.get(name), value)
    return parse_config(tree)


def parse_config(tree: Mapping[str, Any]) -> RunConfig:
    """Builds a run's config from plain values, nested as in the YAML file.

    Raises:
      UserError: a key is unknown or its value invalid; names the first one.
    """
    return settings(RunConfig, _merge(_task_defaults(tree), tree))


def settings(cls: type[Section], values: Mapping[str, Any], option: str = "") -> Section:
    """Builds a section from plain values: settings(TrainConfig, {"rows": 8, "optimizer": {"name": "muon"}}).

    Args:
      cls: a dataclass of config.py, or a task's config.
      values: nested mappings or instances for sections within the section.
      option: prefix of the keys in error messages, e.g. "train." or "--".

    Raises:
      UserError: a key is unknown or its value invalid; names the first one.
    """
    try:
        return _adapter(cls).validate_python(_merge({}, values))
    except pydantic.ValidationError as error:
        raise UserError(_first_error(error, cls, option)) from error


def as_config(config: RunConfig | str | os.PathLike[str]) -> RunConfig:
    """A config that is loaded already, or the one in a YAML file."""
    return config if isinstance(config, RunConfig) else load_config(config)


def check_value(name: str, value: Any, kind: Any) -> Any:
    """A value of a call, if it fits a type, such as the annotated ones of config.py.

    Raises:
      UserError: it does not; names the value and the rule.
    """
    try:
        return _adapter(kind).validate_python(value, strict=True)
    except pydantic.ValidationError as error:
        raise UserError(_first_error(error, kind, name)) from error


def dump_config(config: RunConfig) -> str:
    """YAML that parse_config turns back into the same config."""
    return yaml.safe_dump(plain_values(config), sort_keys=False, allow_unicode=True)


def plain_values(section: Any) -> dict[str, Any]:
    """A config or a section of it as nested plain values, as in a YAML file."""
    return _adapter(type(section)).dump_python(section, mode="json")


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested values by dotted key: {"train": {"rows": 8}} as {"train.rows": 8}."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {key: leaf for name in tree for key, leaf in flat(tree[name], f"{path}.{name}".lstrip(".")).items()}


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """["--train.rows", "8", "--seed=1"] as {"train.rows": "8", "seed": "1"}.

    Raises:
      UserError: an argument is not an option, or an option has no value.
    """
    overrides: dict[str, str] = {}
    remaining = list(arguments)
    while remaining:
        option = remaining.pop(0)
        if not option.startswith("--"):
            raise UserError(f"{option!r}: unexpected argument; write overrides as --key.sub VALUE")
        key, equals, value = option[2:].partition("=")
        if not equals:
            if not remaining:
                raise UserError(f"--{key} has no value; write --{key} VALUE")
            value = remaining.pop(0)
        overrides[key] = value
    return overrides


@functools.cache
def _adapter(cls: type[Section]) -> pydantic.TypeAdapter[Section]:
    return pydantic.TypeAdapter(cls)


def _read_tree(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    """A file's keys, merged over those of the file that it extends.

    Args:
      extended_by: the files that led here, to refuse a cycle.
    """
    if path.resolve() in extended_by:
        raise UserError(f"{path}: extends itself; let it extend another file, or none")
    if not path.is_file():
        raise UserError(f"{path}: no such config file; write one with `tpt init`, or take one from the repository")
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must be a mapping of keys to values, as in configs/quickstart.yaml")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    return _merge(_read_tree(path.parent / str(base), (*extended_by, path.resolve())), tree)


def _merge(base: Any, top: Any) -> Any:
    """`top` over `base`: mappings key by key, as dicts; any other value of `top` replaces that of `base`."""
    if not isinstance(top, Mapping):
        return top
    base = base if isinstance(base, Mapping) else {}
    return {**base, **{key: _merge(base.get(key), value) for key, value in top.items()}}


def _enter(tree: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The section that a dotted key leads to, created where missing, and the key's last name."""
    *sections, last = key.split(".")
    for name in sections:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise UserError(f"{key}: {name} is a value, not a section; set {name} itself")
    return tree, last


def _parse_text(key: str, text: str, tree: Mapping[str, Any]) -> Any:
    """An override's value: the text itself where the option holds text, since YAML would read "#" as a comment.

    Steps are parsed with the config: names with commas are no YAML.
    """
    *sections, last = key.split(".")
    section = _section(RunConfig, sections, _task_name(tree))
    types = {field.name: field.type for field in dataclasses.fields(section)} if section else {}
    expected = types.get(last)
    if expected in (str, RunName, Path, Steps, Source) or (expected in OPTIONAL_TEXTS and text != "null"):
        return text
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{key} ({text!r}): not YAML; quote it if it is text") from error


def _task_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The task's own lengths and time limit, if it is a known one: no single default would suit every task."""
    task = TASKS.get(_task_name(tree))
    if task is None:
        return {}
    lengths = dataclasses.asdict(task.generation)
    return {"think": lengths, "evaluate": lengths, "prune": {"seconds_per_trace": task.seconds_per_trace}}


def _task_name(tree: Mapping[str, Any]) -> str:
    task = tree.get("task")
    return str(task.get("name") if isinstance(task, Mapping) else getattr(task, "name", ""))


def _section(cls: Any, keys: Sequence[str], task_name: str) -> Any:
    """The dataclass that declares the section under `keys`, starting from `cls`; None if there is no such section."""
    for key in keys:
        types = {field.name: field.type for field in dataclasses.fields(cls)}
        cls = TASKS.get(task_name) if key == "task" else types.get(key)
        cls = next(filter(dataclasses.is_dataclass, get_args(cls)), cls)  # a section that may be null
        if not dataclasses.is_dataclass(cls):
            return None
    return cls


# Errors.


def _first_error(error: pydantic.ValidationError, cls: type[Any], option: str) -> str:
    """The first of pydantic's errors in one line: the option, its value, the rule."""
    first = error.errors()[0]
    keys = [str(part) for part in first["loc"]]
    task_name = ""
    if len(keys) > 1 and keys[0] == "task":
        task_name = keys.pop(1)  # pydantic also names the chosen member of a union, which is not a key
    key = option + ".".join(keys)
    if first["type"] == "union_tag_invalid":
        tags = first.get("ctx", {})
        return f"{key}.name ({tags.get('tag')!r}): unknown; choose from {tags.get('expected_tags')}"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [field.name for field in dataclasses.fields(_section(cls, keys[:-1], task_name))]
        return f"{key}: unknown key; {suggestion(keys[-1], known)}"
    if first["type"] == "union_tag_not_found":
        return f"{key}.name: missing; it has no default, so set it"
    if first["type"] in ("missing", "missing_argument"):
        return f"{key}: missing; it has no default, so set it"
    value = " ".join(repr(first["input"]).split())  # an array's repr has several lines
    return f"{key} ({value}): {first['msg'][0].lower()}{first['msg'][1:]}"
