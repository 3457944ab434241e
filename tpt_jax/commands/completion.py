"""`tpt completion`: a shell's completion of verbs, options, files and the config's keys."""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "fish")
FOLDERS = ("model", "checkpoint", "run_dir", "run_dirs", "folder")  # arguments that name one
INSTALL = """Install it with one of:
  tpt completion bash > ~/.local/share/bash-completion/completions/tpt
  tpt completion zsh > ~/.zfunc/_tpt       (with fpath+=~/.zfunc before compinit in ~/.zshrc)
  tpt completion fish > ~/.config/fish/completions/tpt.fish"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = INSTALL


def main(args: argparse.Namespace) -> None:
    """Prints the completion of `args.parser`, the whole command's."""
    import shtab

    parser = args.parser
    for verb in _verbs(parser):
        if verb.get_default("accepts_overrides"):
            _add_config_keys(verb)
        for action in verb._actions:
            if action.dest in FOLDERS:
                _complete(action, shtab.DIRECTORY)
            elif action.type is Path or action.dest in ("output", "questions", "traces"):
                _complete(action, shtab.FILE)
    print(shtab.complete(parser, args.shell))


def _complete(action: Any, words: Any) -> None:
    """Says how shtab completes an argument's value: it reads an attribute that argparse does not have."""
    action.complete = words


def _verbs(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of the verbs, those of verbs within verbs too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield verb
                yield from _verbs(verb)


def _add_config_keys(parser: argparse.ArgumentParser) -> None:
    for key in _config_keys():
        if f"--{key}" not in parser._option_string_actions:
            parser.add_argument(f"--{key}", help="a key of the config")


def _config_keys() -> list[str]:
    """The dotted keys of a config, those of all tasks together."""
    from tpt_jax.config import RunConfig
    from tpt_jax.tasks import TASKS

    of_tasks = [f"task.{key}" for task in TASKS.values() for key in _keys(task)]
    return sorted({*(key for key in _keys(RunConfig) if key != "task"), *of_tasks})


def _keys(section: Any) -> Iterator[str]:
    for field in dataclasses.fields(section):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from (f"{field.name}.{key}" for key in _keys(field.type))
        else:
            yield field.name
