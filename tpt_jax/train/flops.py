"""Flops that a model needs by its definition, however a program computes it: the numerator of MFU."""

from collections.abc import Iterable

from tpt_jax.models.architecture import ModelConfig


def model_flops(config: ModelConfig, lengths: Iterable[int], *, is_frozen: bool = False) -> float:
    """Flops to train once on sequences of these lengths.

    Six per matrix weight and token: two forward, four backward (Kaplan et al., arXiv 2001.08361, section 2.1). The
    embedding counts only if it is also the output projection. Attention counts each token's visible tokens: itself and
    those before it, within the window. Frozen weights need two flops less, for they have no gradients; their adapters'
    own flops, a percent or so, are left out.
    """
    lookup_only = 0 if config.tie_embeddings else config.vocab_size * config.embed_dim
    weights = config.num_parameters - lookup_only
    lengths = list(lengths)
    visible = sum(_visible_tokens(length, window) for length in lengths for window in config.windows)
    return (4.0 if is_frozen else 6.0) * weights * sum(lengths) + 12.0 * config.num_heads * config.head_dim * visible


def _visible_tokens(length: int, window: int | None) -> int:
    """Query-key pairs in one sequence."""
    reach = length if window is None else min(length, window)
    return reach * (reach + 1) // 2 + (length - reach) * reach
