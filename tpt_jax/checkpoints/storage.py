"""What orbax and tensorstore raise when a disk is full or gone, as the error of the system that it is."""

import contextlib
import os
import re
from collections.abc import Iterator

from tpt_jax.io.files import naming
from tpt_jax.io.paths import AnyPath

SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")  # at the end of tensorstore's messages


@contextlib.contextmanager
def system_errors(path: AnyPath) -> Iterator[None]:
    """Turns errors of orbax in the body that a system call caused into that call's OSError, with this path.

    Tensorstore raises a ValueError of several hundred characters, "RESOURCE_EXHAUSTED: ... [os_error_code='28']".
    """
    try:
        with naming(path):
            yield
    except Exception as error:
        code = SYSTEM_ERROR.search(str(error))
        if code is None:
            raise
        number = int(code.group(1))
        raise OSError(number, os.strerror(number), os.fspath(path)) from error
