"""`python -m tpt_jax` is the `tpt` command."""

import sys

from tpt_jax.commands.main import command

if __name__ == "__main__":
    sys.exit(command())
