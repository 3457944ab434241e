"""The base model that ships with the package, its corpus, and the command that made it."""
