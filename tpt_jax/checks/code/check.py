"""Judges programs by tests. Programs run in the sandbox, and expected results never enter the process they run in.

A question's `data` has one of two forms:

  {"tests": ["assert add(2, 3) == 5", ...], "setup": ..., "prompt": ..., "entry_point": ...}
      Statements that call the program's functions. Optional: `setup`, statements to run before the tests; `prompt`, the
      start of the program, if the task is to complete it; `entry_point`, a function the tests call that shares its name
      with a Python builtin; `allow_trailing_text`, true if text that is not Python may follow a program that continues
      the prompt.
  {"inputs": ["2 3", ...], "outputs": ["5", ...]}
      Standard inputs and the expected standard outputs, compared word by word as programming contests do; numbers
      expected with a decimal point may differ by 1e-6.

Tests of the first form run in a second sandboxed process and call the program's functions over a pipe, exchanging plain
values (harness.py). Exiting early, patching builtins, walking stack frames, returning objects that equal everything or
writing to any file descriptor does not help a program: the tests receive values, compare them in their own process, and
pass only if that process says so. One cheat remains: a program sees its arguments and may look answers up in a table.
Values are copied, so tests cannot see a program modify its arguments.

A program that passes and has sets or hashes must pass under other hash seeds as well: what the order of a set of
strings makes right is right by chance.

Whether the tests are usable depends on the question alone. A dry run, with a placeholder for everything the tests call,
finds out before the completion is read.
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
from tpt_jax.checks.code.extract import (
    Program,
    bound_names,
    depends_on_hashes,
    find_program,
    missing_modules,
    parse,
    undefined_names,
)
from tpt_jax.checks.code.sandbox import Limits, Process
from tpt_jax.errors import MachineError
from tpt_jax.records import Question, Verdict

UNREADABLE_TESTS = "unreadable tests"
LIMITS = Limits()
DRY_RUN_LIMITS = Limits(seconds=1.0)
TOLERANCE = 1e-6
MAX_NUMBER_CHARACTERS = 400
OTHER_HASH_SEEDS = (1, 2, 3)  # two strings have the same order under all of them and 0 in one of eight cases
MAX_MODULE_CHARACTERS = 30  # of a module's name in a reason
DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?", re.ASCII)

# Verdict reasons by exit status of the tests' process. After ENDED, the program's own exit gives the reason.
REASONS: Mapping[int, str] = {
    harness.FAILED: "failed test",
    harness.RAISED: "error",
    harness.UNUSABLE: "error",  # the dry run passed, so the program caused it
    harness.MISSING: "function not defined",
}


@dataclasses.dataclass(frozen=True)
class CodeChecker:
    """Runs the program in a completion against the question's tests.

    A verdict's `extracted` is the program's checksum: majority votes (Maj@k) cannot compare what programs compute, so
    they count programs that are equal up to whitespace and comments.
    """

    sandboxed: bool

    def require(self) -> None:
        """Raises UserError if the sandbox is needed and does not work."""
        if self.sandboxed:
            sandbox.require()

    def __call__(self, question: Question, completion: str, *, is_finished: bool = True) -> Verdict:
        """Judges a completion, retrying once if the machine fails.

        Args:
          is_finished: not used; a program that was cut does not parse.

        Raises:
          MachineError: the machine failed twice; the trace is not to blame.
        """
        with contextlib.suppress(MachineError, OSError):
            return self._judge(question, completion)
        try:
            return self._judge(question, completion)
        except OSError as error:  # out of file descriptors or disk space
            raise MachineError(f"a model's program cannot be run ({error})") from error

    def _judge(self, question: Question, completion: str) -> Verdict:
        data = question.data
        tests, inputs, outputs = (_string_list(data.get(key, ())) for key in ("tests", "inputs", "outputs"))
        prompt, setup, entry_point = (str(data.get(key) or "") for key in ("prompt", "setup", "entry_point"))
        if tests is None or inputs is None or outputs is None or len(inputs) != len(outputs):
            return Verdict.not_known(UNREADABLE_TESTS)
        if not tests and not inputs:
            return Verdict.not_known("no tests")
        prompt_tree = parse(prompt)
        if prompt_tree is None or None in map(parse, (setup, *tests)):
            return Verdict.not_known(UNREADABLE_TESTS)
        names, modules = undefined_names([setup, *tests])
        names = (names - bound_names(prompt_tree)) | ({entry_point} if entry_point else set())
        if tests and not names:
            return Verdict.not_known("tests call no function")
        preamble = [*(f"import {module}" for module in sorted(modules)), prompt]
        suite = {"preamble": preamble, "names": sorted(names), "tests": [setup, *tests]}
        if tests and not _is_usable(json.dumps(suite), self.sandboxed):
            return Verdict.not_known(UNREADABLE_TESTS)
        allow_trailing_text = bool(data.get("allow_trailing_text"))
        program = find_program(completion, names, prompt, allow_trailing_text=allow_trailing_text)
        if not isinstance(program, Program):
            return Verdict.wrong(program)

        def run(hash_seed: int) -> str:
            if tests:
                return self._run_tests(program.source, suite, hash_seed)
            return self._run_inputs(program.source, inputs, outputs, hash_seed)

        reason = run(hash_seed=0)
        if not reason and depends_on_hashes(program.source) and any(map(run, OTHER_HASH_SEEDS)):
            reason = "right by chance: the order of a set decides"
        if (
            self.sandboxed
            and reason in ("error", "function not defined")
            and (modules := missing_modules(program.source))
        ):
            reason = f"imports {modules[0][:MAX_MODULE_CHARACTERS]}, which the sandbox does not have"
        if reason:
            return Verdict.wrong(reason, program.checksum)
        return Verdict(program.checksum, strict=program.strict, correct=True)

    def _run_tests(self, source: str, suite: Mapping[str, Any], hash_seed: int) -> str:
        """Returns the reason the program fails the tests, or "" if it passes."""
        tests_socket, program_socket = socket.socketpair()
        with (
            tests_socket,
            program_socket,
            Process(
                "program", LIMITS, sandboxed=self.sandboxed, hash_seed=hash_seed, channel=program_socket
            ) as program,
            Process("tests", LIMITS, sandboxed=self.sandboxed, channel=tests_socket) as tests,
        ):
            tests_socket.close()  # with our copies closed, each process notices when the other exits
            program_socket.close()
            tests.start({**suite, "dry_run": False})
            program.start(source)  # last: a process that fails to start is never blamed on the program
            deadline = time.monotonic() + LIMITS.seconds
            kind = tests.wait(deadline)
            if tests.status == harness.PASSED:
                return ""
            if tests.status != harness.ENDED:
                return REASONS.get(tests.status, kind) if tests.status is not None else kind
            kind = program.wait(deadline)
            return "ended early" if kind == "done" else kind

    def _run_inputs(self, source: str, inputs: Sequence[str], outputs: Sequence[str], hash_seed: int) -> str:
        """Returns the reason the program's output differs from the expected one, or "" if they match."""
        for text, expected in zip(inputs, outputs, strict=True):
            outcome = sandbox.run(source, text, LIMITS, sandboxed=self.sandboxed, hash_seed=hash_seed)
            if outcome.kind != "done":
                return outcome.kind
            if not outputs_match(outcome.stdout, expected):
                return "failed test"
        return ""


check_code = CodeChecker(sandboxed=True)
check_code_without_sandbox = CodeChecker(sandboxed=False)


@functools.lru_cache(maxsize=1024)  # a question has many traces
def _is_usable(suite: str, sandboxed: bool) -> bool:
    """Whether some program could run this suite (JSON). Tests that pass it functions or objects are unusable.

    The answer depends on the tests alone. A suite whose dry run exceeds the time limit counts as usable.
    """
    with Process("tests", DRY_RUN_LIMITS, sandboxed=sandboxed) as process:
        process.start({**json.loads(suite), "dry_run": True})
        process.wait(time.monotonic() + DRY_RUN_LIMITS.seconds)
        return process.status != harness.UNUSABLE


def outputs_match(output: str, expected: str) -> bool:
    """Whether outputs match word by word; a number expected with a decimal point may be off by 1e-6.

    An absolute or a relative error within the tolerance suffices, as in most contests.
    """
    words, expected_words = output.split(), expected.split()
    return len(words) == len(expected_words) and all(map(_words_match, words, expected_words))


def _words_match(word: str, expected: str) -> bool:
    if word == expected:
        return True
    if not DECIMAL.fullmatch(expected) or len(word) > MAX_NUMBER_CHARACTERS:
        return False
    try:
        return math.isclose(float(word), float(expected), rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except ValueError:
        return False


def _string_list(value: Any) -> list[str] | None:
    """Returns a list of strings as a list, and anything else as None."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        return None
    return list(value)
