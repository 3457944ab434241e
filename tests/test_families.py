"""LLaMA's relatives: Mistral, Qwen 2.5, Qwen 3 and SmolLM3, against transformers on tiny random models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import RELATIVES, TINY, jit_forward, make_twins, torch_logits

from tpt_jax.config import MeshConfig
from tpt_jax.errors import UserError
from tpt_jax.models.huggingface_config import from_huggingface
from tpt_jax.models.huggingface_export import copy_side_files, save_parameters
from tpt_jax.models.published import PUBLISHED, published
from tpt_jax.models.transformer import initialize_parameters
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
from tpt_jax.think.engine import Engine
from tpt_jax.think.requests import FixedSchedule, Request
from tpt_jax.think.sampler import compile_sampler
from tpt_jax.think.state import SlotShape

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Twins


@pytest.fixture(scope="module", params=list(RELATIVES))
def relative(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, layout: Layout) -> Twins:
    return make_twins(request.param, tmp_path_factory.mktemp(request.param), layout)


def tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 64, shape)


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def test_logits_match_transformers(relative: Twins) -> None:
    """Over three sliding windows of a Mistral."""
    asked = tokens(3, 24)
    assert difference(relative.logits(asked), relative.expected_logits(asked)) < 1e-4


def test_each_option_matters(relative: Twins) -> None:
    """So that the comparison would notice its loss."""
    changes: dict[str, dict[str, Any]] = {
        "mistral": {"sliding_window": None},
        "smollm3": {"unrotated_every": None},
    }
    kind = relative.torch_model.config.model_type
    asked = tokens(3, 24)
    if kind in changes:
        assert difference(relative.with_config(**changes[kind]).logits(asked), relative.expected_logits(asked)) > 0.01
    else:
        assert relative.config.attention_bias == (kind == "qwen2")
        assert relative.config.query_key_norms == (kind == "qwen3")


def test_transformers_loads_an_export(relative: Twins, tmp_path: Path) -> None:
    import transformers

    save_parameters(tmp_path, relative.config, relative.parameters, dtype="float32")
    copy_side_files(relative.folder, tmp_path, dtype="float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    asked = tokens(2, 12)
    np.testing.assert_array_equal(torch_logits(model, asked), relative.expected_logits(asked))


def test_decoding_has_the_options_of_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Biases, norms, layers without rotary embedding and a window on all layers, in prefill and decode steps.

    On two devices that share the heads. The eight-device tests show that the forward pass is the same there.
    """
    # One length instead of several compiles in a fraction of the time.
    monkeypatch.setattr(SlotShape, "live_lengths", property(lambda shape: (shape.cache_length,)))
    config = TINY["relative"]
    mesh = make_mesh(MeshConfig(tensor=2), jax.devices()[:2])
    parameters = initialize_parameters(config, Layout(mesh, TRAIN_RULES), seed=0)
    noise = jax.random.key(1)
    parameters = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(noise, x.shape, x.dtype), parameters)
    shape = SlotShape(
        num_slots=4, num_questions=4, num_traces=4, num_prefix_tokens=0, max_prompt_tokens=12, max_new_tokens=12
    )
    program = compile_sampler(config, mesh, compute_dtype="float32", shapes={"s": shape}, stop_ids=(64,))
    prompts = [tuple(tokens(4, 12)[row, : 6 + 2 * row].tolist()) for row in range(4)]
    engine = Engine(program.slots["s"], Text(), (), 1)  # pyright: ignore[reportArgumentType]
    requests = [Request(str(row), prompt, (0,), (12,)) for row, prompt in enumerate(prompts)]
    batches = engine.sample(
        program.reshards["s"](parameters), FixedSchedule(requests, 1), seed=0, round_index=0, temperature=0.0
    )
    sampled = {trace.id: trace.token_ids for batch in batches for trace in batch}
    forward = jit_forward(config, Layout(mesh, TRAIN_RULES))
    for row, prompt in enumerate(prompts):
        sequence = np.zeros((1, 24), np.int32)
        sequence[0, : len(prompt) + 12] = [*prompt, *sampled[str(row)]]
        logits = forward(parameters, sequence, np.arange(24)[None], np.ones_like(sequence))
        greedy = np.asarray(jnp.argmax(logits, axis=-1))[0, len(prompt) - 1 : len(prompt) + 11]
        assert sampled[str(row)] == tuple(greedy.tolist())


class Text:
    """Stands in for a Prompt."""

    def text(self, token_ids: Any) -> str:
        return str(token_ids)


BASE = {"hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4, "vocab_size": 64, "intermediate_size": 48}


@pytest.mark.parametrize(
    "json",
    [
        {"model_type": "mistral", "sliding_window": None},  # as from version 0.2
        {"model_type": "mistral", "sliding_window": 5},
        {"model_type": "mistral"},
        {"model_type": "qwen2", "sliding_window": 5, "max_window_layers": 4},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 8},
        {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 5},
        {"model_type": "smollm3", "sliding_window": 5, "no_rope_layer_interval": 3},
        {"model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0] * 2},
        {"model_type": "smollm3", "no_rope_layers": [1] * 8},
    ],
)
def test_config_json_means_what_it_does_to_transformers(json: dict[str, Any]) -> None:
    """Windows, layers without rotary embedding, and values that the file does not give."""
    import transformers

    theirs = transformers.AutoConfig.for_model(**BASE, **json)
    ours = from_huggingface({**BASE, **json, "num_key_value_heads": theirs.num_key_value_heads})
    types = getattr(theirs, "layer_types", ["sliding_attention"] * 8)
    assert list(ours.windows) == [theirs.sliding_window if kind == "sliding_attention" else None for kind in types]
    assert list(ours.rotated) == [bool(rotated) for rotated in getattr(theirs, "no_rope_layers", [1] * 8)]
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.head_dim == getattr(theirs, "head_dim", 8)
    assert ours.tie_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", "qwen2.5-1.5b"),
        ("Qwen/Qwen3-0.6B-Base", "qwen3-0.6b"),
        ("google/gemma-3-4b-pt", "gemma3-4b"),
        ("google/gemma-3-270m-it", "gemma3-270m"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("HuggingFaceTB/SmolLM3-3B", "smollm3-3b"),
    ],
)
def test_published_models_by_the_name_of_their_repository(name: str, key: str) -> None:
    assert published(name) is PUBLISHED[key]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 4},
            r"layer_types \(full_attention, .*\) must repeat a number of sliding_attention layers followed by one full",
        ),
        ({"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 5}, "use_sliding_window .* smollm3"),
        ({"model_type": "qwen3", "attention_bias": True}, r"attention_bias \(True\) is not supported"),
        ({"model_type": "llama", "attention_bias": True}, r"attention_bias \(True\) is not supported"),
        (
            {"model_type": "smollm3", "no_rope_layers": [1, 0, 0, 1] * 2},
            r"no_rope_layers \(1, 0, .*\) must repeat a number of 1 layers followed by one 0 layer, as in SmolLM3",
        ),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers"),  # shorter than the model
        ({"model_type": "qwen2", "rope_scaling": {"type": "yarn", "factor": 4.0}}, r"rope_type \(yarn\) must be"),
        ({"model_type": "qwen2_moe"}, r"model_type \(qwen2_moe\) must be one of gemma3, gemma2, .*qwen3, smollm3"),
    ],
)
def test_unsupported_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        from_huggingface({**BASE, **change})
    assert "\n" not in str(error.value)
