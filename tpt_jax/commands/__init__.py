"""The `tpt` command: one file a verb, its arguments and one call of the library."""
