"""README.md of a model on the Hub, its model card: YAML between two lines of ---, then Markdown."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from tpt_jax.io.paths import AnyPath
from tpt_jax.io.yaml_text import parse_yaml

CARD = "README.md"
MADE_BY = "tpt_jax"  # the key of what a card says for this package
FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
MAX_CARD_BYTES = 2**20
SIGNS = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~&$:])")


def read_metadata(path: AnyPath) -> Mapping[str, Any]:
    """The YAML of a card that anyone may have written; {} if there is none that can be read."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        text = file.read(MAX_CARD_BYTES).decode("utf-8", errors="replace")
    match = FRONT_MATTER.match(text)
    try:
        metadata = parse_yaml(match[1]) if match else {}
    except yaml.YAMLError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def text_of(metadata: Mapping[str, Any], key: str) -> str | None:
    """A text of a card's YAML, if it is one that fits on a line."""
    value = metadata.get(key)
    return value if isinstance(value, str) and value.isprintable() and 0 < len(value) <= 200 else None


def front_matter(metadata: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)}---\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it stands, on one line, with no link, image or HTML in it."""
    return SIGNS.sub(r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def fenced(text: str, language: str = "") -> str:
    """A block of code, whatever backticks are in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"
