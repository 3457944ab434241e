"""ModelConfig from the config.json of a Hugging Face checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

from tpt_jax.errors import UserError
from tpt_jax.models.architecture import Family, LinearScaling, Llama3Scaling, ModelConfig

# model_type in config.json -> family
_FAMILIES: Mapping[str, Family] = {
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), "llama"),
}
# Values that config.json may omit because they are transformers' defaults; for Gemma 3, beside a vision tower only.
_GEMMA3_DEFAULTS = {"vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "mistral": {"sliding_window": 4096},
    "qwen3": {"head_dim": 128},
    "smollm3": {"tie_word_embeddings": True, "rope_theta": 2_000_000.0},
}
# Whole numbers from 1, up to many times what any model has: more would take for ever before it is found to be wrong.
_LARGEST: Mapping[str, int] = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "intermediate_size": 2**24,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "sliding_window": 2**40,
    "sliding_window_pattern": 2**12,
    "no_rope_layer_interval": 2**12,
}
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_POSITIVE = (
    "rms_norm_eps",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope_theta",
    "rope_local_base_freq",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
_KINDS: Mapping[str, tuple[type, str]] = {
    "model_type": (str, "text"),
    "tie_word_embeddings": (bool, "true or false"),
    "use_sliding_window": (bool, "true or false"),
    "layer_types": (list, "a list"),
    "no_rope_layers": (list, "a list"),
}
_SECTIONS = ("text_config", "rope_parameters", "rope_scaling", "full_attention", "sliding_attention")
_UNSUPPORTED_OPTIONS = ("attention_bias", "mlp_bias", "use_bidirectional_attention")


def decoder_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoder's config.json: the file itself, or the text_config of a Gemma 3 with a vision tower."""
    if config.get("model_type") != "gemma3":
        return config
    _check_values(config)
    identity = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    return {**_GEMMA3_DEFAULTS, **config.get("text_config", {}), **identity}


def from_huggingface(config: Mapping[str, Any]) -> ModelConfig:
    """Converts a Hugging Face config.json written by any version of transformers.

    Raises:
      UserError: unsupported model family or option, or a value that no model has.
    """
    _check_values(config)
    config = decoder_config(config)
    model_type = config.get("model_type", "")
    family = _FAMILIES.get(model_type)
    if family is None:
        raise UserError(
            f"config.json: model_type ({config.get('model_type')!s:.80}) must be one of gemma3, {', '.join(_FAMILIES)}"
        )
    config = {**_DEFAULTS.get(model_type, {}), **config}
    for option in _UNSUPPORTED_OPTIONS:
        if config.get(option) and (option, model_type) != ("attention_bias", "qwen2"):  # Qwen 2 always has these biases
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
    attention_softcap, final_softcap, pattern = {"gemma2": (50.0, 30.0, 2), "gemma3": (None, None, 6)}[family]
    # Versions of transformers without layer_types write sliding_window_pattern, or support only the default pattern.
    layer_types, pattern = config.get("layer_types"), config.get("sliding_window_pattern") or pattern
    return ModelConfig(
        **shape,
        attention_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        tie_embeddings=config.get("tie_word_embeddings", True),
        attention_softcap=config.get("attn_logit_softcapping", attention_softcap),
        final_softcap=config.get("final_logit_softcapping", final_softcap),
        sliding_window=config.get("sliding_window", 4096),
        global_every=_global_every(config, layer_types) if layer_types else pattern,
        query_key_norms=family == "gemma3",
    )


def _check_values(config: Mapping[str, Any]) -> None:
    """Checks the values that are read from a config.json or a section of it; most may be null.

    Raises:
      UserError: one is of the wrong type, too large, not positive or not finite.
    """
    for key, value in config.items():
        rule = None if value is None and key not in _REQUIRED else _broken_rule(key, value)
        if rule is not None:
            raise UserError(f"config.json: {key} ({value!r:.80}) must be {rule}; use the one published with the model")
        if key in _SECTIONS and value is not None:
            _check_values(value)


def _broken_rule(key: str, value: Any) -> str | None:
    """What the value under this key must be, but is not."""
    if key in _LARGEST and not (type(value) is int and 1 <= value <= _LARGEST[key]):
        return f"a whole number from 1 to {_LARGEST[key]}"
    if key in _POSITIVE and not (type(value) in (int, float) and 0 < value < 1e30):  # NaN is not
        return "a number above 0"
    if key in _KINDS and not isinstance(value, _KINDS[key][0]):
        return _KINDS[key][1]
    if key in _SECTIONS and not isinstance(value, dict):
        return "an object"
    return None


def _llama_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What distinguishes LLaMA and its relatives."""
    model_type = config["model_type"]
    return {
        "tie_embeddings": config.get("tie_word_embeddings", False),
        "attention_bias": model_type == "qwen2",
        "query_key_norms": model_type == "qwen3",
        "unrotated_every": _unrotated_every(config) if model_type == "smollm3" else None,
        **_llama_windows(config),
    }


def _llama_windows(config: Mapping[str, Any]) -> dict[str, Any]:
    """All layers of a Mistral have the window, if there is one; of a Qwen only those that it lists."""
    window, model_type = config.get("sliding_window"), config["model_type"]
    if model_type == "mistral":
        return {"sliding_window": window}
    if model_type == "llama" or window is None or not config.get("use_sliding_window"):
        return {}
    if model_type == "smollm3":
        raise UserError("config.json: use_sliding_window (True) is not supported for smollm3; it must be false")
    num_layers, num_global = config["num_hidden_layers"], config.get("max_window_layers", 28)
    by_default = ["full_attention" if layer < num_global else "sliding_attention" for layer in range(num_layers)]
    every = _global_every(config, config.get("layer_types") or by_default)
    return {} if every == 1 else {"sliding_window": window, "global_every": every}


def _unrotated_every(config: Mapping[str, Any]) -> int | None:
    """SmolLM3 marks layers with (1) and without (0) a rotary embedding, or gives the distance between those without."""
    rotated = config.get("no_rope_layers")
    if rotated is None:
        return config.get("no_rope_layer_interval", 4)
    return _every(config, "no_rope_layers", rotated, (0, 1), "SmolLM3")


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


def _global_every(config: Mapping[str, Any], layer_types: Sequence[str]) -> int | None:
    return _every(config, "layer_types", layer_types, ("full_attention", "sliding_attention"), "Gemma")


def _every(
    config: Mapping[str, Any], key: str, kinds: Sequence[Any], known: tuple[Any, Any], example: str
) -> int | None:
    """The number whose multiples are the layers of a rare kind, counted from 1; None if there are none.

    Args:
      kinds: the kind of each layer.
      known: the rare kind and the usual one.
    """
    rare, usual = known
    every = kinds.index(rare) + 1 if rare in kinds else None
    numbers = range(1, config["num_hidden_layers"] + 1)
    if list(kinds) != [rare if every and number % every == 0 else usual for number in numbers]:
        raise UserError(
            f"config.json: {key} ({', '.join(map(str, kinds[:6]))}, ...) must repeat a number of {usual} layers "
            f"followed by one {rare} layer, as in {example}"
        )
    return every
