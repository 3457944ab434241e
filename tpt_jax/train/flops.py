"""Flops that a model needs by its definition, however a program computes it: the numerator of MFU."""

from collections.abc import Iterable

from tpt_jax.config import LoRAConfig
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.masters import num_trained


def model_flops(config: ModelConfig, lengths: Iterable[int], lora: LoRAConfig | None = None) -> float:
    """Flops to train once on sequences of these lengths.

    Six per matrix weight and token: two forward, four backward (Kaplan et al., arXiv 2001.08361, section 2.1). The
    embedding counts only if it is also the output projection. A frozen weight has no gradient, which leaves four; its
    adapter's weights take six. Attention counts each token's visible tokens: itself and
    those before it, within the window.
    """
    lookup_only = 0 if config.tie_embeddings else config.vocab_size * config.embed_dim
    weights = config.num_parameters - lookup_only
    per_token = 6.0 * weights if lora is None else 4.0 * weights + 6.0 * num_trained(config, lora)
    lengths = list(lengths)
    visible = sum(_visible_tokens(length, window) for length in lengths for window in config.windows)
    return per_token * sum(lengths) + 12.0 * config.num_heads * config.head_dim * visible


def _visible_tokens(length: int, window: int | None) -> int:
    """Query-key pairs in one sequence."""
    reach = length if window is None else min(length, window)
    return reach * (reach + 1) // 2 + (length - reach) * reach
