"""Programs judged by tests. A program runs in the sandbox, and what is expected of it is never where it runs.

A question's `data` has one of two forms:

  {"tests": ["assert add(2, 3) == 5", ...], "setup": ..., "prompt": ..., "entry_point": ...}
      Statements that call the program's functions. Optional: `setup`, statements that come before them; `prompt`, the
      beginning of the program, where the task is to go on from it; `entry_point`, a function that the tests call though
      it has a name of Python's own.
  {"inputs": ["2 3", ...], "outputs": ["5", ...]}
      Texts for standard input, and what standard output is to hold, compared word by word as judges of programming
      contests do; numbers that are written with a decimal point within 1e-6.

The tests of the first form run in a sandboxed process of their own and call the program's functions through a pipe, by
plain values (harness.py). A program can therefore leave early, patch builtins, look through its frames, return objects
that are equal to everything or write what it likes: the tests see values, compare them themselves, and have passed
when their own process says so. What is left to a program that cheats: it sees what it is called with, and can answer
from a table. Because values are copied, tests do not see what a program changes in its arguments.

Whether tests can be used at all is a question's matter and not a program's: it is found by a rehearsal, with a stand-in
for all that the tests call, before the completion is read.
"""

import contextlib
import dataclasses
import functools
import json
import math
import re
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tpt_jax.checks.code import harness, sandbox
from tpt_jax.checks.code.extract import Program, asked_names, bound_names, find_program, parse
from tpt_jax.checks.code.sandbox import Limits, Process
from tpt_jax.errors import MachineError
from tpt_jax.records import Question, Verdict

UNREADABLE = "unreadable tests"
LIMITS = Limits()
REHEARSAL = Limits(seconds=1.0)
TOLERANCE = 1e-6
DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?", re.ASCII)

# What the process that runs the tests says at its end; ENDED: the program's own end tells why.
REASONS: Mapping[int, str] = {
    harness.FAILED: "failed test",
    harness.RAISED: "error",
    harness.UNUSABLE: "error",  # by what the program does alone: the rehearsal went well
    harness.MISSING: "function not defined",
}


@dataclasses.dataclass(frozen=True)
class CodeChecker:
    """Runs the program in a completion against the question's tests.

    A verdict's `extracted` is a digest of the program's text: what programs compute cannot be compared, so that a vote
    (Maj@k) counts programs that are the same but for spaces and comments.
    """

    sandboxed: bool

    def require(self) -> None:
        """Raises a UserError where the sandbox does not work."""
        if self.sandboxed:
            sandbox.require()

    def __call__(self, question: Question, completion: str) -> Verdict:
        """Judges; a second time where the machine fails the first.

        Raises:
          MachineError: it fails again. That is not the trace's fault.
        """
        with contextlib.suppress(MachineError, OSError):
            return self._judge(question, completion)
        try:
            return self._judge(question, completion)
        except OSError as error:  # no more files, no room for them
            raise MachineError(f"a model's program cannot be run ({error})") from error

    def _judge(self, question: Question, completion: str) -> Verdict:
        data = question.data
        tests, inputs, outputs = (_texts(data.get(key, ())) for key in ("tests", "inputs", "outputs"))
        prompt, setup, entry_point = (str(data.get(key) or "") for key in ("prompt", "setup", "entry_point"))
        if tests is None or inputs is None or outputs is None or len(inputs) != len(outputs):
            return Verdict.not_known(UNREADABLE)
        if not tests and not inputs:
            return Verdict.not_known("no tests")
        header = parse(prompt)
        if header is None or None in map(parse, (setup, *tests)):
            return Verdict.not_known(UNREADABLE)
        names, modules = asked_names([setup, *tests])
        names = (names - bound_names(header)) | ({entry_point} if entry_point else set())
        if tests and not names:
            return Verdict.not_known("tests call no function")
        before = [*(f"import {module}" for module in sorted(modules)), prompt]
        given = {"before": before, "names": sorted(names), "tests": [setup, *tests]}
        if tests and not _are_usable(json.dumps(given), self.sandboxed):
            return Verdict.not_known(UNREADABLE)
        program = find_program(completion, names, prompt)
        if not isinstance(program, Program):
            return Verdict.wrong(program)
        reason = self._test(program.source, given) if tests else self._compare(program.source, inputs, outputs)
        if reason:
            return Verdict.wrong(reason, program.digest)
        return Verdict(program.digest, strict=program.strict, correct=True)

    def _test(self, source: str, given: Mapping[str, Any]) -> str:
        """Why the program fails the tests; "" where it does not."""
        ours, theirs = socket.socketpair()
        with (
            ours,
            theirs,
            Process("program", LIMITS, sandboxed=self.sandboxed, channel=theirs) as program,
            Process("tests", LIMITS, sandboxed=self.sandboxed, channel=ours) as tests,
        ):
            ours.close()  # so that each process sees the other's end
            theirs.close()
            tests.start({**given, "rehearsal": False})
            program.start(source)  # last, so that no program is at fault where a process does not start
            deadline = time.monotonic() + LIMITS.seconds
            kind = tests.wait(deadline)
            if tests.status == harness.PASSED:
                return ""
            if tests.status != harness.ENDED:
                return REASONS.get(tests.status, kind) if tests.status is not None else kind
            kind = program.wait(deadline)
            return "ended early" if kind == "done" else kind

    def _compare(self, source: str, inputs: Sequence[str], outputs: Sequence[str]) -> str:
        """Why the program's output is not what is expected; "" where it is."""
        for text, expected in zip(inputs, outputs, strict=True):
            outcome = sandbox.run(source, text, LIMITS, sandboxed=self.sandboxed)
            if outcome.kind != "done":
                return outcome.kind
            if not same_words(outcome.stdout, expected):
                return "failed test"
        return ""


check_code = CodeChecker(sandboxed=True)
check_code_without_sandbox = CodeChecker(sandboxed=False)


@functools.lru_cache(maxsize=1024)  # a question has many traces
def _are_usable(given: str, sandboxed: bool) -> bool:
    """Whether a program can be put to the tests: not where they hand it a function or an object of their own.

    So whether a question counts does not depend on the program. Tests that take long are rehearsed as far as they get.
    """
    with Process("tests", REHEARSAL, sandboxed=sandboxed) as process:
        process.start({**json.loads(given), "rehearsal": True})
        process.wait(time.monotonic() + REHEARSAL.seconds)
        return process.status != harness.UNUSABLE


def same_words(output: str, expected: str) -> bool:
    """Whether two outputs are the same but for spaces, and for 1e-6 in numbers that are expected with a point.

    Both the difference and the difference in proportion count, as in most contests.
    """
    words, wanted = output.split(), expected.split()
    return len(words) == len(wanted) and all(map(_same_word, words, wanted))


def _same_word(word: str, wanted: str) -> bool:
    if word == wanted:
        return True
    if not DECIMAL.fullmatch(wanted) or len(word) > 400:
        return False
    try:
        return math.isclose(float(word), float(wanted), rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except ValueError:
        return False


def _texts(value: Any) -> list[str] | None:
    """A list of texts; None for anything else."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        return None
    return list(value)
