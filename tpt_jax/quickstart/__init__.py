"""The base model that ships with the package, its corpus, and how it was made."""
