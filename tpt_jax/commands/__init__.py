"""The `tpt` command: one file per verb, with its arguments and one call of the library."""
