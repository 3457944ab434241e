"""Model architecture: ModelConfig, the published sizes, and conversion from Hugging Face config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from tpt_jax.errors import UserError

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
      family: selects the arithmetic. Both Gemmas scale embeddings and use post-norms, 1 + w norms and GeGLU; gemma3
        also normalizes queries and keys; llama uses SwiGLU.
      attention_scale: factor on query-key products.
      rope_theta, rope_scaling: base and scaling of the rotary embedding.
      local_rope_theta: unscaled base for sliding-window layers; None if all layers share rope_theta and rope_scaling.
      attention_softcap, final_softcap: scores become cap * tanh(scores / cap); None for no cap.
      sliding_window: tokens visible to a token on local layers, itself included; None if every layer is global.
      global_every: layer n, counted from 1, is global if n is a multiple of this.
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
    global_every: int = 2

    @property
    def is_gemma(self) -> bool:
        return self.family != "llama"

    @property
    def has_query_key_norms(self) -> bool:
        return self.family == "gemma3"

    @property
    def num_parameters(self) -> int:
        attention = self.embed_dim * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        norms = self.embed_dim * (4 if self.is_gemma else 2) + 2 * self.head_dim * self.has_query_key_norms
        layer = attention + 3 * self.embed_dim * self.mlp_dim + norms
        embeddings = self.vocab_size * self.embed_dim * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * layer + self.embed_dim

    @property
    def period(self) -> int:
        """Length of the repeating pattern of local and global layers; the layer scan runs one period per iteration.

        The layers after the last full period are a prefix of the pattern.
        """
        windows = self.windows
        return next(size for size in range(1, self.num_layers + 1) if windows[size:] == windows[:-size])

    @property
    def num_periods(self) -> int:
        """Number of full periods."""
        return self.num_layers // self.period

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer, None for a global one."""
        numbers = range(1, self.num_layers + 1)
        return tuple(None if number % self.global_every == 0 else self.sliding_window for number in numbers)


# model_type in config.json -> family
_FAMILIES: Mapping[str, Family] = {"gemma2": "gemma2", "gemma3_text": "gemma3", "llama": "llama"}
# Values that config.json of a Gemma 3 with a vision tower omits because they are transformers' defaults.
_GEMMA3_DEFAULTS = {"vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}


def decoder_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoder's config.json: the file itself, or the text_config of a Gemma 3 with a vision tower."""
    if config.get("model_type") != "gemma3":
        return config
    identity = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    return {**_GEMMA3_DEFAULTS, **config.get("text_config", {}), **identity}


def from_huggingface(config: Mapping[str, Any]) -> ModelConfig:
    """Converts a Hugging Face config.json written by any version of transformers.

    Raises:
      UserError: unsupported model family or option.
    """
    config = decoder_config(config)
    family = _FAMILIES.get(config.get("model_type", ""))
    if family is None:
        raise UserError(
            f"config.json: model_type ({config.get('model_type')}) must be gemma2, gemma3, gemma3_text or llama"
        )
    for option in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        if config.get(option):
            raise UserError(f"config.json: {option} ({config[option]}) is not supported; it must be false")
    activation = config.get("hidden_activation") or config.get("hidden_act")
    expected = "silu" if family == "llama" else "gelu_pytorch_tanh"
    if activation not in (expected, None):
        raise UserError(f"config.json: activation ({activation}) must be {expected} for a {family} model")
    try:
        num_heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
        shape: dict[str, Any] = {
            "family": family,
            "vocab_size": config["vocab_size"],
            "embed_dim": config["hidden_size"],
            "num_layers": config["num_hidden_layers"],
            "num_heads": num_heads,
            "num_kv_heads": config.get("num_key_value_heads") or num_heads,
            "head_dim": head_dim,
            "mlp_dim": config["intermediate_size"],
            "norm_eps": config.get("rms_norm_eps", 1e-6),
            **(_gemma3_rope(config) if family == "gemma3" else _rope(config)),
        }
    except KeyError as error:
        raise UserError(
            f"config.json: {error.args[0]} is missing; use the config.json published with the model"
        ) from error
    if family == "llama":
        return ModelConfig(
            **shape, attention_scale=head_dim**-0.5, tie_embeddings=config.get("tie_word_embeddings", False)
        )
    attention_softcap, final_softcap, global_every = {"gemma2": (50.0, 30.0, 2), "gemma3": (None, None, 6)}[family]
    return ModelConfig(
        **shape,
        attention_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        tie_embeddings=config.get("tie_word_embeddings", True),
        attention_softcap=config.get("attn_logit_softcapping", attention_softcap),
        final_softcap=config.get("final_logit_softcapping", final_softcap),
        sliding_window=config.get("sliding_window", 4096),
        global_every=_global_every(config, global_every),
    )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    # transformers 5 writes rope_parameters; older versions write rope_theta and rope_scaling.
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = scaling.get("rope_theta") or config.get("rope_theta", 10_000.0)
    return {"rope_theta": theta, "rope_scaling": _rope_scaling(scaling)}


def _gemma3_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    # transformers 5 writes rope_parameters per layer type; older versions write rope_local_base_freq.
    by_layer_type = config.get("rope_parameters") or {}
    scaling = by_layer_type.get("full_attention") or config.get("rope_scaling") or {}
    local = by_layer_type.get("sliding_attention") or {}
    if _rope_scaling(local) is not None:
        raise UserError(f"config.json: rope_type ({local['rope_type']}) of sliding_attention layers must be default")
    return {
        "rope_theta": scaling.get("rope_theta") or config.get("rope_theta", 1_000_000.0),
        "rope_scaling": _rope_scaling(scaling),
        "local_rope_theta": local.get("rope_theta") or config.get("rope_local_base_freq", 10_000.0),
    }


def _rope_scaling(scaling: Mapping[str, Any]) -> LinearScaling | Llama3Scaling | None:
    rope_type = scaling.get("rope_type") or scaling.get("type") or "default"
    if rope_type == "default":
        return None
    if rope_type == "linear":
        return LinearScaling(scaling["factor"])
    if rope_type != "llama3":
        raise UserError(f"config.json: rope_type ({rope_type}) must be default, linear or llama3")
    return Llama3Scaling(
        factor=scaling["factor"],
        low_freq_factor=scaling["low_freq_factor"],
        high_freq_factor=scaling["high_freq_factor"],
        original_max_positions=scaling["original_max_position_embeddings"],
    )


def _global_every(config: Mapping[str, Any], default: int) -> int:
    # Versions of transformers without layer_types write sliding_window_pattern, or support only the default pattern.
    layer_types = config.get("layer_types")
    if layer_types is None:
        return config.get("sliding_window_pattern") or default
    every = [*layer_types, "full_attention"].index("full_attention") + 1
    numbers = range(1, config["num_hidden_layers"] + 1)
    if layer_types != ["sliding_attention" if number % every else "full_attention" for number in numbers]:
        raise UserError(
            f"config.json: layer_types ({', '.join(layer_types[:6])}, ...) must repeat a number of sliding_attention "
            "layers followed by one full_attention layer, as in Gemma 2 and Gemma 3"
        )
    return every


def _gemma2(
    embed_dim: int, num_layers: int, num_heads: int, num_kv_heads: int, mlp_dim: int, **options: Any
) -> ModelConfig:
    return ModelConfig(
        family="gemma2",
        vocab_size=256_000,
        embed_dim=embed_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_dim=mlp_dim,
        attention_softcap=50.0,
        final_softcap=30.0,
        sliding_window=4096,
        **options,
    )


def _gemma3(
    embed_dim: int, num_layers: int, num_heads: int, num_kv_heads: int, mlp_dim: int, **options: Any
) -> ModelConfig:
    return ModelConfig(
        family="gemma3",
        vocab_size=262_144,
        embed_dim=embed_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_dim=mlp_dim,
        rope_theta=1_000_000.0,
        local_rope_theta=10_000.0,
        global_every=6,
        **options,
    )


def _llama3(
    embed_dim: int,
    num_layers: int,
    num_heads: int,
    mlp_dim: int,
    head_dim: int = 128,
    rope_factor: float = 8.0,
    tied: bool = False,
) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=128_256,
        embed_dim=embed_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        attention_scale=head_dim**-0.5,
        rope_theta=500_000.0,
        rope_scaling=Llama3Scaling(rope_factor, 1.0, 4.0, 8192),
        norm_eps=1e-5,
        tie_embeddings=tied,
    )


# From the published config.json files (google/gemma-2-*, google/gemma-3-*, meta-llama/Llama-3.*).
PUBLISHED: Mapping[str, ModelConfig] = {
    "gemma2-2b": _gemma2(2304, 26, 8, 4, 9216, head_dim=256, attention_scale=256**-0.5),
    "gemma2-9b": _gemma2(3584, 42, 16, 8, 14336, head_dim=256, attention_scale=256**-0.5),
    "gemma2-27b": _gemma2(4608, 46, 32, 16, 36864, head_dim=128, attention_scale=144**-0.5),
    "gemma3-1b": _gemma3(1152, 26, 4, 1, 6912, head_dim=256, attention_scale=256**-0.5, sliding_window=512),
    "llama3.2-1b": _llama3(2048, 16, 32, 8192, head_dim=64, rope_factor=32.0, tied=True),
    "llama3.2-3b": _llama3(3072, 28, 24, 8192, rope_factor=32.0, tied=True),
    "llama3.1-8b": _llama3(4096, 32, 32, 14336),
    "llama3.1-70b": _llama3(8192, 80, 64, 28672),
    "llama3.1-405b": _llama3(16384, 126, 128, 53248),
}


def published(name: str) -> ModelConfig | None:
    """Config of a published model, by its key in PUBLISHED or its repository name ("google/gemma-2-2b-it"), or None."""

    def normalized(name: str) -> str:
        return name.rpartition("/")[2].lower().removesuffix("-it").removesuffix("-instruct").replace("-", "")

    return next((config for key, config in PUBLISHED.items() if normalized(key) == normalized(name)), None)
