"""Model architecture: the dimensions and options of a decoder."""

import dataclasses
from typing import Literal

Family = Literal["gemma2", "gemma3", "llama"]


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Scales all rotary wavelengths equally, as Gemma 3 does (rope_type "linear" in config.json)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Scales long rotary wavelengths only, as LLaMA 3.1 does (rope_type "llama3")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The dimensions and options of a decoder.

    Attributes:
      family: selects the arithmetic. Both Gemmas scale embeddings and use post-norms, 1 + w norms and GeGLU; llama, as
        its relatives Mistral, Qwen and SmolLM do, uses SwiGLU.
      attention_scale: factor on query-key products.
      rope_theta, rope_scaling: base and scaling of the rotary embedding.
      local_rope_theta: unscaled base for sliding-window layers; None if all layers share rope_theta and rope_scaling.
      attention_softcap, final_softcap: scores become cap * tanh(scores / cap); None for no cap.
      sliding_window: tokens visible to a token on local layers, itself included; None if every layer is global.
      global_every: layer n, counted from 1, is global if n is a multiple of this; None if all have the window.
      attention_bias: the projections to queries, keys and values add a bias, as in Qwen 2.
      query_key_norms: queries and keys are normalized, as in Gemma 3 and Qwen 3.
      unrotated_every: layer n has no rotary embedding if n is a multiple of this, as in SmolLM3 (Yang et al., arXiv
        2501.18795); None if all have it.
    """

    family: Family
    vocab_size: int
    embed_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    attention_scale: float
    rope_theta: float = 10_000.0
    rope_scaling: LinearScaling | Llama3Scaling | None = None
    local_rope_theta: float | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    attention_softcap: float | None = None
    final_softcap: float | None = None
    sliding_window: int | None = None
    global_every: int | None = None
    attention_bias: bool = False
    query_key_norms: bool = False
    unrotated_every: int | None = None

    @property
    def is_gemma(self) -> bool:
        return self.family != "llama"

    @property
    def num_parameters(self) -> int:
        attention = self.embed_dim * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        norms = self.embed_dim * (4 if self.is_gemma else 2) + 2 * self.head_dim * self.query_key_norms
        biases = self.head_dim * (self.num_heads + 2 * self.num_kv_heads) * self.attention_bias
        layer = attention + biases + 3 * self.embed_dim * self.mlp_dim + norms
        embeddings = self.vocab_size * self.embed_dim * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * layer + self.embed_dim

    @property
    def period(self) -> int:
        """Length of the repeating pattern of layers; the layer scan runs one period per iteration.

        The layers after the last full period are a prefix of the pattern.
        """
        kinds = list(zip(self.windows, self.rotated, strict=True))
        return next(size for size in range(1, self.num_layers + 1) if kinds[size:] == kinds[:-size])

    @property
    def num_periods(self) -> int:
        """Number of full periods."""
        return self.num_layers // self.period

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer, None for a global one."""
        is_global = self._is_multiple(self.global_every)
        return tuple(None if is_global[layer] else self.sliding_window for layer in range(self.num_layers))

    @property
    def rotated(self) -> tuple[bool, ...]:
        """Whether each layer has a rotary embedding."""
        return tuple(not unrotated for unrotated in self._is_multiple(self.unrotated_every))

    def _is_multiple(self, every: int | None) -> list[bool]:
        """For each layer, whether its number, counted from 1, is a multiple of this."""
        return [every is not None and number % every == 0 for number in range(1, self.num_layers + 1)]
