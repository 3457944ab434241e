"""Checkers by name: a question and a completion in, a verdict out. They run in a CheckerPool's processes."""

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping

from tpt_jax.errors import UserError
from tpt_jax.records import Question, Verdict

Checker = Callable[[Question, str], Verdict]

# Where each is; imported only by who judges with it.
CHECKERS: Mapping[str, str] = {
    "numeric": "tpt_jax.prune.answers:check_numeric",
    "code": "tpt_jax.prune.code:check_code",
    "code_without_sandbox": "tpt_jax.prune.code:check_code_without_sandbox",
}


def get_checker(name: str) -> Checker:
    """A checker by its name, or a user's own as "module:function".

    The user's function is given a Question and a completion. It returns a Verdict; or True or False; or None where the
    reference cannot be read. What a checker needs of the machine, its method `require`, called here, makes sure of.

    Raises:
      UserError: there is none of that name, or it cannot work on this machine.
    """
    if name in CHECKERS:
        return _import(CHECKERS[name])
    if ":" in name:
        return functools.partial(_judge, _import(name))
    nearest = difflib.get_close_matches(name, CHECKERS, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"choose from {', '.join(CHECKERS)}, or module:function"
    raise UserError(f"checker {name!r}: unknown; {hint}")


def _import(name: str) -> Callable:
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:  # a user's module is looked for where the command runs
        sys.path.append(os.getcwd())
    try:
        checker = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"checker {name!r}: {error}; write module:function of something that can be imported"
        ) from error
    getattr(checker, "require", lambda: None)()
    return checker


def _judge(function: Callable[[Question, str], Verdict | bool | None], question: Question, completion: str) -> Verdict:
    result = function(question, completion)
    if isinstance(result, Verdict):
        return result
    if result is None:
        return Verdict.not_known("unreadable reference answer")
    return Verdict(None, strict=bool(result), correct=bool(result))
