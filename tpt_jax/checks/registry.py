"""Checkers by name: a question and a completion in, a verdict out. They run in a CheckerPool's processes."""

import dataclasses
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from tpt_jax.errors import UserError, suggestion
from tpt_jax.records import Question, Verdict

Checker = Callable[[Question, str], Verdict]

# Where each is; imported only in processes that judge with it.
CHECKERS: Mapping[str, str] = {
    "numeric": "tpt_jax.checks.answers.numeric:check_numeric",
    "math": "tpt_jax.checks.answers.latex:check_math",
    "choice": "tpt_jax.checks.answers.choice:check_choice",
    "reasoning_gym": "tpt_jax.checks.reasoning_gym:check_reasoning_gym",
    "code": "tpt_jax.checks.code.check:check_code",
    "code_without_sandbox": "tpt_jax.checks.code.check:check_code_without_sandbox",
}


def get_checker(name: str) -> Checker:
    """A checker by its name, or a user's own as "module:function".

    The user's function is given a Question and a completion. It returns a Verdict; or True or False; or None where the
    reference cannot be read. Anything else is a mistake, and costs that trace.

    Raises:
      UserError: there is none of that name.
    """
    if name in CHECKERS:
        return _import(CHECKERS[name])
    if ":" in name:
        function = _import(name)
        _refuse_others(name, function)
        return functools.partial(_judge, function)
    raise UserError(f"checker {name!r}: unknown; {suggestion(name, [*CHECKERS, 'module:function'])}")


def require(name: str) -> None:
    """Makes sure that a checker of that name can work on this machine: one that needs something has a method for it.

    Raises:
      UserError: there is none of that name, or it cannot.
    """
    getattr(get_checker(name), "require", lambda: None)()


def without_sandbox(name: str) -> str:
    """The checker that runs programs with the user's own rights, where the one of this name runs programs."""
    return "code_without_sandbox" if name == "code" else name


def _import(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # a user's module is looked for where the command runs
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a user's module does what it likes when it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"checker {name!r}: {reason}; write module:function of something that can be imported"
        ) from error


def _refuse_others(name: str, function: Any) -> None:
    """Raises UserError for what cannot be called with a question and a completion."""
    wanted = "write a function of a question and a completion"
    if not callable(function):
        raise UserError(f"checker {name!r}: of type {type(function).__name__}; {wanted}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some of those that are written in C do not tell
        return
    try:
        signature.bind("question", "completion")
    except TypeError as error:
        raise UserError(f"checker {name!r}: does not take these two ({error}); {wanted}") from error


def _judge(function: Callable[[Question, str], Verdict | bool | None], question: Question, completion: str) -> Verdict:
    result = function(question, completion)
    if isinstance(result, Verdict):
        return _with_plain_values(result)
    if result is None:
        return Verdict.unreadable()
    right = _truth(result)
    return Verdict(None, strict=right, correct=right)


def _with_plain_values(verdict: Verdict) -> Verdict:
    """The same verdict without numpy's booleans and the like, which cannot be written as JSON."""
    if not isinstance(verdict.extracted, str | None) or not isinstance(verdict.reason, str):
        raise TypeError(
            "it returned a Verdict whose `extracted` or `reason` is no text; return None or a text, and a text"
        )
    flags = {name: _truth(getattr(verdict, name)) for name in ("strict", "correct", "unknown")}
    return dataclasses.replace(verdict, **flags)


def _truth(value: Any) -> bool:
    if value not in (True, False):  # "wrong", 0.5 or a coroutine would be as good as True
        raise TypeError(f"it returned something of type {type(value).__name__}; return True, False, None or a Verdict")
    return bool(value)
