"""Sampling: continuous batching in one compiled program, and the engine on the host that feeds it."""
