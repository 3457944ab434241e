"""How the tensors of a Hugging Face checkpoint map to our parameters, for import and export.

Format: config.json, and safetensors in one file, or in several listed by model.safetensors.index.json
(https://huggingface.co/docs/safetensors).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
from flax import nnx

from tpt_jax.models.architecture import ModelConfig

ParameterPath = tuple[str, ...]  # in the parameter state, such as ("layers", "query")
Index = tuple[slice, ...]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """A checkpoint tensor and the parameter with the same values, which may order its dimensions differently.

    Attributes:
      name: tensor name. With {layer} in place of the layer number, one parameter stacks the tensors of all layers.
      checkpoint_dims: the tensor's dimensions, in the letters of attention.py; letters written together are merged into
        one dimension.
      parameter_dims: the parameter's dimensions, without the layer axis.
    """

    name: str
    checkpoint_dims: str
    parameter_dims: str

    @property
    def is_stacked(self) -> bool:
        return "{layer}" in self.name

    @property
    def permutation(self) -> tuple[int, ...]:
        """Transposes the checkpoint's dimensions, unmerged, to the parameter's."""
        unmerged = self.checkpoint_dims.replace(" ", "")
        return tuple(unmerged.index(letter) for letter in self.parameter_dims.split())

    def checkpoint_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(math.prod(sizes[letter] for letter in merged) for merged in self.checkpoint_dims.split())

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Size of each dimension letter, from the parameter's shape."""
        return dict(zip(self.parameter_dims.split(), shape[1:] if self.is_stacked else shape, strict=True))

    def read(self, source: Any, sizes: Mapping[str, int], index: Index) -> np.ndarray:
        """Reads parameter[index] from a safetensors slice object, and nothing else of the file.

        Of merged dimensions only the first can be sharded: slices of the others are not contiguous in the file.
        """
        bounds = dict(zip(self.parameter_dims.split(), index, strict=True))
        slices, shape = [], []
        for first, *others in self.checkpoint_dims.split():
            if any(bounds[letter] != slice(0, sizes[letter]) for letter in others):
                raise ValueError(f"{self.name}: dimensions {others} must not be sharded when a checkpoint is loaded")
            start, stop = bounds[first].start, bounds[first].stop
            width = math.prod(sizes[letter] for letter in others)
            slices.append(slice(start * width, stop * width))
            shape += [stop - start, *(sizes[letter] for letter in others)]
        return source[tuple(slices)].reshape(shape).transpose(self.permutation)

    def to_checkpoint(self, parameter: jax.Array) -> jax.Array:
        """The checkpoint tensor, from the parameter or one layer's slice of it."""
        shape = self.checkpoint_shape(dict(zip(self.parameter_dims.split(), parameter.shape, strict=True)))
        return parameter.transpose(np.argsort(self.permutation).tolist()).reshape(shape)


def _layer(name: str, checkpoint_dims: str, parameter_dims: str, kind: str = "weight") -> TensorMapping:
    return TensorMapping(f"model.layers.{{layer}}.{name}.{kind}", checkpoint_dims, parameter_dims)


_COMMON: Mapping[ParameterPath, TensorMapping] = {
    ("embedding",): TensorMapping("model.embed_tokens.weight", "V D", "V D"),
    ("layers", "query"): _layer("self_attn.q_proj", "NH D", "D N H"),
    ("layers", "key"): _layer("self_attn.k_proj", "KH D", "D K H"),
    ("layers", "value"): _layer("self_attn.v_proj", "KH D", "D K H"),
    ("layers", "output"): _layer("self_attn.o_proj", "D NH", "N H D"),
    ("layers", "gate"): _layer("mlp.gate_proj", "F D", "D F"),
    ("layers", "up"): _layer("mlp.up_proj", "F D", "D F"),
    ("layers", "down"): _layer("mlp.down_proj", "D F", "F D"),
    ("layers", "attention_norm"): _layer("input_layernorm", "D", "D"),
    ("final_norm",): TensorMapping("model.norm.weight", "D", "D"),
}
_UNTIED: Mapping[ParameterPath, TensorMapping] = {("unembedding",): TensorMapping("lm_head.weight", "V D", "V D")}
# post_attention_layernorm is a different norm in Gemma and in LLaMA.
_LLAMA_NORMS: Mapping[ParameterPath, TensorMapping] = {
    ("layers", "mlp_norm"): _layer("post_attention_layernorm", "D", "D"),
}
_GEMMA_NORMS: Mapping[ParameterPath, TensorMapping] = {
    ("layers", "post_attention_norm"): _layer("post_attention_layernorm", "D", "D"),
    ("layers", "mlp_norm"): _layer("pre_feedforward_layernorm", "D", "D"),
    ("layers", "post_mlp_norm"): _layer("post_feedforward_layernorm", "D", "D"),
}
_ATTENTION_BIASES: Mapping[ParameterPath, TensorMapping] = {
    ("layers", "query_bias"): _layer("self_attn.q_proj", "NH", "N H", "bias"),
    ("layers", "key_bias"): _layer("self_attn.k_proj", "KH", "K H", "bias"),
    ("layers", "value_bias"): _layer("self_attn.v_proj", "KH", "K H", "bias"),
}
_QUERY_KEY_NORMS: Mapping[ParameterPath, TensorMapping] = {
    ("layers", "query_norm"): _layer("self_attn.q_norm", "H", "H"),
    ("layers", "key_norm"): _layer("self_attn.k_norm", "H", "H"),
}


def tensor_mappings(config: ModelConfig) -> dict[ParameterPath, TensorMapping]:
    """The mapping of every parameter of a model with this config."""
    return {
        **_COMMON,
        **(_GEMMA_NORMS if config.is_gemma else _LLAMA_NORMS),
        **(_ATTENTION_BIASES if config.attention_bias else {}),
        **(_QUERY_KEY_NORMS if config.query_key_norms else {}),
        **({} if config.tie_embeddings else _UNTIED),
    }


def flat_variables(state: nnx.State) -> dict[ParameterPath, nnx.Variable]:
    """The state's variables by path."""
    return cast(dict[ParameterPath, nnx.Variable], dict(nnx.to_flat_state(state)))
