"""Flash attention kernels in interpret mode against plain attention: outputs and gradients, with every option."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from tpt_jax.config import MeshConfig
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.self_attention import Kernel, choose_kernel, self_attention
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout

ROWS, LENGTH, HEADS, HEAD_DIM = 2, 256, 4, 32
CAP = 3.0  # below the scores used here, so that ignoring the cap changes the result


@pytest.fixture(autouse=True)
def implicit_promotion() -> Iterator[None]:
    """The kernels rely on implicit dtype and rank promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def interpret_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs Tokamax's GPU kernels in interpret mode, without a GPU."""
    from jax.experimental import pallas as pl
    from tokamax._src.ops.attention import pallas_triton, pallas_triton_vjp

    original_call, original_id = pl.pallas_call, pl.program_id

    def interpreted_call(kernel: Callable[..., None], *args: Any, grid_spec: pl.GridSpec, **options: Any) -> Any:
        def with_ids(*refs: Any) -> None:
            # The interpreter supports program_id outside of loops only; the kernel calls it inside one.
            ids = [original_id(axis) for axis in range(len(grid_spec.grid))]

            def program_id(axis: int) -> jax.Array:
                if axis >= len(ids):
                    raise ValueError(axis)
                return ids[axis]

            monkeypatch.setattr(pl, "program_id", program_id)
            kernel(*refs)

        return original_call(with_ids, *args, grid_spec=grid_spec, **options, interpret=True)

    monkeypatch.setattr(pl, "pallas_call", interpreted_call)
    for kernel in (pallas_triton.PallasTritonFlashAttention, pallas_triton_vjp.PallasTritonFlashAttentionVjp):
        monkeypatch.setattr(kernel, "supported_on", lambda *_: True)


def inputs(num_kv_heads: int) -> tuple[jax.Array, ...]:
    """Query, key, value and packed segments; the second row ends in padding."""
    random = np.random.default_rng(0)
    shapes = [(ROWS, LENGTH, heads, HEAD_DIM) for heads in (HEADS, num_kv_heads, num_kv_heads)]
    query, key, value = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes)
    segments = np.zeros((ROWS, LENGTH), np.int32)
    segments[0] = np.repeat([1, 2, 3], [100, 30, 126])
    segments[1, :200] = np.repeat([1, 2], [150, 50])
    return 2 * query, key, value, jnp.asarray(segments)


def results(kernel: Kernel, window: int | None, config: ModelConfig, layout: Layout) -> dict[str, np.ndarray]:
    """Attention output and gradients, with padding masked out."""
    query, key, value, segments = inputs(config.num_kv_heads)
    mask = (segments > 0)[..., None, None]

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        options: Any = {"window": window, "config": config, "layout": layout, "kernel": kernel}
        return jnp.where(mask, self_attention(query, key, value, segments, **options), 0.0)

    def loss(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return (jnp.sin(attend(query, key, value)) ** 2).sum()

    output = jax.jit(attend)(query, key, value)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(query, key, value)
    return {name: np.asarray(x) for name, x in zip(("out", "query", "key", "value"), (output, *gradients), strict=True)}


def model_config(num_kv_heads: int, cap: float | None) -> ModelConfig:
    shape = {"num_heads": HEADS, "num_kv_heads": num_kv_heads, "head_dim": HEAD_DIM, "attention_scale": 0.4}
    return dataclasses.replace(TINY["gemma2"], **shape, attention_softcap=cap)


def check(kernel: Kernel, window: int | None, config: ModelConfig, layout: Layout, one_device: Layout) -> None:
    expected, actual = results("xla", window, config, one_device), results(kernel, window, config, layout)
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(actual[name] / scale, value / scale, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("window", "cap"), [(None, CAP), (48, CAP), (None, None)])
def test_splash_matches_plain_attention(window: int | None, cap: float | None, layout: Layout) -> None:
    check("splash", window, model_config(2, cap), layout, layout)


@pytest.mark.parametrize("num_kv_heads", [2, 1])
def test_splash_matches_plain_attention_on_a_mesh(num_kv_heads: int, layout: Layout) -> None:
    """Two sequences over fsdp and four heads over tensor, with fewer key-value heads than tensor devices."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    check("splash", 48, model_config(num_kv_heads, CAP), Layout(mesh, TRAIN_RULES), layout)


@pytest.mark.filterwarnings("ignore:jax.experimental.pallas:DeprecationWarning")
@pytest.mark.usefixtures("interpret_triton")
@pytest.mark.parametrize(("window", "cap"), [(None, CAP), (48, CAP), (None, None), (48, None)])
def test_tokamax_matches_plain_attention(window: int | None, cap: float | None, layout: Layout) -> None:
    check("tokamax", window, model_config(2, cap), layout, layout)


def test_soft_cap_changes_the_output(layout: Layout) -> None:
    """Otherwise the comparisons above could not detect a kernel that ignores it."""
    with_cap, without = (results("xla", 48, model_config(2, cap), layout)["out"] for cap in (CAP, None))
    assert np.abs(with_cap - without).max() > 0.1


def test_kernel_choice(layout: Layout) -> None:
    def kernel_on(platform: str, length: int) -> Kernel:
        device = type("Device", (), {"platform": platform})()
        return choose_kernel(type("Mesh", (), {"devices": np.array([device])})(), length)  # pyright: ignore[reportArgumentType]

    assert kernel_on("tpu", 1024) == "splash"
    assert kernel_on("tpu", 160) == "xla"  # not a multiple of the block size
    assert kernel_on("gpu", 1024) == "tokamax"
    assert choose_kernel(layout.mesh, 1024) == "xla"
