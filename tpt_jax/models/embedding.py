"""Embedding lookup in a table sharded over the mesh."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from tpt_jax.models.decoding_weights import DecodingWeight, Int8Weight, OutputMajorWeight
from tpt_jax.runtime.sharding import Layout


def embedding_lookup(
    table: DecodingWeight, tokens: Int[Array, "B T"], layout: Layout, dtype: jnp.dtype
) -> Float[Array, "B T D"]:
    """Embeddings of the tokens; ids outside the vocabulary are clipped to the last row.

    A table sharded over its columns is never gathered. Each device looks up, in its own columns, the tokens of every
    device in its column group; an all-to-all then returns full rows to the device that asked. This moves B T D values
    instead of V D, and accumulates the table's gradient in the table's own sharding and dtype: a frequent token's
    gradient is a sum of many terms.

    Args:
      dtype: dtype of the result.
    """
    columns, batch = layout.rules["embed"], layout.rules["batch"]
    if isinstance(table, Int8Weight):  # a decoding parameter, so not sharded over its columns
        rows = table.values.at[tokens].get(mode="clip").astype(jnp.float32)
        return (rows * table.scale.at[tokens].get(mode="clip")[..., None]).astype(dtype)
    if isinstance(table, OutputMajorWeight):
        table = table.values
    if not columns:
        return table.at[tokens].get(mode="clip").astype(dtype)
    rows = layout.rules["vocab"]

    def on_device(table: jax.Array, tokens: jax.Array) -> jax.Array:
        group_tokens = jax.lax.all_gather(tokens, columns, axis=0, tiled=True)
        first_row = jax.lax.axis_index(rows) * len(table)
        is_local = (group_tokens >= first_row) & (group_tokens < first_row + len(table))
        embeddings = table.at[group_tokens - first_row].get(mode="clip").astype(dtype)
        embeddings = jax.lax.psum(jnp.where(is_local[..., None], embeddings, 0), rows)
        return jax.lax.all_to_all(embeddings, columns, split_axis=0, concat_axis=2, tiled=True)

    return jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=(P(rows, columns), P(batch, None)),
        out_specs=P(batch, None, None),
        check_vma=False,
    )(table, jnp.clip(tokens, 0, len(table) - 1))
