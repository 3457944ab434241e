"""Checkers: a question and a completion in, a verdict out, in worker processes with limits. Imports no JAX."""
