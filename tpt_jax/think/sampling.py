"""Choosing the next token. A choice depends on (seed, round, question, sample, position), nothing else."""

import hashlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32


def question_number(question_id: str) -> int:
    """A 32-bit number for a question's id, the same on every machine."""
    return int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:4], "big")


def trace_keys(
    seed: UInt32[Array, ""],
    round_index: UInt32[Array, ""],
    questions: UInt32[Array, " B"],
    samples: UInt32[Array, " B"],
) -> Key[Array, " B"]:
    """One random key for each trace."""
    root = jax.random.fold_in(jax.random.key(seed), round_index)

    def of(question: jax.Array, sample: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(root, question), sample)

    return jax.vmap(of)(questions, samples)


def sample_tokens(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    positions: Int[Array, " B"],
    temperature: Float[Array, ""],
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Draws a token for each row from softmax(logits / temperature); temperature 0 takes the likeliest.

    Returns:
      The tokens, and their log-probabilities at temperature 1.
    """
    position_keys = jax.vmap(jax.random.fold_in)(keys, positions)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:], jnp.float32))(position_keys)
    # The Gumbel trick with the temperature on the noise's side: it needs no division, and 0 is greedy.
    tokens = jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)
