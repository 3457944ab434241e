"""Named checkers and users' own functions: a question and a completion in, a verdict out."""

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from tpt_jax.errors import UserError, suggestion
from tpt_jax.records import CheckerSpec, CheckFunction, Question, Verdict


class Checker(Protocol):
    """Judges a completion; `is_finished` is False if it was cut at the length limit."""

    def __call__(self, question: Question, completion: str, *, is_finished: bool = True) -> Verdict: ...


# Modules are imported when a checker is looked up, not before: some take a second.
CHECKERS: Mapping[str, str] = {
    "numeric": "tpt_jax.checks.answers.number:check_numeric",
    "math": "tpt_jax.checks.answers.latex:check_math",
    "choice": "tpt_jax.checks.answers.choice:check_choice",
    "reasoning_gym": "tpt_jax.checks.reasoning_gym:check_reasoning_gym",
    "code": "tpt_jax.checks.code.check:check_code",
    "code_without_sandbox": "tpt_jax.checks.code.check:check_code_without_sandbox",
}


def get_checker(spec: CheckerSpec) -> Checker:
    """Looks up a checker.

    Args:
      spec: a name in CHECKERS; or the user's own function, itself or as "module:function". A user's function takes a
        Question and a completion, and returns a Verdict, True, False, or None if the reference answer cannot be read.
        Any other value is the function's mistake and makes that trace wrong.

    Raises:
      UserError: an unknown name, a module that cannot be imported, or an object that cannot be called this way.
    """
    if not isinstance(spec, str):
        return _wrap(checker_name(spec), spec)
    if spec in CHECKERS:
        return import_function("checker", CHECKERS[spec])
    if ":" in spec:
        return _wrap(spec, import_function("checker", spec))
    raise UserError(f"checker {spec!r}: unknown; {suggestion(spec, CHECKERS)} (your own function: module:function)")


def require(spec: CheckerSpec) -> None:
    """Makes sure that a checker works on this machine, with its `require` method if it has one.

    Raises:
      UserError: it cannot, or there is no such checker.
    """
    getattr(get_checker(spec), "require", lambda: None)()


def without_sandbox(spec: CheckerSpec) -> CheckerSpec:
    """The variant of a checker that runs programs with the user's own rights; other checkers are returned unchanged."""
    return "code_without_sandbox" if spec == "code" else spec


def checker_name(spec: CheckerSpec) -> str:
    """The checker's name for messages: the spec itself, or the function's name."""
    return spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)


def import_function(kind: str, name: str) -> Any:
    """Imports what "module:function" names.

    Args:
      kind: what it is to the user, for messages: "checker".

    Raises:
      UserError: it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    if module.endswith(".py"):
        raise UserError(f"{kind} {name!r}: names a file; write {module.removesuffix('.py')}:{attribute}")
    if os.getcwd() not in sys.path:  # a user's module may be in the folder where the command runs
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{module}.".startswith(f"{missing}."):
            raise UserError(f"{kind} {name!r}: imports {missing!r}, which is not installed; install it") from error
        raise UserError(
            f"{kind} {name!r}: there is no {missing}.py in {os.getcwd()}, where the command runs; run it in the folder "
            "that has the file"
        ) from error
    except (Exception, SystemExit) as error:  # importing a user's module can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{kind} {name!r}: {reason}; write module:function of a function that can be imported, from the folder "
            "where the command runs"
        ) from error


def _wrap(name: str, function: Any) -> Checker:
    """A user's function as a Checker.

    Raises:
      UserError: it cannot be called with a question and a completion.
    """
    _require_signature(name, function)
    return functools.partial(_judge, function)


def _require_signature(name: str, function: Any) -> None:
    rule = "write a function of a question and a completion"
    if not callable(function):
        raise UserError(f"checker {name!r}: of type {type(function).__name__}; {rule}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have none
        return
    try:
        signature.bind("question", "completion")
    except TypeError as error:
        raise UserError(f"checker {name!r}: does not take these two ({error}); {rule}") from error


def _judge(function: CheckFunction, question: Question, completion: str, *, is_finished: bool = True) -> Verdict:
    del is_finished  # users' functions do not take it
    result = function(question, completion)
    if isinstance(result, Verdict):
        return _with_plain_values(result)
    if result is None:
        return Verdict.unreadable()
    correct = _truth(result)
    return Verdict(None, strict=correct, correct=correct)


def _with_plain_values(verdict: Verdict) -> Verdict:
    """A plain Verdict: no subclass, no NumPy booleans, nothing that another process or JSON cannot take."""
    if not isinstance(verdict.extracted, str | None) or not isinstance(verdict.reason, str):
        raise TypeError("it returned a Verdict whose extracted is not a str or None, or whose reason is not a str")
    return Verdict(
        None if verdict.extracted is None else str.__str__(verdict.extracted),
        strict=_truth(verdict.strict),
        correct=_truth(verdict.correct),
        reason=str.__str__(verdict.reason),
        unknown=_truth(verdict.unknown),
    )


def _truth(value: Any) -> bool:
    if value not in (True, False):  # bool() would take "wrong", 0.5 or a coroutine for True
        raise TypeError(f"it returned something of type {type(value).__name__}; return True, False, None or a Verdict")
    return bool(value)
