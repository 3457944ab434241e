"""`python -m tpt_jax` is the `tpt` command."""

import sys

from tpt_jax.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
