"""What the benchmarks share: a model by name, lengths like those of real traces, the speed of a matrix product."""

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from flax import nnx

    from tpt_jax.models.architecture import ModelConfig
    from tpt_jax.runtime.sharding import Layout


def load_model(name: str, layout: "Layout") -> "tuple[ModelConfig, nnx.State]":
    """A model's folder, or a published size with random weights."""
    from tpt_jax.checkpoints.model import ModelFolder
    from tpt_jax.models.architecture import PUBLISHED
    from tpt_jax.models.huggingface import initialize_parameters

    if name in PUBLISHED:
        return PUBLISHED[name], initialize_parameters(PUBLISHED[name], layout, seed=0)
    folder = ModelFolder.open(name)
    return folder.config, folder.load(layout)


def long_tailed(rng: "np.random.Generator", count: int, mean: int, largest: int) -> "np.ndarray":
    """Lengths of about this mean, the longest several times the mean, as reasoning traces have."""
    import numpy as np

    spread = 0.75
    drawn = rng.lognormal(math.log(mean) - spread**2 / 2, spread, count)
    return np.clip(drawn, 1, largest).astype(int)


def product_flops(dtype: str) -> float:
    """Flops a second of one device on a large matrix product and nothing else: what a model can at best come near."""
    import jax
    import jax.numpy as jnp

    size, repeats = (2048, 4) if jax.default_backend() == "cpu" else (8192, 32)

    @jax.jit
    def products(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, repeats, lambda _, x: (x @ y) * jnp.asarray(1 / size, dtype), x)

    x = jnp.ones((size, size), dtype)
    products(x, x).block_until_ready()
    started = time.perf_counter()
    products(x, x).block_until_ready()
    return 2 * size**3 * repeats / (time.perf_counter() - started)
