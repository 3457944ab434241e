"""Shared by the benchmarks: models, synthetic trace lengths, and the speed of a matrix product."""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.published import PUBLISHED
from tpt_jax.models.transformer import initialize_parameters
from tpt_jax.runtime.sharding import Layout


def load_or_initialize(name: str, layout: Layout) -> tuple[ModelConfig, nnx.State]:
    """Loads a model folder, or initializes a published architecture with random weights."""
    if name in PUBLISHED:
        return PUBLISHED[name], initialize_parameters(PUBLISHED[name], layout, seed=0)
    folder = ModelFolder.open(name)
    return folder.config, folder.load(layout)


def long_tailed(rng: np.random.Generator, count: int, mean: int, largest: int) -> np.ndarray:
    """Lognormal lengths, clipped to 1..largest: as with reasoning traces, the longest are several times the mean."""
    sigma = 0.75
    lengths = rng.lognormal(math.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(lengths, 1, largest).astype(int)


def matmul_flops(dtype: str) -> float:
    """Flops per second of one device in a large matrix product: an upper bound for a model."""
    size, repeats = (2048, 4) if jax.default_backend() == "cpu" else (8192, 32)

    @jax.jit
    def products(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, repeats, lambda _, x: (x @ y) * jnp.asarray(1 / size, dtype), x)

    x = jnp.ones((size, size), dtype)
    products(x, x).block_until_ready()
    started = time.perf_counter()
    products(x, x).block_until_ready()
    return 2 * size**3 * repeats / (time.perf_counter() - started)
