"""Self-attention over whole sequences, packed or padded, with grouped queries, soft cap and sliding window.

One function with three kernels:

    xla      any device: materializes the scores of a block of queries and all keys before its end. The reference.
    splash   TPU: flash attention from jax.experimental.pallas.ops.tpu.splash_attention; skips blocks that the causal
             mask or the window leaves empty.
    tokamax  GPU: Triton flash attention from github.com/openxla/tokamax. It has no gradient with a soft cap; there
             tokamax's chunked XLA attention is used.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.attention import attend, segment_mask
from tpt_jax.runtime.sharding import Layout

Kernel = Literal["xla", "splash", "tokamax"]

SPLASH_RESIDUALS = "splash_residuals"  # checkpoint name of its residuals, for remat policies
SPLASH_BLOCK = 128  # sequence lengths must be multiples of this
SPLASH_LARGEST_BLOCK = 512
XLA_BLOCK = 128  # queries


def choose_kernel(mesh: Mesh, sequence_length: int) -> Kernel:
    """The fastest kernel for the mesh's devices and this sequence length."""
    platform = mesh.devices.flat[0].platform
    if platform == "tpu" and sequence_length % SPLASH_BLOCK == 0:
        return "splash"
    return "tokamax" if platform == "gpu" else "xla"


@jax.named_scope("attention")
def self_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    window: int | None,
    config: ModelConfig,
    layout: Layout,
    kernel: Kernel,
) -> Float[Array, "B T N H"]:
    """Causal attention within segments: each token sees itself and the earlier tokens of its segment.

    Args:
      segment_ids: a segment's tokens must be contiguous.
      window: maximum number of visible tokens, the token itself included; None for no limit.
      kernel: off TPU, splash runs in interpret mode, which is slow and meant for tests.
    """
    if kernel == "splash":
        return _splash(query, key, value, segment_ids, window, config, layout)
    if kernel == "tokamax":
        return _tokamax(query, key, value, segment_ids, window, config, layout)
    return _xla(query, key, value, segment_ids, window, config)


def _xla(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, window: int | None, config: ModelConfig
) -> jax.Array:
    """One block of queries after the other, each with the keys that the causal mask and the window may let it see."""
    mask, length = segment_mask(segment_ids, window), query.shape[1]
    blocks = []
    for start in range(0, length, XLA_BLOCK):
        queries = slice(start, start + XLA_BLOCK)
        keys = slice(0 if window is None else max(0, start - window + 1), min(length, start + XLA_BLOCK))
        blocks.append(attend(query[:, queries], key[:, keys], value[:, keys], mask[:, queries, keys], config))
    return jnp.concatenate(blocks, axis=1)


def _splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    window: int | None,
    config: ModelConfig,
    layout: Layout,
) -> jax.Array:
    length = query.shape[1]
    block = math.gcd(length, SPLASH_LARGEST_BLOCK)
    if block < SPLASH_BLOCK:
        raise ValueError(f"splash attention needs a sequence length ({length}) that is a multiple of {SPLASH_BLOCK}")
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )

    def on_device(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
        square = (length, length)
        mask = splash.CausalMask(square) if window is None else splash.LocalMask(square, (window - 1, 0), 0)
        run = splash.make_splash_mha(
            splash.MultiHeadMask([mask] * query.shape[2]),
            head_shards=1,
            q_seq_shards=1,
            block_sizes=sizes,
            attn_logits_soft_cap=config.attention_softcap,
            residual_checkpoint_name=SPLASH_RESIDUALS,
            interpret=layout.mesh.devices.flat[0].platform != "tpu",
        )
        query = (query.astype(jnp.float32) * config.attention_scale).astype(query.dtype)
        heads_first = [x.swapaxes(1, 2) for x in (query, key, value)]
        mixed: Any = jax.vmap(run)(*heads_first, splash.SegmentIds(segment_ids, segment_ids))
        return mixed.swapaxes(1, 2)

    return _per_device(on_device, query, key, value, segment_ids, layout)


def _tokamax(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    window: int | None,
    config: ModelConfig,
    layout: Layout,
) -> jax.Array:
    import tokamax
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # otherwise tokamax parses our command line as its own flags

    def on_device(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
        return tokamax.dot_product_attention(
            query,
            key,
            value,
            mask=(segment_ids[:, :, None] == segment_ids[:, None, :])[:, None],
            is_causal=True,
            scale=config.attention_scale,
            local_window_size=None if window is None else (window - 1, 0),
            logits_soft_cap=config.attention_softcap,
            implementation="triton" if config.attention_softcap is None else "xla_chunked",
        )

    return _per_device(on_device, query, key, value, segment_ids, layout)


def _per_device(
    attention: Any,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    layout: Layout,
) -> Float[Array, "B T N H"]:
    """Calls a kernel, which knows nothing of the mesh, on each device's own sequences and heads."""
    ways, num_heads, num_kv_heads = layout.ways(layout.rules["heads"]), query.shape[2], key.shape[2]
    if num_kv_heads % ways:  # repeat key-value heads so that each device holds exactly those of its own queries
        copies = ways // num_kv_heads if ways % num_kv_heads == 0 else num_heads // num_kv_heads
        key, value = jnp.repeat(key, copies, axis=2), jnp.repeat(value, copies, axis=2)
    by_head = P(layout.rules["batch"], None, layout.rules["heads"], None)
    return jax.shard_map(
        attention,
        mesh=layout.mesh,
        in_specs=(by_head, by_head, by_head, P(layout.rules["batch"], None)),
        out_specs=by_head,
        check_vma=False,
    )(query, key, value, segment_ids)
