"""The command line's parser, and the numbers that its options take: a mistake is one line and exit status 2."""

import argparse
import math
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """argparse, without the whole usage before each error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help tells more\n")


def positive(text: str) -> int:
    """A whole number from 1."""
    return int(_at_least(1, int(text)))


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
