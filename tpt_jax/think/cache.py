"""The key-value cache of a batch of sequences that decode in step."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tpt_jax.models.transformer import KeysAndValues
from tpt_jax.sharding import Layout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """What earlier tokens left, for B sequences of at most S tokens. Prompts stand left-padded, so that all sequences
    write their next token into the same slot: one contiguous update a step, in place."""

    key: Float[Array, "L B K S H"]
    value: Float[Array, "L B K S H"]
    positions: Int[Array, "B S"]  # of the token in each slot
    filled: Bool[Array, "B S"]  # whether the slot holds a token of the sequence

    def write(
        self,
        slot: Int[Array, ""],
        key: Float[Array, "L B K H"],
        value: Float[Array, "L B K H"],
        positions: Int[Array, " B"],
    ) -> "KVCache":
        """The same cache with one more token of every sequence in a slot."""
        return KVCache(
            key=jax.lax.dynamic_update_slice_in_dim(self.key, key[:, :, :, None], slot, axis=3),
            value=jax.lax.dynamic_update_slice_in_dim(self.value, value[:, :, :, None], slot, axis=3),
            positions=jax.lax.dynamic_update_slice_in_dim(self.positions, positions[:, None], slot, axis=1),
            filled=jax.lax.dynamic_update_slice_in_dim(
                self.filled, jnp.ones((positions.shape[0], 1), bool), slot, axis=1
            ),
        )


def fan_out(
    prefilled: KeysAndValues,
    positions: Int[Array, "Q P"],
    filled: Bool[Array, "Q P"],
    *,
    num_samples: int,
    num_new: int,
    layout: Layout,
) -> KVCache:
    """A cache in which every prompt stands num_samples times, with room for num_new tokens more.

    Args:
      prefilled: keys and values [L, Q, P, K, H] of Q prompts of padded length P.
      positions, filled: of the prompts' tokens.
    """

    def spread(x: Float[Array, "L Q P K H"]) -> Float[Array, "L B K S H"]:
        x = jnp.repeat(x.transpose(0, 1, 3, 2, 4), num_samples, axis=1)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, num_new), (0, 0)))
        return layout.constrain(x, None, "batch", "kv_heads", None, None)

    key, value = prefilled
    room = ((0, 0), (0, num_new))
    return KVCache(
        key=spread(key),
        value=spread(value),
        positions=jnp.pad(jnp.repeat(positions, num_samples, axis=0), room),
        filled=jnp.pad(jnp.repeat(filled, num_samples, axis=0), room),
    )
