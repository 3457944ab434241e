"""Shared by the verbs: a parser that fails in one line, number types, and groups of options."""

import argparse
import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from tpt_jax.config import RunConfig


class OneLineParser(argparse.ArgumentParser):
    """argparse, without the usage before each error, and with options by their full names only.

    With shortened ones, an override like --seed would set --seeds.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


# Types.


def positive(text: str) -> int:
    """A whole number from 1."""
    return int(_at_least(1, int(text)))


def positive_or_auto(text: str) -> int | str:
    """A whole number from 1, or "auto"."""
    if text == "auto":
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, or auto")
    return positive(text)


def natural(text: str) -> int:
    """A whole number from 0."""
    return int(_at_least(0, int(text)))


def seed(text: str) -> int:
    """A whole number of 32 bits."""
    value = natural(text)
    if value >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} must be below 2**32")
    return value


def non_negative(text: str) -> float:
    """A number from 0."""
    value = _at_least(0, float(text))
    if math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text} must be finite")
    return value


def positive_number(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    value = _at_least(0, float(text))
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} must be at most 1")
    return value


def not_empty(text: str) -> str:
    """A text of at least one character."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _at_least(least: int, value: float) -> float:
    if not value >= least:
        raise argparse.ArgumentTypeError(f"{value} must be at least {least}")
    return value


# A config and overrides of its keys.


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="a YAML file; see configs/")
    accept_overrides(parser)
    parser.epilog = "Any key of the config can be set: --train.rows 8 --seed 1"


def accept_overrides(parser: argparse.ArgumentParser) -> None:
    """Collects unknown options in `args.overrides` rather than refusing them."""
    parser.set_defaults(accepts_overrides=True, overrides={})


def read_config(args: argparse.Namespace) -> "RunConfig":
    from tpt_jax.config_parsing import load_config

    return load_config(args.config, args.overrides)


# Several hosts.


def add_host_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several hosts", "On Cloud TPU, GKE and Slurm the environment names the hosts.")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of the first host")
    group.add_argument("--num_processes", type=positive, help="number of hosts")
    group.add_argument("--process_id", type=natural, help="number of this host, from 0")


def joined_hosts(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Runs a block as one host of a pod, or alone."""
    import tpt_jax as tpt

    return tpt.joined_hosts(args.coordinator, args.num_processes, args.process_id)
