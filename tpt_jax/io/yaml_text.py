"""YAML that somebody else wrote: plain values only, no tags, and no anchors that expand to gigabytes."""

import itertools
from typing import Any

import yaml

MAX_EXPANDED = 1_000_000  # values that aliases may stand for, if they are more than MAX_GROWTH times the written ones
MAX_GROWTH = 10
MAX_DEPTH = 1_000  # of brackets on a line: PyYAML takes minutes to find out that it cannot nest so deeply


def parse_yaml(text: str | bytes, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The plain values in a YAML text.

    Raises:
      yaml.YAMLError: it is not YAML, has a tag that stands for an object, is nested too deeply or contains itself, its
        aliases stand for too many values, or a value cannot be read.
    """
    _check_brackets(text if isinstance(text, str) else str(text, "latin-1"))
    try:
        reader = loader(text)
        try:
            node = reader.get_single_node()
            if node is None:
                return None
            _check_aliases(node)
            return reader.construct_document(node)
        finally:
            reader.dispose()
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error
    except yaml.YAMLError:
        raise
    except (ValueError, TypeError, OverflowError) as error:  # a number of 5,000 digits, the 99th of January
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


def _check_brackets(text: str) -> None:
    for line in text.splitlines():
        if line.count("[") + line.count("{") > MAX_DEPTH:
            steps = ((each in "[{") - (each in "]}") for each in line)
            if max(itertools.accumulate(steps)) > MAX_DEPTH:
                raise yaml.YAMLError("nested too deeply")


def _check_aliases(root: yaml.Node) -> None:
    """Counts the values as if each alias were written out; a node that several aliases stand for is counted once.

    Raises:
      yaml.YAMLError: they are too many, or a node contains itself.
    """
    sizes: dict[int, int] = {}
    unfinished: set[int] = set()  # those that contain the current node

    def size(node: yaml.Node) -> int:
        key = id(node)
        if key in unfinished:
            raise yaml.YAMLError("an anchor contains an alias to itself")
        if key not in sizes:
            unfinished.add(key)
            sizes[key] = 1 + sum(size(child) for child in _children(node))
            unfinished.remove(key)
        return sizes[key]

    expanded = size(root)
    if expanded > MAX_EXPANDED and expanded > MAX_GROWTH * len(sizes):
        raise yaml.YAMLError(f"its aliases stand for {expanded:,} values; write out what you need")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
