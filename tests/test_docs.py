"""The documentation against the code: navigation, links, commands, config keys, files and names that pages mention."""

import argparse
import functools
import importlib.util
import re
import shlex
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from processes import ROOT

import tpt_jax as tpt
from tpt_jax.config import OptimizerConfig, RunConfig, TrainConfig
from tpt_jax.config_parsing import SWEEP, load_config, parse_overrides, read_tree
from tpt_jax.tasks import TASKS

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TOP_LEVEL = [ROOT / name for name in ("README.md", "BUILD.md", "BENCHMARKS.md", "CHANGELOG.md")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)", re.MULTILINE)
FOLDERS = "configs|examples|benchmarks|tests|tpu_scripts|tpt_jax|\\.ci"
FILE = re.compile(rf"(?<![\w/.])((?:{FOLDERS})/[\w./-]*\w)(?![\w*{{])")
SECTIONS = "model|task|prompt|mesh|think|prune|train|evaluate"
KEY = re.compile(rf"^(?:--)?((?:{SECTIONS})(?:\.[a-z]\w*)+)")


def _load_generated() -> Any:
    """The site's hook, docs/generated.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("generated", DOCS / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATED = _load_generated()
PARSERS: dict[str, argparse.ArgumentParser] = {parser.prog: parser for parser in GENERATED.parsers()}


def documents() -> list[Any]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in (*PAGES, *TOP_LEVEL)]


def prose(path: Path) -> str:
    """A file without its blocks of code."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def blocks(path: Path, *languages: str) -> Iterator[str]:
    return (text for language, text in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages)


@functools.cache
def anchors(path: Path) -> set[str]:
    """Those of the rendered page, as the Markdown library's `toc` makes them, and those of the library's names."""
    markdown = GENERATED.on_page_markdown(path.read_text(encoding="utf-8"))
    found: set[str] = set(re.findall(r"^::: ([\w.]+)", markdown, re.MULTILINE))
    for title in HEADING.findall(FENCE.sub("", markdown)):
        text = re.sub(r"[`*]|\]\([^)]*\)|\[", "", title)
        plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


@functools.cache
def keys() -> set[str]:
    """All dotted keys of a config, those of all tasks together."""
    sections = [("", RunConfig), *(("task.", task) for task in TASKS.values())]
    return {key for prefix, cls in sections for key in GENERATED.keys(cls, prefix)}


def commands(path: Path) -> Iterator[list[str]]:
    """The `tpt` commands in a page's blocks, as words, without comments."""
    for block in blocks(path, ""):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.search(r"(?:^|&& |\s-- )\s*(tpt|run)\s+(.*)", line):
                words = shlex.split(found[2], comments=True)
                yield ["run", *words] if found[1] == "run" else words


def parser_of(words: list[str]) -> argparse.ArgumentParser | None:
    return PARSERS.get(" ".join(["tpt", *words[:1]])) or PARSERS.get(" ".join(["tpt", *words[:2]]))


def test_every_page_is_in_the_navigation_once() -> None:
    def files(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for each in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            yield from files(each)

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(files(site["nav"])) == [path.name for path in PAGES]


@pytest.mark.parametrize("path", documents())
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for link in LINK.findall(prose(path)):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("path", documents())
def test_files_that_are_named_exist(path: Path) -> None:
    for name in FILE.findall(path.read_text(encoding="utf-8")):
        is_yours = name == "tpu_scripts/tpu.env" or "NAME" in name
        assert is_yours or (ROOT / name).exists(), name


@pytest.mark.parametrize("path", documents())
def test_commands_parse(path: Path) -> None:
    for words in commands(path):
        parser = parser_of(words)
        assert parser is not None, words
        args, rest = parser.parse_known_args(words[len(parser.prog.split()) - 1 :])
        if not rest:
            continue
        assert parser.get_default("accepts_overrides"), words
        config = args.config if args.config and args.config.name != "FILE" else ROOT / "configs/quickstart.yaml"
        load_config(ROOT / config, parse_overrides(rest))


@pytest.mark.parametrize("path", [each for each in documents() if each.id != "CHANGELOG.md"])  # names old words
def test_words_of_the_code_exist(path: Path) -> None:
    """Config keys, verbs with their options, and the library's names, where a sentence mentions them."""
    known = keys()
    scripts = "".join(script.read_text() for script in (ROOT / "tpu_scripts").glob("*.sh"))
    options = {option for parser in PARSERS.values() for option in parser._option_string_actions}
    for span in SPAN.findall(prose(path)):
        if (key := KEY.match(span)) and not key[1].endswith((".jsonl", ".safetensors")):
            assert key[1] in known, span
        if path in (*PAGES, ROOT / "README.md") and (option := re.match(r"--[a-z_]+(?![\w.-])", span)):
            assert option[0] in options or option[0] in scripts or option[0][2:] in known, span
        for name in re.findall(r"\btpt\.(\w+)", span):
            assert name in tpt.__all__, span
        if re.fullmatch(r"tpt [a-z]+.*", span):
            parser = parser_of(span.split()[1:])
            group = f"{' '.join(span.split()[:2])} "
            assert parser or any(prog.startswith(group) for prog in PARSERS), span
            for name in re.findall(r"--([a-z]\w*(?:\.\w+)*)", span):
                assert parser is not None
                assert f"--{name}" in parser._option_string_actions or name in known, span


@pytest.mark.parametrize("path", documents())
def test_examples_of_configs_and_programs_are_valid(path: Path) -> None:
    for block in blocks(path, "yaml"):
        for section, values in yaml.safe_load(block).items():
            names = [f"{section}.{key}" for key in values] if isinstance(values, dict) else [section]
            assert section == SWEEP or set(names) <= keys(), names
    for block in blocks(path, "python"):
        compile(block, str(path), "exec")
        for name in re.findall(r"\btpt\.([a-z]\w*)", block):
            assert name in tpt.__all__, name


def test_the_reference_has_every_verb_option_key_and_name() -> None:
    reference = GENERATED.commands()
    assert "%%" not in reference
    assert all("%%" not in parser.format_help() for parser in PARSERS.values())
    assert all(
        len(line) <= GENERATED.USAGE_WIDTH for usage in FENCE.findall(reference) for line in usage[1].splitlines()
    )
    for prog, parser in PARSERS.items():
        assert f"### {prog}\n" in reference
        for action in parser._actions:
            assert all(option in reference for option in action.option_strings if action.dest != "help")
    configuration = GENERATED.configuration()
    assert "`task.train` · text or path · required\n" in configuration
    assert "`task.columns` · mapping · default `{}`\n" in configuration
    for key in keys() - {"task.name"}:
        assert re.search(rf"^`{key}` · .+ · .+\n:   ..+", configuration, re.MULTILINE), key
    names = re.findall(r"^::: tpt_jax\.(\w+)", (DOCS / "library.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(tpt.__all__)


def test_the_benchmark_of_training_takes_what_a_config_does() -> None:
    choices = {action.dest: action.choices for action in PARSERS["tpt bench train"]._actions}
    for cls, names in ((TrainConfig, ["remat", "attention"]), (OptimizerConfig, ["name", "first_moment"])):
        hints = get_type_hints(cls, include_extras=True)
        for name in names:
            assert choices["optimizer" if name == "name" else name] == get_args(hints[name]), name


def test_every_picture_is_shown() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (*PAGES, *TOP_LEVEL))
    for picture in (DOCS / "pictures").iterdir():
        assert f"pictures/{picture.name}" in text, picture.name


def test_sweep_settings_in_commands_are_keys() -> None:
    settings = [word for path in (*PAGES, *TOP_LEVEL) for words in commands(path) for word in words if "=" in word]
    assert settings
    for setting in settings:
        for key in re.findall(r"([\w.]+)=", setting):
            assert key in keys(), setting
    assert SWEEP in read_tree(ROOT / "configs/sweeps/strategies.yaml")
