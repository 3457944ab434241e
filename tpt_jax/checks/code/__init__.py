"""Running programs that a model wrote, in a sandbox, against tests."""
