"""The decoder as sampling runs it: prefill of prompts, and decode steps over read-only KV caches.

Shape letters as in attention.py. Computes in the parameters' dtype.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.attention import KVCache, attend, attend_cached
from tpt_jax.models.layers import Attend, Layers, rms_norm
from tpt_jax.models.transformer import Decoder
from tpt_jax.runtime.sharding import Layout

KeysAndValues = tuple[Float[Array, "L *T K H"], Float[Array, "L *T K H"]]


def num_layer_groups(config: ModelConfig, mesh: Mesh) -> int:
    """How many groups the layers form: group i of n has layers i, i + n, i + 2n, ..., whose arrays are stacked.

    A scan iteration runs one layer of each group, so all layers of a group must be alike. XLA's CPU backend copies
    every slice of a stacked array that a matrix product reads: there each layer is a group of its own.
    """
    return config.num_layers if mesh.devices.flat[0].platform == "cpu" else config.period


def group_sizes(config: ModelConfig, num_groups: int) -> list[int]:
    """Number of layers in each group."""
    return [len(range(index, config.num_layers, num_groups)) for index in range(num_groups)]


class InferenceTransformer(Decoder):
    """A decoder-only transformer whose layers are in groups; see num_layer_groups."""

    def __init__(self, config: ModelConfig, num_groups: int, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.groups = nnx.List([Layers(config, size, rngs) for size in group_sizes(config, num_groups)])

    def prefill(
        self,
        tokens: Int[Array, " T"],
        positions: Int[Array, " T"],
        segment_ids: Int[Array, " T"],
        *,
        max_segment: int,
        layout: Layout,
        prefix: Sequence[KVCache] | None = None,
    ) -> list[KeysAndValues]:
        """Keys and values of prompts that lie one after the other: one stacked pair for each group of layers.

        Args:
          tokens: T is a multiple of max_segment.
          positions: each token's position in its sequence, the shared prefix included.
          segment_ids: which prompt a token belongs to; no prompt has more than max_segment tokens.
          prefix: KV caches [L, K, P, H] of a prefix shared by all prompts, at positions 0 to P - 1, one for each group
            of layers.
        """
        # A token sees no further back than the block of max_segment tokens before its own.
        length = prefix[0].key.shape[2] if prefix else 0
        blocks = segment_ids.reshape(-1, max_segment)
        query_positions = positions.reshape(blocks.shape)
        prefix_positions = jnp.broadcast_to(jnp.arange(length, dtype=positions.dtype), (len(blocks), length))
        key_positions = jnp.concatenate([prefix_positions, _with_previous(query_positions)], axis=1)
        distance = query_positions[:, :, None] - key_positions[:, None, :]
        same_prompt = _with_previous(blocks, -1)[:, None] == blocks[:, :, None]
        sees_prefix = jnp.ones((*blocks.shape, length), bool)
        mask = jnp.concatenate([sees_prefix, same_prompt], axis=2) & (distance >= 0)

        def make_attend(group: int, iteration: jax.Array) -> Attend:
            window = self.config.windows[group]

            def attend_in_blocks(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
                query, key, value = (x.reshape(*blocks.shape, *x.shape[2:]) for x in (query, key, value))
                key, value = _with_previous(key), _with_previous(value)
                if prefix:
                    key = _prepend_prefix(prefix[group].key[iteration], key)
                    value = _prepend_prefix(prefix[group].value[iteration], value)
                near = mask if window is None else mask & (distance < window)
                return attend(query, key, value, near, self.config).reshape(1, len(tokens), *query.shape[2:])

            return attend_in_blocks

        x = self.embed(tokens[None], layout, self.dtype)
        entries = self._run_layers(x, positions[None], make_attend, layout=layout)[1]
        return [(key[:, 0], value[:, 0]) for key, value in entries]

    def _run_layers(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        make_attend: Callable[[int, Int[Array, ""]], Attend],
        *,
        layout: Layout,
    ) -> tuple[Float[Array, "B T D"], list[KeysAndValues]]:
        """Runs all layers, one of each group per scan iteration; also returns their keys and values.

        Args:
          make_attend: the attention of a group's layer in an iteration.
        """
        num_groups = len(self.groups)
        num_iterations, num_left = divmod(self.config.num_layers, num_groups)
        split = [nnx.split(group) for group in self.groups]

        def run(x: jax.Array, iteration: jax.Array, count: int = num_groups) -> tuple[jax.Array, list]:
            entries = []
            for group, (graph, weights) in enumerate(split[:count]):
                layer = nnx.merge(graph, jax.tree.map(lambda weight: weight[iteration], weights))
                x, key, value = layer.apply(x, positions, group, make_attend(group, iteration), layout)
                entries.append((key, value))
            return x, entries

        # Weights and caches are closed over and sliced per layer; as scan inputs, each layer's slice would be copied.
        x, stacked = jax.lax.scan(run, x, jnp.arange(num_iterations, dtype=jnp.int32))
        x, left = run(x, jnp.int32(num_iterations), num_left)
        return x, _append_left(stacked, left)

    def decode(
        self,
        tokens: Int[Array, " B"],
        positions: Int[Array, " B"],
        kv_caches: Sequence[Sequence[tuple[KVCache, Int[Array, "B S"]]]],
        *,
        layout: Layout,
    ) -> tuple[Float[Array, "B D"], list[KeysAndValues]]:
        """One decode step: processes the newest token of each sequence.

        Args:
          tokens, positions: the newest token of each sequence and its position.
          kv_caches: for each group of layers, one or more stacked read-only caches of the earlier tokens, such as a
            sequence's own and a shared prefix's. Each comes with the positions of its first S entries, in the order of
            `cache.in_row_order`, negative for an empty entry; entries beyond S are not read.

        Returns:
          The final hidden state and, for each group, the new keys and values for the caller to write.
        """

        def make_attend(group: int, iteration: jax.Array) -> Attend:
            window = self.config.windows[group]
            masked_caches = [
                (
                    _first_rows(cache, iteration, entries.shape[1] // cache.row_tokens(self.config)),
                    _sees(positions, entries, window),
                )
                for cache, entries in kv_caches[group]
            ]
            return lambda query, key, value: attend_cached(query, key, value, masked_caches, self.config)

        x = self.embed(tokens[:, None], layout, self.dtype)
        x, new_entries = self._run_layers(x, positions[:, None], make_attend, layout=layout)
        # The barrier puts the caller's writes after all reads: otherwise XLA copies caches to keep their old entries.
        x, new_entries = jax.lax.optimization_barrier((x, new_entries))
        hidden = rms_norm(x[:, 0], self.final_norm[...], self.config)
        return hidden, [(key[:, :, 0], value[:, :, 0]) for key, value in new_entries]


def _with_previous(blocks: jax.Array, before_first: int = 0) -> jax.Array:
    """Each block of a sequence [blocks, size, ...] preceded by the one before it: [blocks, 2 size, ...].

    A single block stays as it is.
    """
    if len(blocks) == 1:
        return blocks
    previous = jnp.concatenate([jnp.full_like(blocks[:1], before_first), blocks[:-1]])
    return jnp.concatenate([previous, blocks], axis=1)


def _prepend_prefix(prefix: Float[Array, "K P H"], entries: Float[Array, "B T K H"]) -> Float[Array, "B P+T K H"]:
    shape = (len(entries), prefix.shape[1], *entries.shape[2:])
    batched = jnp.broadcast_to(prefix.swapaxes(0, 1)[None], shape)
    return jnp.concatenate([batched.astype(entries.dtype), entries], axis=1)


def _first_rows(cache: KVCache, layer: Int[Array, ""], count: int) -> KVCache:
    """The first rows of one layer of a stacked cache; a single slice, so nothing else is read or copied."""

    def read(stacked: jax.Array | None, axis: int) -> Any:
        if stacked is None:
            return None
        shape = list(stacked.shape[1:])
        shape[axis] = count
        start = (layer, *(jnp.zeros_like(layer) for _ in shape))
        return jax.lax.dynamic_slice(stacked, start, (1, *shape))[0]

    return KVCache(read(cache.key, -2), read(cache.value, -2), read(cache.key_scale, -1), read(cache.value_scale, -1))


def _append_left(stacked: list, left: list) -> list:
    """Appends the keys and values of the layers left after the scan to those of their groups.

    Args:
      stacked: for each group, one row per iteration.
      left: for the first groups, one row each.
    """
    extended = [
        jax.tree.map(lambda rows, row: jnp.concatenate([rows, row[None]]), *pair)
        for pair in zip(stacked, left, strict=False)
    ]
    return extended + stacked[len(left) :]


def _sees(positions: Int[Array, " B"], entries: Int[Array, "B S"], window: int | None) -> Bool[Array, "B S"]:
    """Mask of the cache entries that a token at each position sees: earlier positions within the window.

    Args:
      entries: each entry's position, negative for an empty one.
    """
    distance = positions[:, None] - entries
    mask = (entries >= 0) & (distance > 0)
    return mask if window is None else mask & (distance < window)


def abstract_inference_parameters(
    config: ModelConfig, mesh: Mesh
) -> tuple[nnx.GraphDef[InferenceTransformer], nnx.State]:
    """The graph of the decoder for a mesh, and the shapes of its parameters, without allocating them."""
    num_groups = num_layer_groups(config, mesh)
    return nnx.split(nnx.eval_shape(lambda: InferenceTransformer(config, num_groups, rngs=nnx.Rngs(0))))
