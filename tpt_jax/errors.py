"""Mistakes in what the user gave: the exception that reports them, and how settings refuse them."""

import pydantic

# For the frozen dataclasses that settings are: values are checked on construction, unknown keys refused.
STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


class UserError(Exception):
    """A mistake in the user's input: one line that names the thing and says what to write instead.

    The command line prints it without a traceback and exits with status 2.
    """
