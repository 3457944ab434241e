"""Weights as stored for sampling: int8 ones against dequantized ones, output-major ones against plain ones."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, jit_forward
from flax import nnx
from jax.experimental.layout import Format
from jax.sharding import SingleDeviceSharding

from tpt_jax.config import MeshConfig
from tpt_jax.models.attention import KVCache
from tpt_jax.models.decoding_weights import FEW_ROWS, Int8Weight, OutputMajorWeight, product, quantize
from tpt_jax.models.inference import abstract_inference_parameters
from tpt_jax.models.masters import abstract_masters
from tpt_jax.models.transformer import initialize_parameters
from tpt_jax.plan.hlo import Module
from tpt_jax.plan.topology import ENVIRONMENT, tpu_devices
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import DECODE_RULES, TRAIN_RULES, Layout
from tpt_jax.think.reshard import abstract_copy, compile_reshard

# Shapes of the weights, the axes that their products sum over, and the products.
PRODUCTS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "query": ("BTD,DNH->BTNH", (12, 3, 4), (0,)),
    "output": ("BTNH,NHD->BTD", (3, 4, 12), (0, 1)),
    "logits": ("BTD,VD->BTV", (20, 12), (1,)),
}


def dequantized(weight: Int8Weight, summed: tuple[int, ...]) -> np.ndarray:
    return np.asarray(weight.values, np.float32) * np.expand_dims(np.asarray(weight.scale), summed)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_equals_that_of_the_dequantized_weight(name: str) -> None:
    """Channels of very different magnitude, one of them zero: each has its own scale."""
    equation, shape, summed = PRODUCTS[name]
    rng = np.random.default_rng(0)
    kept = [1 if axis in summed else size for axis, size in enumerate(shape)]
    magnitudes = 10.0 ** rng.uniform(-3, 1, kept)
    magnitudes.flat[0] = 0.0
    weight = (rng.normal(size=shape) * magnitudes).astype(np.float32)
    stored = quantize(jnp.asarray(weight), summed)
    real = dequantized(stored, summed)
    steps = np.abs(weight).max(axis=summed, keepdims=True) / 127
    assert (np.abs(real - weight) <= 0.5001 * steps).all()
    operand = rng.normal(size=(2, 5, *(shape[axis] for axis in summed))).astype(np.float32)
    np.testing.assert_allclose(
        product(equation, jnp.asarray(operand), stored), np.einsum(equation, operand, real), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("num_rows", [6, FEW_ROWS + 2])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_with_an_output_major_weight_equals_the_einsum(name: str, num_rows: int) -> None:
    """Few rows of activations are the right operand, many the left one."""
    equation, shape, summed = PRODUCTS[name]
    rng = np.random.default_rng(0)
    weight = rng.normal(size=shape).astype(np.float32)
    stored = OutputMajorWeight(jnp.moveaxis(weight, summed, range(-len(summed), 0)), len(summed))
    operand = rng.normal(size=(2, num_rows // 2, *(shape[axis] for axis in summed))).astype(np.float32)
    result = jax.jit(functools.partial(product, equation))(operand, stored)
    np.testing.assert_allclose(result, np.einsum(equation, operand, weight), rtol=1e-4, atol=1e-5)


def resharded(parameters: nnx.State, name: str, mesh_sizes: tuple[int, int, int], dtype: str = "float32") -> nnx.State:
    """The int8 copy of a tiny model's parameters on a mesh."""
    config, mesh = TINY[name], make_mesh(MeshConfig(*mesh_sizes), jax.devices()[: int(np.prod(mesh_sizes))])
    copy = abstract_copy(
        abstract_inference_parameters(config, mesh)[1], Layout(mesh, DECODE_RULES), jnp.dtype(dtype), "int8"
    )
    source = abstract_masters(config, Layout(mesh, TRAIN_RULES))[1]
    reshard = compile_reshard(source, jax.tree.map(with_format, copy))
    moved = reshard(jax.device_put(parameters, jax.tree.map(lambda leaf: leaf.sharding, source)))
    sizes = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(moved)]
    assert reshard.num_bytes == sum(sizes)
    return moved


def with_format(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=Format(None, leaf.sharding))


def test_the_reshard_rounds_on_a_mesh_as_on_one_device(layout: Layout) -> None:
    """Scales are maxima over all shards of a weight; norms stay in the compute type; the copy is sharded."""
    parameters = initialize_parameters(TINY["relative"], layout, seed=1)
    copies = [resharded(parameters, "relative", sizes, "bfloat16") for sizes in ((1, 1, 1), (1, 2, 2))]
    for one, split in zip(*map(jax.tree.leaves, copies), strict=True):
        assert one.dtype == split.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(split))
    by_name = dict(nnx.to_flat_state(copies[1]))
    assert by_name["groups", 0, "attention_norm"].get_value().dtype == jnp.bfloat16
    assert by_name["groups", 0, "key_bias"].get_value().dtype == jnp.bfloat16
    gate: Any = by_name["groups", 0, "gate"].get_value()
    assert (gate.values.dtype, gate.scale.dtype, gate.scale.shape) == (jnp.int8, jnp.float32, (1, 48))
    assert gate.values.addressable_shards[0].data.shape == (1, 32, 24)
    assert gate.scale.addressable_shards[0].data.shape == (1, 24)


@pytest.mark.parametrize("name", ["gemma2", "relative"])
def test_logits_equal_those_of_the_dequantized_model(name: str, layout: Layout) -> None:
    """Tied and untied embeddings, biases and query-key norms; every weight but those is int8."""
    config = TINY[name]
    parameters = initialize_parameters(config, layout, seed=2)
    copy = resharded(parameters, name, (1, 1, 1))

    def exact(weight: nnx.Variable) -> nnx.Variable:
        value = weight.get_value()
        if not isinstance(value, Int8Weight):
            return weight
        summed = tuple(range(1, 1 + weight.get_metadata()["num_summed"]))
        return weight.replace(jnp.asarray(dequantized(value, summed)))

    real = jax.tree.map(exact, copy, is_leaf=lambda node: isinstance(node, nnx.Variable))
    tokens = np.random.default_rng(0).integers(1, 64, (2, 9)).astype(np.int32)
    positions = np.broadcast_to(np.arange(9, dtype=np.int32), tokens.shape)
    logits = decode_logits(config, layout)
    np.testing.assert_allclose(logits(copy, tokens, positions), logits(real, tokens, positions), rtol=1e-4, atol=1e-4)
    original = jit_forward(config, layout)(parameters, tokens, positions, np.ones_like(tokens))[:, -1]
    error = np.abs(np.asarray(original) - np.asarray(logits(copy, tokens, positions))).max()
    assert 0 < error < 0.05 * np.abs(np.asarray(original)).max()


def decode_logits(config: Any, layout: Layout) -> Callable[..., jax.Array]:
    """Logits of the last token: a prefill of the others, then a decode step that reads their keys and values."""
    graph, _ = abstract_inference_parameters(config, layout.mesh)
    inner = dataclasses.replace(layout, rules=DECODE_RULES)

    @jax.jit
    def run(parameters: nnx.State, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        model = nnx.merge(graph, parameters)
        before = tokens[:, :-1]
        prompt = jnp.broadcast_to(jnp.arange(len(before), dtype=jnp.int32)[:, None], before.shape)
        flat = (x.reshape(-1) for x in (before, positions[:, :-1], prompt))
        layers = model.prefill(*flat, max_segment=before.shape[1], layout=inner)
        entries = [[x.reshape(len(x), *before.shape, *x.shape[2:]).swapaxes(2, 3) for x in pair] for pair in layers]
        caches = [[(KVCache(key, value), positions[:, :-1])] for key, value in entries]
        hidden, _ = model.decode(tokens[:, -1], positions[:, -1], caches, layout=inner)
        return model.logits(hidden)

    return run


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux only")
def test_a_tpu_reads_int8_weights_once_and_writes_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 tokens pass through stacked layers, as in a decode step: a converted copy would cost four times the bytes."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    sharding = SingleDeviceSharding(tpu_devices("v5e:2x2")[0])
    L, D, F = 6, 1024, 8192  # noqa: N806

    def array(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    up = Int8Weight(array((L, D, F), jnp.int8), array((L, F), jnp.float32))
    down = Int8Weight(array((L, F, D), jnp.int8), array((L, D), jnp.float32))

    def run(x: jax.Array, up: Int8Weight, down: Int8Weight) -> jax.Array:
        def layer(x: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
            return product("BF,FD->BD", product("BD,DF->BF", x, up[index]), down[index]), None

        return jax.lax.scan(layer, x, jnp.arange(L, dtype=jnp.int32))[0]

    moved = Module(str(jax.jit(run).lower(array((64, D), jnp.bfloat16), up, down).compile().as_text())).bytes()
    assert 1.0 < moved / (2 * L * D * F) < 1.1
