"""Looking tokens up in a table that is split over the mesh."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from tpt_jax.runtime.sharding import Layout


def look_up(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], layout: Layout, dtype: jnp.dtype
) -> Float[Array, "B T D"]:
    """The rows of the tokens; tokens beyond the vocabulary get its last row.

    A table split over its columns is not gathered: each device looks up the tokens of all the devices that hold the
    other columns, and these send each other what is theirs. That moves B T D numbers instead of V D, and the gradient
    of the table is made in its own layout and type: a frequent token's is a sum of many.

    Args:
      dtype: of the result.
    """
    columns, batch = layout.rules["embed"], layout.rules["batch"]
    if not columns:
        return table.at[tokens].get(mode="clip").astype(dtype)
    rows = layout.rules["vocab"]

    def on_one_device(table: jax.Array, tokens: jax.Array) -> jax.Array:
        everyones = jax.lax.all_gather(tokens, columns, axis=0, tiled=True)
        first = jax.lax.axis_index(rows) * len(table)
        own = (everyones >= first) & (everyones < first + len(table))
        found = table.at[everyones - first].get(mode="clip").astype(dtype)
        found = jax.lax.psum(jnp.where(own[..., None], found, 0), rows)
        return jax.lax.all_to_all(found, columns, split_axis=0, concat_axis=2, tiled=True)

    return jax.shard_map(
        on_one_device,
        mesh=layout.mesh,
        in_specs=(P(rows, columns), P(batch, None)),
        out_specs=P(batch, None, None),
        check_vma=False,
    )(table, jnp.clip(tokens, 0, len(table) - 1))
