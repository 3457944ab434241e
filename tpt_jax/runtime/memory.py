"""Programs that do not fit the devices' memory: one line each, with what would make them fit."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator

import jax

from tpt_jax.errors import UserError

GIB = 2**30
EXCEEDS = re.compile(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)")  # in what XLA's TPU compiler says


@dataclasses.dataclass(frozen=True)
class Need:
    """What a program needs of a device, and what there is; bytes."""

    needed: float
    available: float

    def __str__(self) -> str:
        return f"{self.needed / GIB:.1f} of {self.available / GIB:.2f} GiB"


class DoesNotFitError(UserError):
    """A program that the devices' memory does not hold; says what would."""

    def __init__(self, message: str, need: Need | None):
        super().__init__(message)
        self.need = need


@contextlib.contextmanager
def refusing(advise: Callable[[Need | None], str]) -> Iterator[None]:
    """Turns what a compiler says when it runs out of memory into one line.

    Args:
      advise: the line, given how much was needed, where the compiler tells.

    Raises:
      DoesNotFitError: the program does not fit.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = EXCEEDS.search(str(error))
        need = Need(*(float(size) * GIB for size in sizes.groups())) if sizes else None
        raise DoesNotFitError(advise(need), need) from error
