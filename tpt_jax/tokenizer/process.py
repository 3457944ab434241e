"""A process that does first what a model folder's files could make slow, huge or deadly: chat templates and tokenizers.

A chat template is a program, and the regular expressions of a tokenizer.json can take for ever on some texts. Jinja's
sandbox keeps a template from files and processes, but has no limits of time and size; so templates are only rendered in
a process of their own, and a text is encoded there once before this process encodes it. It has SECONDS for each text,
MEMORY_LIMIT and MAX_CHARACTERS of guarded.py, and is killed if it takes more. A round trip costs a tenth of a
millisecond.

What this does not hold against: a bug in the tokenizers or sentencepiece library that gives control of the process,
which has the user's rights; and tokens whose decoding alone is slow.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

from tpt_jax.errors import UserError

SECONDS = 30.0  # for a text, and for loading a tokenizer, which takes seconds on a busy machine
MAX_ANSWER_BYTES = 2**28
PROGRAM = Path(__file__).with_name("guarded.py")

Answer = dict[str, Any]  # see guarded.answer


class _Guarded:
    """The process, and the pipe to it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._pipe, theirs = Pipe()
        with theirs:
            # -P: no imports from the program's own folder. A group of its own: Ctrl-C in a terminal does not reach it.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                process_group=0,
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            )

    def ask(self, request: bytes) -> Answer:
        """The answer to a request.

        Raises:
          TimeoutError: it takes too long.
          EOFError, OSError: the process ends, or its answer is too long.
        """
        self._pipe.send_bytes(request)
        if not self._pipe.poll(SECONDS):
            raise TimeoutError
        return json.loads(self._pipe.recv_bytes(MAX_ANSWER_BYTES))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._pipe.close()


_lock = threading.Lock()
_guarded: _Guarded | None = None


def ask(what: str, request: Mapping[str, Any]) -> Answer:
    """Has a text rendered and encoded under limits; starts the process if there is none.

    Args:
      what: the file that is to blame if a limit is exceeded, and what it holds.
      request: with "text", or with "template" and "variables"; and with "tokenizer", the path of a tokenizer.json, for
        which "reload" forgets an earlier file of that name.

    Raises:
      UserError: a limit is exceeded.
    """
    global _guarded
    message = json.dumps(request).encode()
    with _lock:
        for is_last in (False, True):  # a process that something else has killed gets a successor
            if _guarded is None or _guarded.owner != os.getpid():  # a fork must not share the pipe
                _guarded = _Guarded()
            try:
                return _guarded.ask(message)
            except TimeoutError as error:
                _end()
                raise UserError(f"{what}: takes longer than {SECONDS:.0f} s on one text; use another") from error
            except (EOFError, OSError) as error:
                _end()
                if is_last:
                    raise UserError(f"{what}: exceeds the memory limit, or crashes; use another") from error
            except BaseException:
                _end()  # an answer that nobody waits for would be taken for that to the next request
                raise
    raise AssertionError("unreachable")


def _end() -> None:
    global _guarded
    if _guarded is not None and _guarded.owner == os.getpid():
        with contextlib.suppress(OSError):
            _guarded.end()
    _guarded = None


atexit.register(_end)
