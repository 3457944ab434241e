"""Writes adapters in the format of Hugging Face's PEFT: adapter_model.safetensors and adapter_config.json.

PEFT names adapters by the modules that they change: base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight, of
shape [rank, inputs]; lora_B is [outputs, rank] (https://huggingface.co/docs/peft, LoraConfig).
"""

import json

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from tpt_jax.config import LoRAConfig
from tpt_jax.io.files import write_atomically
from tpt_jax.io.paths import AnyPath
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.huggingface_export import write_shard
from tpt_jax.models.huggingface_tensors import flat_variables, tensor_mappings
from tpt_jax.models.masters import LAYERS
from tpt_jax.runtime import hosts

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"


def save_adapters(
    folder: AnyPath,
    config: ModelConfig,
    adapters: nnx.State,
    lora: LoRAConfig,
    base: str,
    revision: str | None = None,
) -> None:
    """Writes adapters, in fp32. Every host must call this; the first one writes.

    Args:
      base: OWNER/NAME or folder of the model they belong to.
      revision: of a model on the Hub.
    """
    mappings = tensor_mappings(config)
    arrays: dict[str, np.ndarray] = {}
    modules: set[str] = set()
    for (*_, name, matrix), variable in flat_variables(adapters).items():
        module = mappings[LAYERS, name].name.removesuffix(".weight")
        modules.add(module.rpartition(".")[2])
        for layer, value in enumerate(_gather(variable.get_value())):
            flat = value.reshape(-1, lora.rank) if matrix == "a" else value.reshape(lora.rank, -1)
            arrays[f"base_model.model.{module.format(layer=layer)}.lora_{matrix.upper()}.weight"] = flat.T.copy()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(modules),
        "bias": "none",
        "inference_mode": True,
    }
    if hosts.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        write_shard(folder / WEIGHTS, arrays)
        write_atomically(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
    hosts.barrier("the adapters are written")


def _gather(value: jax.Array) -> np.ndarray:
    assert isinstance(value.sharding, NamedSharding)
    return np.asarray(jax.device_put(value, NamedSharding(value.sharding.mesh, PartitionSpec())))
