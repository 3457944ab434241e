"""What the site takes from the code and from the files at the top level, so that no page repeats them.

mkdocs calls `on_page_markdown` for each page (a hook in mkdocs.yml). <!-- generated: NAME --> becomes what GENERATORS
has for the name; a page that is nothing but a link to a file at the top level, as [BENCHMARKS.md](../BENCHMARKS.md),
becomes that file. Nothing here imports JAX.
"""

import argparse
import dataclasses
import json
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic

from tpt_jax.commands import main as command
from tpt_jax.config import RunConfig
from tpt_jax.tasks import TASKS

ROOT = Path(__file__).parent.parent
USAGE_WIDTH = 84  # characters; fits beside the two menus of a 1280-pixel window
ONE_LINK = re.compile(r"\[[^\]]*\]\(\.\./([A-Z]+\.md)\)")
GENERATED = re.compile(r"<!-- generated: (\w+) -->")
# Files at the top level, and the pages that show them.
PAGE_OF = {"BENCHMARKS.md": "benchmarks.md", "BUILD.md": "building.md", "CHANGELOG.md": "changes.md"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page's Markdown as it is rendered."""
    if whole := ONE_LINK.fullmatch(markdown.strip()):
        markdown = included((ROOT / whole[1]).read_text(encoding="utf-8"))
    return GENERATED.sub(lambda match: GENERATORS[match[1]](), markdown)


def included(markdown: str) -> str:
    """A file of the top level as a page: its links start in docs/ now."""
    for name, page in PAGE_OF.items():
        markdown = markdown.replace(f"]({name}", f"]({page}")
    return markdown.replace("](docs/", "](")


def introduction() -> str:
    """README's first paragraphs and picture."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return included(text.partition("\n\n")[2].partition("\n## ")[0])


# The commands.


def commands() -> str:
    """Every verb, with its arguments."""
    return "\n".join(line for parser in parsers() for line in _verb(parser))


def parsers(parser: argparse.ArgumentParser | None = None) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all verbs, in the order of `tpt --help`."""
    parser = parser or command._parser()
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for each in group.choices.values():
            yield from parsers(each)


def _verb(parser: argparse.ArgumentParser) -> Iterator[str]:
    actions = [action for action in parser._actions if action.dest != "help"]
    required = " ".join(_name(action) for action in actions if action.required)
    overrides = " [--KEY VALUE ...]" if parser.get_default("accepts_overrides") else ""
    rest = " [OPTIONS]" if any(not action.required for action in actions) else ""
    usage = textwrap.fill(
        f"{parser.prog} {required}{rest}{overrides}".replace("  ", " "),
        USAGE_WIDTH,
        subsequent_indent="    ",
        break_on_hyphens=False,
    )
    yield f"### {parser.prog}\n\n{parser.description}\n\n```\n{usage}\n```\n"
    for action in actions:
        yield f"`{_name(action)}`\n:   {_ended(_argument(action))}\n"
    if parser.epilog:
        yield f"{parser.epilog}\n"


def _name(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings)
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices:
        metavar = "|".join(map(str, action.choices))
    if not name:
        return f"{metavar} [{metavar} ...]" if action.nargs in ("+", "*") else metavar
    if action.nargs == 0:
        return name
    return f"{name} [{metavar}]" if action.nargs == "?" else f"{name} {metavar}"


def _argument(action: argparse.Action) -> str:
    parts = [] if action.help is None else [action.help.replace("%%", "%")]
    if action.type is not None and getattr(action.type, "__module__", "").startswith("tpt_jax"):
        parts.append((action.type.__doc__ or "").splitlines()[0].rstrip("."))
    if action.required and action.option_strings:
        parts.append("required")
    elif action.default not in (None, False, [], argparse.SUPPRESS) and "if not given" not in (action.help or ""):
        parts.append(f"default `{action.default}`")
    return "; ".join(_lower_first(part) for part in parts)


# The config.


def configuration() -> str:
    """Every key of a config, by section."""
    lines = [_section("The run", RunConfig, "")]
    for field in dataclasses.fields(RunConfig):
        if field.name == "task":
            lines.append("## task\n\nThe keys depend on `task.name`.\n")
            lines += [_section(f"task: {name}", task, "task.", level=3) for name, task in TASKS.items()]
        elif (section := _dataclass_of(field.type)) is not None:
            lines += _sections(section, field.name)
    return "\n".join(lines)


def _sections(cls: Any, path: str) -> Iterator[str]:
    yield _section(path, cls, f"{path}.")
    for field in dataclasses.fields(cls):
        inner = _dataclass_of(field.type)
        if inner is not None:
            yield from _sections(inner, f"{path}.{field.name}")


def _section(title: str, cls: Any, prefix: str, level: int = 2) -> str:
    intro, meanings = documented(cls)
    lines = [f"{'#' * level} {title}\n\n{intro}\n"]
    for field in dataclasses.fields(cls):
        is_section = field.name == "task" or _dataclass_of(field.type) is not None
        if (is_section and not _may_be_null(field.type)) or (prefix, field.name) == ("task.", "name"):
            continue  # sections, which follow; and the title
        meaning = f":   {_ended(meanings[field.name])}\n"
        lines.append(f"`{prefix}{field.name}` · {kind(field.type)} · {_default(field)}\n{meaning}")
    return "\n".join(lines)


def keys(cls: Any, prefix: str) -> Iterator[str]:
    """The dotted keys of a section and of those within it."""
    for field in dataclasses.fields(cls):
        inner = _dataclass_of(field.type)
        if inner is not None:
            yield from keys(inner, f"{prefix}{field.name}.")
        if (inner is None or _may_be_null(field.type)) and field.name != "task":
            yield f"{prefix}{field.name}"


def documented(cls: Any) -> tuple[str, Mapping[str, str]]:
    """What a class's docstring says of it, and of each attribute; the bases' docstrings say the rest."""
    meanings: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        _, _, attributes = (each.__doc__ or "").partition("Attributes:\n")
        for names, text in re.findall(r"^ {6}(\w[\w, ]*): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE):
            for name in names.split(", "):
                meanings[name] = " ".join(text.split())
    intro = (cls.__doc__ or "").partition("Attributes:")[0]
    return "\n\n".join(" ".join(part.split()) for part in intro.split("\n\n")), meanings


def kind(annotation: Any) -> str:
    """A field's type in words: "whole number from 1, or null"."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _annotated(arguments[0], arguments[1:])
    if origin is typing.Literal:
        return " or ".join(f"`{each}`" for each in arguments)
    if origin in (typing.Union, types.UnionType):
        parts = [kind(each) for each in arguments if each is not type(None)]
        return " or ".join(parts) + (", or null" if _may_be_null(annotation) else "")
    if origin is tuple:
        return f"list ({kind(arguments[0])})"
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "`true` or `false`", "Path": "path"}
    return names.get(getattr(annotation, "__name__", ""), "mapping")


def _annotated(base: Any, rules: tuple[Any, ...]) -> str:
    text = kind(base)
    if "step" in repr(base).lower():
        return "list of steps"
    for rule in rules:
        for each in getattr(rule, "metadata", None) or [rule]:
            for name, words in {"ge": "from", "gt": "above", "le": "to", "lt": "below"}.items():
                bound = getattr(each, name, None)
                if bound is not None:
                    text = "whole number from 1" if (base, name, bound) == (int, "gt", 0) else f"{text} {words} {bound}"
    return text


def _dataclass_of(annotation: Any) -> Any:
    """The dataclass of a section within a section, which may be null."""
    parts = (annotation, *typing.get_args(annotation))
    found = [each for each in parts if isinstance(each, type) and dataclasses.is_dataclass(each)]
    return found[0] if len(found) == 1 else None


def _may_be_null(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if isinstance(value, pydantic.fields.FieldInfo):
        value = value.get_default(call_default_factory=True)
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, tuple):
        return f"default `[{', '.join(str(getattr(each, 'name', each)) for each in value)}]`"
    return f"default `{json.dumps(value) if value in (None, '') or isinstance(value, bool) else value}`"


def _lower_first(text: str) -> str:
    is_name = text[:2].isalpha() and text[:2].isupper()
    return text if is_name else text[:1].lower() + text[1:]


def _ended(text: str) -> str:
    """With a full stop."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


GENERATORS: Mapping[str, Callable[[], str]] = {
    "introduction": introduction,
    "commands": commands,
    "configuration": configuration,
}
