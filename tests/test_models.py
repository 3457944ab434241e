"""Compares the decoder with transformers on tiny random models, and checks config.json parsing."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from flax import nnx

from tpt_jax.config import LoRAConfig
from tpt_jax.errors import UserError
from tpt_jax.models.architecture import LinearScaling, ModelConfig
from tpt_jax.models.attention import KVCache
from tpt_jax.models.huggingface_config import from_huggingface
from tpt_jax.models.inference import InferenceTransformer, abstract_inference_parameters
from tpt_jax.models.published import PUBLISHED
from tpt_jax.models.transformer import Remat, abstract_parameters
from tpt_jax.runtime.sharding import Layout
from tpt_jax.think import cache as kv_cache

if TYPE_CHECKING:
    from conftest import Twins

TOLERANCE = 1e-4
BATCH, LENGTH = 3, 24  # LENGTH is three sliding windows


def relative_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def random_tokens(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 64, shape or (BATCH, LENGTH))


def test_logits_match_transformers_beyond_the_sliding_window(twins: Twins) -> None:
    tokens = random_tokens(0)
    assert relative_difference(twins.logits(tokens), twins.expected_logits(tokens)) < TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_logits(twins: Twins, side: str) -> None:
    tokens = random_tokens(1)
    lengths = np.asarray([LENGTH, 15, 6])[:, None]
    columns = np.arange(LENGTH)[None, :]
    mask = columns >= LENGTH - lengths if side == "left" else columns < lengths
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    padded = np.where(mask, tokens, 0)
    logits = twins.logits(padded, positions, mask.astype(int))
    expected = twins.expected_logits(padded, attention_mask=mask.astype(int), position_ids=positions)
    assert relative_difference(logits[mask], expected[mask]) < TOLERANCE
    assert np.isfinite(logits).all()


def test_packed_segments_match_separate_sequences(twins: Twins) -> None:
    """Row 0 packs sequences of 11, 9 and 4 tokens, row 1 two of 12, and row 2 one of 20 and padding."""
    packing = [[11, 9, 4], [12, 12], [20]]
    tokens = random_tokens(2)
    positions, segment_ids = np.zeros_like(tokens), np.zeros_like(tokens)
    segments: list[tuple[int, slice]] = []
    for row, lengths in enumerate(packing):
        start = 0
        for segment_id, length in enumerate(lengths, start=1):
            columns = slice(start, start + length)
            positions[row, columns], segment_ids[row, columns] = np.arange(length), segment_id
            segments.append((row, columns))
            start += length
    logits = twins.logits(tokens, positions, segment_ids)
    for row, columns in segments:
        expected = twins.expected_logits(tokens[row : row + 1, columns])
        assert relative_difference(logits[row : row + 1, columns], expected) < TOLERANCE


@pytest.mark.parametrize("grouping", ["scanned", "unrolled"])
def test_prefill_and_decode_steps_match_a_full_forward_pass(twins: Twins, layout: Layout, grouping: str) -> None:
    """Prompts of different lengths, one after the other; the KV caches of local layers hold only their window."""
    tokens = random_tokens(3)
    prompt_lengths = np.asarray([10, 7, 3])
    longest = int(prompt_lengths.max())
    config = twins.config
    num_groups = config.period if grouping == "scanned" else config.num_layers
    graph, _ = nnx.split(nnx.eval_shape(lambda: InferenceTransformer(config, num_groups, rngs=nnx.Rngs(0))))

    @jax.jit
    def prefill(
        parameters: nnx.State, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array
    ) -> list[KVCache]:
        model = nnx.merge(graph, parameters)
        new_entries = model.prefill(tokens, positions, segment_ids, max_segment=longest, layout=layout)
        dtype = jnp.dtype("float32")
        caches = kv_cache.empty(config, BATCH, kv_cache.layer_sizes(config, LENGTH)[:num_groups], dtype, "compute")
        pools = kv_cache.empty(config, 1, [len(tokens) + longest] * num_groups, dtype, "compute")
        filled = []
        for new, pool, cache in zip(new_entries, pools, caches, strict=True):
            pool = kv_cache.write_prompts(pool, *new, jnp.int32(0))
            start = 0
            for row, length in enumerate(prompt_lengths.tolist()):
                prompt = (jnp.int32(start), jnp.int32(length), longest)
                cache = kv_cache.copy_prompt(cache, pool, jnp.int32(row), *prompt)
                start += length
            filled.append(cache)
        return filled

    @jax.jit
    def step(parameters: nnx.State, tokens: jax.Array, positions: jax.Array, caches: list[KVCache]) -> tuple:
        model = nnx.merge(graph, parameters)
        kv_caches = [[(cache, kv_cache.entry_positions(cache.key.shape[3], positions))] for cache in caches]
        hidden, new_entries = model.decode(tokens, positions, kv_caches, layout=layout)
        return model.logits(hidden), kv_cache.write_tokens(caches, new_entries, positions)

    rows = np.arange(BATCH)
    padding = -prompt_lengths.sum() % longest
    segment_ids = np.pad(np.repeat(rows, prompt_lengths), (0, padding), constant_values=BATCH).astype(np.int32)
    positions = np.concatenate([np.arange(length) for length in (*prompt_lengths, padding)]).astype(np.int32)
    flat = np.concatenate([*(tokens[row, :length] for row, length in enumerate(prompt_lengths)), np.zeros(padding)])
    parameters = group_layers(twins.parameters, num_groups)
    caches = prefill(parameters, flat.astype(np.int32), positions, segment_ids)
    expected = twins.expected_logits(tokens)
    for index in range(LENGTH - longest):
        positions = (prompt_lengths + index).astype(np.int32)
        logits, caches = step(parameters, tokens[rows, positions], positions, caches)
        assert relative_difference(np.asarray(logits), expected[rows, positions]) < TOLERANCE


def group_layers(parameters: nnx.State, num_groups: int) -> nnx.State:
    """The parameters of a Transformer as those of an InferenceTransformer."""
    flat = dict(nnx.to_flat_state(parameters))
    grouped = {path: variable for path, variable in flat.items() if path[0] != "layers"}
    for path, variable in flat.items():
        if path[0] == "layers":
            for group in range(num_groups):
                grouped["groups", group, *path[1:]] = variable.replace(variable.get_value()[group::num_groups])
    return nnx.from_flat_state(list(grouped.items()))


@pytest.mark.parametrize(
    ("twins", "field", "changed"),
    [
        ("gemma2", "attention_softcap", None),
        ("gemma2", "final_softcap", None),
        ("gemma2", "sliding_window", None),
        ("gemma3", "sliding_window", LENGTH),
        ("gemma3", "local_rope_theta", None),
        ("gemma3", "rope_scaling", None),
        ("llama", "rope_scaling", None),
    ],
    indirect=["twins"],
)
def test_each_option_changes_the_logits_of_these_models(twins: Twins, field: str, changed: int | None) -> None:
    """Otherwise the comparisons above could not detect an error in it."""
    tokens = random_tokens(0)
    changed_logits = twins.with_config(**{field: changed}).logits(tokens)
    assert relative_difference(changed_logits, twins.logits(tokens)) > 100 * TOLERANCE


@pytest.mark.parametrize("remat", ["dots", "outputs", "full"])
@pytest.mark.parametrize("twins", ["gemma3"], indirect=True)
def test_remat_does_not_change_gradients(twins: Twins, remat: Remat) -> None:
    """Covers the scanned full periods and the layers after them."""
    graph, _ = abstract_parameters(twins.config)
    tokens = jnp.asarray(random_tokens(4))
    positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)

    @functools.partial(jax.jit, static_argnames="remat")
    def gradient(parameters: nnx.State, remat: Remat) -> nnx.State:
        def loss(parameters: nnx.State) -> jax.Array:
            model = nnx.merge(graph, parameters)
            hidden = model(tokens, positions, jnp.ones_like(tokens), layout=twins.layout, remat=remat)
            return (hidden**2).sum()

        return jax.grad(loss)(parameters)

    saved, rematerialized = gradient(twins.parameters, "none"), gradient(twins.parameters, remat)
    for expected, actual in zip(jax.tree.leaves(saved), jax.tree.leaves(rematerialized), strict=True):
        assert relative_difference(actual, expected) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "lora", "recomputed"),
    [
        ("gemma2", None, {"dots": 0, "outputs": 5, "full": 7}),
        (
            "llama",
            None,
            {"dots": 0, "outputs": 5, "full": 6},
        ),  # no norm follows the last product
        # An adapter's first product is kept with outputs, its second recomputed with that of its weight.
        ("gemma2", LoRAConfig(4), {"dots": 0, "outputs": 5 + 5, "full": 7 + 14}),
    ],
)
def test_remat_recomputes_so_many_products_of_a_layer(
    layout: Layout, family: str, lora: LoRAConfig | None, recomputed: dict[Remat, int]
) -> None:
    config = TINY[family]
    graph, abstract = abstract_parameters(config, lora)
    trained, frozen = nnx.split_state(abstract, nnx.LoRAParam if lora else nnx.Param, ...)
    ids = jax.ShapeDtypeStruct((2, LENGTH), jnp.int32)

    def num_products(remat: Remat) -> int:
        def loss(trained: nnx.State, frozen: nnx.State, ids: jax.Array) -> jax.Array:
            return nnx.merge(graph, trained, frozen)(ids, ids, ids, layout=layout, remat=remat).sum()

        text = str(jax.make_jaxpr(jax.grad(loss))(trained, frozen, ids))
        # Those of attention have batch dimensions, and every policy but "none" recomputes them.
        return len(re.findall(r"dot_general\[\s*dimension_numbers=\(\([^()]*\), \(\[\], \[\]\)\)", text))

    layers = config.period  # in the scan's body
    saved = num_products("none")
    assert {remat: (num_products(remat) - saved) / layers for remat in recomputed} == recomputed


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_activations_have_the_parameters_dtype_and_logits_are_fp32(
    tiny_config: ModelConfig, layout: Layout, dtype: jnp.dtype
) -> None:
    graph, abstract = abstract_inference_parameters(tiny_config, layout.mesh)
    parameters = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), abstract)
    ids = jax.ShapeDtypeStruct((LENGTH,), jnp.int32)

    def run(parameters: nnx.State, ids: jax.Array) -> tuple:
        model = nnx.merge(graph, parameters)
        prefilled = model.prefill(ids, ids, ids, max_segment=LENGTH, layout=layout)
        caches = [KVCache(*(x[:, None].swapaxes(2, 3) for x in pair)) for pair in prefilled]
        hidden, entries = model.decode(ids[:1], ids[:1], [[(cache, ids[None])] for cache in caches], layout=layout)
        return model.logits(hidden), (hidden, *jax.tree.leaves((prefilled, entries)))

    logits, activations = jax.eval_shape(run, parameters, ids)
    assert logits.shape == (1, tiny_config.vocab_size)
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in activations} == {jnp.dtype(dtype)}


# Published parameter counts, from the model pages, of a multimodal Gemma 3 less the vision tower and its projector.
TOTALS = {
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "gemma2-27b": 27_227_128_320,
    "gemma3-270m": 268_098_176,
    "gemma3-1b": 999_885_952,
    "gemma3-4b": 4_300_079_472 - 419_816_304,
    "gemma3-12b": 12_187_325_040 - 421_290_864,
    "gemma3-27b": 27_432_406_640 - 423_060_336,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.2": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_parameter_counts_match_the_published_ones(name: str) -> None:
    _, abstract = abstract_parameters(PUBLISHED[name])
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == TOTALS[name]
    assert PUBLISHED[name].num_parameters == TOTALS[name]


def test_parameter_count_matches_transformers(twins: Twins) -> None:
    assert twins.config.num_parameters == twins.torch_model.num_parameters()


LLAMA_JSON = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GEMMA2_JSON = {
    "model_type": "gemma2",
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}
GEMMA3_JSON = {
    "model_type": "gemma3_text",
    "vocab_size": 262_144,
    "hidden_size": 1152,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 6912,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window": 512,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
GEMMA3_OLD_ROPE = {"rope_theta": 1_000_000, "rope_local_base_freq": 10_000, "rope_scaling": None}
FIVE_TO_ONE = [["full_attention", "sliding_attention"][layer % 6 > 0] for layer in range(1, 27)]


@pytest.mark.parametrize(
    ("json", "name"),
    [
        ({**LLAMA_JSON, "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500_000.0}}, "llama3.1-8b"),
        ({**LLAMA_JSON, "rope_theta": 500_000.0, "rope_scaling": LLAMA3_ROPE}, "llama3.1-8b"),
        ({**GEMMA2_JSON, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}, "gemma2-2b"),
        ({**GEMMA2_JSON, "rope_theta": 10_000.0}, "gemma2-2b"),
        ({**GEMMA3_JSON, "layer_types": FIVE_TO_ONE, "rope_parameters": GEMMA3_ROPE}, "gemma3-1b"),
        ({**GEMMA3_JSON, "sliding_window_pattern": 6, **GEMMA3_OLD_ROPE}, "gemma3-1b"),
    ],
    ids=["llama new", "llama old", "gemma2 new", "gemma2 old", "gemma3 new", "gemma3 old"],
)
def test_config_json_from_old_and_new_transformers(json: dict[str, Any], name: str) -> None:
    assert from_huggingface(json) == PUBLISHED[name]


def test_config_json_of_gemma3_with_a_vision_tower() -> None:
    """The fields of google/gemma-3-4b-it, which omits default values."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = from_huggingface({"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}})
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size) == (8, 4, 256, 262_208)
    assert (config.rope_theta, config.local_rope_theta) == (1_000_000.0, 10_000.0)
    assert config.rope_scaling == LinearScaling(8.0)
    assert config.num_parameters == 3_880_263_168  # transformers' count for Gemma3ForCausalLM


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("llama3.1-8b", "G" * 32),
        ("gemma2-2b", "LG" * 13),
        ("gemma3-1b", "LLLLLG" * 4 + "LL"),
    ],
)
def test_pattern_of_local_and_global_layers(name: str, pattern: str) -> None:
    config = PUBLISHED[name]
    assert "".join("G" if window is None else "L" for window in config.windows) == pattern
    assert config.period == {"G": 1, "LG": 2, "LLLLLG": 6}[pattern[: config.period]]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "mixtral"}, "mixtral"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "yarn"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor"),
        ({"hidden_size": None}, "hidden_size"),
        ({**GEMMA2_JSON, "layer_types": ["full_attention", "sliding_attention"] * 13}, "layer_types"),
        ({**GEMMA3_JSON, "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({**GEMMA3_JSON, "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, "sliding"),
        ({"model_type": "gemma3"}, "hidden_size"),
    ],
)
def test_unsupported_config_json_is_refused(change: dict[str, Any], word: str) -> None:
    json = {key: value for key, value in {**LLAMA_JSON, **change}.items() if value is not None}
    with pytest.raises(UserError, match=word) as error:
        from_huggingface(json)
    assert "\n" not in str(error.value)
