"""The sizes of published models."""

from collections.abc import Mapping
from typing import Any

from tpt_jax.models.architecture import LinearScaling, Llama3Scaling, ModelConfig


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
        global_every=2,
        **options,
    )


def _gemma3(
    embed_dim: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    mlp_dim: int,
    head_dim: int = 256,
    query_scalar: int = 256,
    multimodal: bool = True,
) -> ModelConfig:
    """The sizes with a vision tower have a larger vocabulary, longer windows and scaled positions."""
    return ModelConfig(
        family="gemma3",
        embed_dim=embed_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_dim=mlp_dim,
        rope_theta=1_000_000.0,
        local_rope_theta=10_000.0,
        global_every=6,
        query_key_norms=True,
        vocab_size=262_208 if multimodal else 262_144,
        sliding_window=1024 if multimodal else 512,
        rope_scaling=LinearScaling(8.0) if multimodal else None,
        head_dim=head_dim,
        attention_scale=query_scalar**-0.5,
    )


def _llama(
    embed_dim: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    mlp_dim: int,
    vocab_size: int,
    *,
    head_dim: int = 128,
    rope_theta: float = 1_000_000.0,
    norm_eps: float = 1e-6,
    tied: bool = True,
    **options: Any,
) -> ModelConfig:
    """LLaMA or a relative."""
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        embed_dim=embed_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        attention_scale=head_dim**-0.5,
        rope_theta=rope_theta,
        norm_eps=norm_eps,
        tie_embeddings=tied,
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
    return _llama(
        embed_dim,
        num_layers,
        num_heads,
        8,
        mlp_dim,
        vocab_size=128_256,
        head_dim=head_dim,
        rope_theta=500_000.0,
        rope_scaling=Llama3Scaling(rope_factor, 1.0, 4.0, 8192),
        norm_eps=1e-5,
        tied=tied,
    )


def _smollm2(
    embed_dim: int, num_layers: int, num_heads: int, num_kv_heads: int, mlp_dim: int, rope_theta: float = 100_000.0
) -> ModelConfig:
    sizes = (embed_dim, num_layers, num_heads, num_kv_heads, mlp_dim)
    return _llama(*sizes, vocab_size=49_152, head_dim=64, rope_theta=rope_theta, norm_eps=1e-5)


# From the published config.json files (google/gemma-2-*, google/gemma-3-*, meta-llama/Llama-3.*, Qwen/Qwen2.5-*,
# Qwen/Qwen3-*, mistralai/Mistral-7B-v*, HuggingFaceTB/SmolLM2-* and SmolLM3-3B).
PUBLISHED: Mapping[str, ModelConfig] = {
    "gemma2-2b": _gemma2(2304, 26, 8, 4, 9216, head_dim=256, attention_scale=256**-0.5),
    "gemma2-9b": _gemma2(3584, 42, 16, 8, 14336, head_dim=256, attention_scale=256**-0.5),
    "gemma2-27b": _gemma2(4608, 46, 32, 16, 36864, head_dim=128, attention_scale=144**-0.5),
    "gemma3-270m": _gemma3(640, 18, 4, 1, 2048, multimodal=False),
    "gemma3-1b": _gemma3(1152, 26, 4, 1, 6912, multimodal=False),
    "gemma3-4b": _gemma3(2560, 34, 8, 4, 10240),
    "gemma3-12b": _gemma3(3840, 48, 16, 8, 15360),
    "gemma3-27b": _gemma3(5376, 62, 32, 16, 21504, head_dim=128, query_scalar=168),
    "llama3.2-1b": _llama3(2048, 16, 32, 8192, head_dim=64, rope_factor=32.0, tied=True),
    "llama3.2-3b": _llama3(3072, 28, 24, 8192, rope_factor=32.0, tied=True),
    "llama3.1-8b": _llama3(4096, 32, 32, 14336),
    "llama3.1-70b": _llama3(8192, 80, 64, 28672),
    "llama3.1-405b": _llama3(16384, 126, 128, 53248),
    "mistral-7b-v0.1": _llama(
        4096, 32, 32, 8, 14336, 32_000, rope_theta=10_000.0, norm_eps=1e-5, tied=False, sliding_window=4096
    ),
    "mistral-7b-v0.2": _llama(4096, 32, 32, 8, 14336, 32_000, norm_eps=1e-5, tied=False),
    "mistral-7b-v0.3": _llama(4096, 32, 32, 8, 14336, 32_768, norm_eps=1e-5, tied=False),
    "qwen2.5-0.5b": _llama(896, 24, 14, 2, 4864, 151_936, head_dim=64, attention_bias=True),
    "qwen2.5-1.5b": _llama(1536, 28, 12, 2, 8960, 151_936, attention_bias=True),
    "qwen2.5-3b": _llama(2048, 36, 16, 2, 11008, 151_936, attention_bias=True),
    "qwen2.5-7b": _llama(3584, 28, 28, 4, 18944, 152_064, tied=False, attention_bias=True),
    "qwen3-0.6b": _llama(1024, 28, 16, 8, 3072, 151_936, query_key_norms=True),
    "qwen3-1.7b": _llama(2048, 28, 16, 8, 6144, 151_936, query_key_norms=True),
    "qwen3-4b": _llama(2560, 36, 32, 8, 9728, 151_936, query_key_norms=True),
    "qwen3-8b": _llama(4096, 36, 32, 8, 12288, 151_936, tied=False, query_key_norms=True),
    "smollm2-135m": _smollm2(576, 30, 9, 3, 1536),
    "smollm2-360m": _smollm2(960, 32, 15, 5, 2560),
    "smollm2-1.7b": _smollm2(2048, 24, 32, 32, 8192, 130_000.0),
    "smollm3-3b": _llama(2048, 36, 16, 4, 11008, 128_256, rope_theta=5_000_000.0, unrotated_every=4),
}


def published(name: str) -> ModelConfig | None:
    """Config of a published model, by its key in PUBLISHED or its repository name ("google/gemma-2-2b-it"), or None."""

    def normalized(name: str) -> str:
        base = name.rpartition("/")[2].lower().replace("-instruct", "")
        for suffix in ("-it", "-pt", "-base"):  # names of the tuned or of the pre-trained model, by publisher
            base = base.removesuffix(suffix)
        return base.replace("-", "")

    return next((config for key, config in PUBLISHED.items() if normalized(key) == normalized(name)), None)
