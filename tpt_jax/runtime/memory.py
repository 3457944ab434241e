"""Turns a compiler's out-of-memory error into one line that says what would fit."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator

import jax

from tpt_jax.errors import UserError

GIB = 2**30
TPU_OUT_OF_MEMORY = re.compile(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)")  # XLA's TPU compiler


@dataclasses.dataclass(frozen=True)
class MemoryNeed:
    """Memory a program needs on one device, against the memory available there; bytes."""

    needed: float
    available: float

    def __str__(self) -> str:
        return f"{self.needed / GIB:.1f} of {self.available / GIB:.2f} GiB"


class DoesNotFitError(UserError):
    """A program does not fit in the devices' memory. The message says what would fit."""

    def __init__(self, message: str, need: MemoryNeed | None):
        super().__init__(message)
        self.need = need


@contextlib.contextmanager
def explain_out_of_memory(advise: Callable[[MemoryNeed | None], str]) -> Iterator[None]:
    """Replaces the compiler's out-of-memory error with a one-line DoesNotFitError.

    Args:
      advise: writes the line; takes the memory needed, or None if the compiler does not report it.

    Raises:
      DoesNotFitError: the program does not fit.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = TPU_OUT_OF_MEMORY.search(str(error))
        need = MemoryNeed(*(float(size) * GIB for size in sizes.groups())) if sizes else None
        raise DoesNotFitError(advise(need), need) from error
