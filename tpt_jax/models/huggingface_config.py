"""ModelConfig from the config.json of a Hugging Face checkpoint."""

from collections.abc import Mapping
from typing import Any

from tpt_jax.errors import UserError
from tpt_jax.models.architecture import Family, LinearScaling, Llama3Scaling, ModelConfig

# model_type in config.json -> family
_FAMILIES: Mapping[str, Family] = {
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), "llama"),
}
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
            f"config.json: model_type ({config.get('model_type')}) must be one of gemma3, {', '.join(_FAMILIES)}"
        )
    for option in ("attention_bias", "mlp_bias", "use_bidirectional_attention", "use_sliding_window"):
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
        return ModelConfig(**shape, **_llama_options(config), attention_scale=head_dim**-0.5)
    attention_softcap, final_softcap, global_every = {"gemma2": (50.0, 30.0, 2), "gemma3": (None, None, 6)}[family]
    return ModelConfig(
        **shape,
        attention_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        tie_embeddings=config.get("tie_word_embeddings", True),
        attention_softcap=config.get("attn_logit_softcapping", attention_softcap),
        final_softcap=config.get("final_logit_softcapping", final_softcap),
        sliding_window=config.get("sliding_window", 4096),
        global_every=_global_every(config, global_every),
        query_key_norms=family == "gemma3",
    )


def _llama_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What distinguishes LLaMA and its relatives."""
    model_type = config["model_type"]
    return {
        "tie_embeddings": config.get("tie_word_embeddings", model_type == "smollm3"),
        "attention_bias": model_type == "qwen2",
        "query_key_norms": model_type == "qwen3",
        "unrotated_every": _unrotated_every(config) if model_type == "smollm3" else None,
        # Every layer of a Mistral has the window, if it has one.
        "sliding_window": config.get("sliding_window", 4096) if model_type == "mistral" else None,
        "global_every": None,
    }


def _unrotated_every(config: Mapping[str, Any]) -> int | None:
    """SmolLM3 lists the layers with a rotary embedding (1) and without (0), or gives the distance of those without."""
    rotated = config.get("no_rope_layers")
    if not rotated:
        return config.get("no_rope_layer_interval", 4)
    every = [*rotated, 0].index(0) + 1
    if list(rotated) != [int(number % every != 0) for number in range(1, config["num_hidden_layers"] + 1)]:
        raise UserError(
            f"config.json: no_rope_layers ({', '.join(map(str, rotated[:8]))}, ...) must repeat a number of ones "
            "followed by one zero, as in SmolLM3"
        )
    return every if every <= len(rotated) else None


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
