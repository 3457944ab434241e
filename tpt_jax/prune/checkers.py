"""Checkers: a reference answer and a completion in, a verdict out. They run in a CheckerPool's processes."""

import difflib
import importlib
from collections.abc import Callable, Mapping

from tpt_jax.errors import UserError
from tpt_jax.prune.answers import canonical, extract, extract_strict, parse_number
from tpt_jax.records import Verdict

Checker = Callable[[str, str], Verdict]


def check_numeric(answer: str, completion: str) -> Verdict:
    """Compares final numbers exactly: 18, $18.00 and 18 dollars are one."""
    reference = parse_number(answer)
    if reference is None:
        return Verdict(None, strict=False, correct=False, reason="unreadable reference answer")
    found = extract(completion)
    if found is None:
        return Verdict(None, strict=False, correct=False, reason="no answer")
    correct = found == reference
    return Verdict(canonical(found), strict=correct and extract_strict(completion) == reference, correct=correct)


CHECKERS: Mapping[str, Checker] = {"numeric": check_numeric}


def get_checker(name: str) -> Checker:
    """A checker by its name, or a user's own as "module:function".

    Raises:
      UserError: there is none of that name.
    """
    if name in CHECKERS:
        return CHECKERS[name]
    module, colon, function = name.partition(":")
    if colon:
        try:
            return getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"checker {name!r}: {error}; write module:function of something that can be imported"
            ) from error
    nearest = difflib.get_close_matches(name, CHECKERS, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"choose from {', '.join(CHECKERS)}, or module:function"
    raise UserError(f"checker {name!r}: unknown; {hint}")
