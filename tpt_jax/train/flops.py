"""The arithmetic that a model asks for, whatever a program spends: for the share of a device's speed that is used."""

from collections.abc import Iterable

from tpt_jax.models.architecture import ModelConfig


def model_flops(config: ModelConfig, lengths: Iterable[int]) -> float:
    """Of training on sequences of these lengths once.

    Six for each weight of a matrix and token: two forward, four backward (Kaplan et al., arXiv 2001.08361, section
    2.1). A looked-up embedding does not count where it is not the output projection too. Attention counts what a token
    sees: itself and what is before it, within the window.
    """
    looked_up = 0 if config.tie_embeddings else config.vocab_size * config.embed_dim
    weights = config.num_parameters - looked_up
    lengths = list(lengths)
    seen = sum(_tokens_seen(length, window) for length in lengths for window in config.windows)
    return 6.0 * weights * sum(lengths) + 12.0 * config.num_heads * config.head_dim * seen


def _tokens_seen(length: int, window: int | None) -> int:
    """By all tokens of a sequence together."""
    reach = length if window is None else min(length, window)
    return reach * (reach + 1) // 2 + (length - reach) * reach
