"""Think, Prune, Train: self-improving language models, JAX-native on TPU pods."""

__version__ = "0.1.0"
