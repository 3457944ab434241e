"""The steps that ship, by subject; registry.py has them by name."""
