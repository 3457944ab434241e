"""The code checker for tests: sandboxed if this machine has a working sandbox."""

from tpt_jax.checks.code import sandbox
from tpt_jax.checks.code.check import check_code, check_code_without_sandbox
from tpt_jax.errors import UserError


def sandbox_error() -> str:
    """Why the sandbox does not work on this machine; "" if it does."""
    try:
        sandbox.require()
    except UserError as error:
        return str(error)
    return ""


# Verdicts are the same without the sandbox, so tests of verdicts run on every machine.
check = check_code_without_sandbox if sandbox_error() else check_code
