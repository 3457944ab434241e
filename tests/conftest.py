"""Strict JAX settings for all tests, and tiny models built in both transformers and tpt_jax."""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

# Read when jax starts: eight emulated devices on any machine, fast compilation, and a compilation cache across runs.
os.environ["JAX_PLATFORMS"] = "cpu"
XLA_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
# Without it, independent collectives of emulated devices can wait for each other for ever on a machine of few cores.
XLA_FLAGS += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"tpt_jax_tests_{os.getuid()}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["OMP_NUM_THREADS"] = (
    "1"  # torch's threads spin while waiting for each other, which costs minutes on a busy machine
)

import jax
import numpy as np
import pytest
from flax import nnx
from processes import CommandHere

from tpt_jax.config import MeshConfig
from tpt_jax.models.architecture import LinearScaling, Llama3Scaling, ModelConfig
from tpt_jax.models.huggingface_import import load_parameters, read_model_config
from tpt_jax.models.transformer import abstract_parameters
from tpt_jax.runtime import hosts, preemption
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout

Forward = Callable[[nnx.State, np.ndarray, np.ndarray, np.ndarray], jax.Array]

# Eight heads can be sharded over eight devices; two key-value heads cannot.
TINY_SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "embed_dim": 32,
    "num_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 48,
    "attention_scale": 0.3,
}
TINY = {
    "gemma2": ModelConfig(
        "gemma2",
        **TINY_SHAPE,
        num_layers=4,
        attention_softcap=50.0,
        final_softcap=30.0,
        sliding_window=8,
        global_every=2,
    ),
    "gemma3": ModelConfig(
        "gemma3",
        **TINY_SHAPE,
        num_layers=7,  # two full periods of three layers, and one layer more
        rope_theta=100_000.0,
        rope_scaling=LinearScaling(4.0),
        local_rope_theta=10_000.0,
        sliding_window=8,
        global_every=3,
        query_key_norms=True,
    ),
    "llama": ModelConfig(
        "llama", **TINY_SHAPE, num_layers=4, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 16), tie_embeddings=False
    ),
    "relative": ModelConfig(  # what LLaMA's relatives add to it, in one model
        "llama",
        **TINY_SHAPE,
        num_layers=3,  # one full period of two layers, and one layer more
        rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 16),
        tie_embeddings=False,
        sliding_window=8,
        attention_bias=True,
        query_key_norms=True,
        unrotated_every=2,
    ),
}


# Half a minute and more: those that start processes or execute notebooks, and those that compile much.
SLOWEST_FILES = (
    "test_hosts",
    "test_library",
    "test_loop",
    "test_lora",
    "test_notebooks",
    "test_plan",
    "test_sample_command",
    "test_sampling",
    "test_training",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the slowest files first, so that the two test processes finish at about the same time."""
    items.sort(key=lambda item: item.path.stem not in SLOWEST_FILES)


# Optax multiplies floats by its integer step count, which strict promotion refuses.
MODULES_THAT_TRAIN = {"test_lora", "test_training", "test_optimizer", "test_sweep"}


@pytest.fixture(autouse=True)
def no_implicit_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Requires explicit dtype conversions: a stray fp32 constant would silently widen bf16 arithmetic."""
    trains = request.module.__name__ in MODULES_THAT_TRAIN
    with jax.numpy_dtype_promotion("standard" if trains else "strict"):
        yield


@pytest.fixture
def tpt_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandHere:
    """Runs the command in this process, which uses JAX already, so cannot join hosts, and handles its own signals."""
    monkeypatch.setattr(hosts, "join", lambda coordinator: None)
    monkeypatch.setattr(preemption, "listen", lambda: None)
    return CommandHere(capsys)


@pytest.fixture(scope="session")
def layout() -> Layout:
    """The training layout on one device."""
    return Layout(make_mesh(MeshConfig(), jax.devices()[:1]), TRAIN_RULES)


@pytest.fixture(scope="session", params=list(TINY))
def tiny_config(request: pytest.FixtureRequest) -> ModelConfig:
    return TINY[request.param]


def jit_forward(config: ModelConfig, layout: Layout) -> Forward:
    """Jitted forward pass from parameters, tokens, positions and segment ids to logits [B, T, V]."""
    graph, _ = abstract_parameters(config)

    @jax.jit
    def forward(parameters: nnx.State, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
        model = nnx.merge(graph, parameters)
        return model.logits(model(tokens, positions, segment_ids, layout=layout))

    return forward


@dataclasses.dataclass(frozen=True)
class Twins:
    """A tiny random model in transformers, its checkpoint folder, and our model loaded from that folder."""

    torch_model: Any
    folder: Path
    config: ModelConfig
    layout: Layout
    parameters: nnx.State
    forward: Forward

    def with_config(self, **changes: Any) -> Self:
        """Changes the config of our model only."""
        config = dataclasses.replace(self.config, **changes)
        return dataclasses.replace(self, config=config, forward=jit_forward(config, self.layout))

    def expected_logits(self, tokens: np.ndarray, **inputs: np.ndarray) -> np.ndarray:
        """Logits [B, T, V] of transformers' model."""
        return torch_logits(self.torch_model, tokens, **inputs)

    def logits(
        self, tokens: np.ndarray, positions: np.ndarray | None = None, segment_ids: np.ndarray | None = None
    ) -> np.ndarray:
        """Logits [B, T, V] of our model; by default each row is one sequence."""
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
        segment_ids = np.ones_like(tokens) if segment_ids is None else segment_ids
        return np.asarray(self.forward(self.parameters, tokens, positions, segment_ids))


def torch_logits(model: Any, tokens: np.ndarray, **inputs: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        tensors = {name: torch.tensor(value) for name, value in inputs.items()}
        return model(torch.tensor(tokens), **tensors).logits.float().numpy()


RELATIVES = {
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM"),
}
RELATIVE_OPTIONS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "smollm3": {"no_rope_layer_interval": 2, "pad_token_id": 0},
}


# One layer of each kind. On a CPU the sampler's programs run every layer separately: they compile in a time that is
# proportional to their number.
SHALLOW = {"gemma2": 2, "gemma3": 3, "llama": 2, "llama_tied": 1}


def shallow(kind: str) -> ModelConfig:
    """A tiny model with few layers."""
    return dataclasses.replace(TINY[kind], num_layers=SHALLOW[kind])


def make_torch_model(kind: str, num_layers: int | None = None) -> Any:
    """A random transformers model of TINY's shape, with weights large enough for soft caps, norms and RoPE to matter.

    With transformers' own initial weights no score would come near a soft cap.

    Args:
      num_layers: None for as many as TINY has.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": num_layers or (7 if kind == "gemma3" else 4),
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "attn_implementation": "eager",
    }
    if kind == "gemma2":
        config = transformers.Gemma2Config(**shape, query_pre_attn_scalar=12, sliding_window=8)
        model = transformers.Gemma2ForCausalLM(config)
    elif kind == "gemma3":
        rope = {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 100_000.0, "factor": 4.0},
        }
        shape |= {"sliding_window_pattern": 3, "rope_parameters": rope}
        config = transformers.Gemma3TextConfig(**shape, query_pre_attn_scalar=12, sliding_window=8)
        model = transformers.Gemma3ForCausalLM(config)
    elif kind in RELATIVES:
        config, model_class = RELATIVES[kind]
        model = getattr(transformers, model_class)(getattr(transformers, config)(**shape, **RELATIVE_OPTIONS[kind]))
    else:
        rope = {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
        tied = kind == "llama_tied"
        config = transformers.LlamaConfig(**shape, rope_parameters=rope, tie_word_embeddings=tied)
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.3)
            elif name.endswith("bias"):
                weight.copy_(torch.randn_like(weight))
            else:
                affects_scores = "q_proj" in name or "k_proj" in name or "embed" in name
                gain = (4.0 if "gemma" in kind else 2.0) if affects_scores else 1.0
                weight.copy_(torch.randn_like(weight) * gain * weight.shape[1] ** -0.5)
    return model.eval()


@pytest.fixture(scope="session", params=["gemma2", "gemma3", "llama", "llama_tied"])
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, layout: Layout) -> Twins:
    return make_twins(request.param, tmp_path_factory.mktemp(request.param), layout)


def make_twins(kind: str, folder: Path, layout: Layout, num_layers: int | None = None) -> Twins:
    model = make_torch_model(kind, num_layers)
    model.save_pretrained(folder)
    config = read_model_config(folder)
    parameters = load_parameters(folder, config, layout)
    return Twins(model, folder, config, layout, parameters, jit_forward(config, layout))
