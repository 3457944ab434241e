"""Choosing the next token. A choice depends on (seed, round, question, sample, position), nothing else."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which tokens may be drawn at all; part of the compiled program, unlike the temperature.

    Applied in the order of transformers' generate, each to what the one before it has left:

        temperature 1, probabilities   0.50  0.20  0.15  0.10  0.05
        top_k 4                        0.53  0.21  0.16  0.11   -      of the four that are left
        top_p 0.8                      0.59  0.24  0.18   -     -      0.53 + 0.21 < 0.8 <= 0.53 + 0.21 + 0.16
        min_p 0.35                     0.71  0.29   -     -     -      0.18 < 0.35 * 0.59

    Attributes:
      top_k: only the k likeliest (Fan et al., arXiv 1805.04833); None for no limit.
      top_p: only the fewest likeliest whose probabilities reach p (Holtzman et al., arXiv 1904.09751); 1 for no limit.
      min_p: only tokens at least p times as likely as the likeliest (Nguyen et al., arXiv 2407.01082); 0 for no limit.
    """

    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0


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


def filter_logits(logits: Float[Array, "B V"], temperature: Float[Array, ""], filters: Filters) -> Float[Array, "B V"]:
    """The logits, not divided by the temperature, with -inf for the tokens that the filters remove.

    What stays is what transformers' logits processors leave of logits / temperature, at least the likeliest token.
    Tokens with equal logits: top_k keeps all that tie with the k-th, min_p treats them alike, and top_p keeps as many
    of them as it needs. Which of them, transformers leaves to an unstable sort; here it is those with the lowest ids,
    so that the one that argmax takes stays. Tokens tie here when their logits do; transformers compares after the
    division, which can round neighbouring floats to one.

    At temperature 0 the probabilities are the limit: all on the likeliest tokens.
    """
    top_k = filters.top_k if filters.top_k is not None and filters.top_k < logits.shape[-1] else None
    filtered = logits
    if filters.top_p < 1:
        filtered = jnp.where(_nucleus(logits, temperature, top_k, filters.top_p), filtered, -jnp.inf)
    elif top_k is not None:
        values, _ = jax.lax.top_k(logits, top_k)
        filtered = jnp.where(logits >= values[:, -1:], filtered, -jnp.inf)
    if filters.min_p > 0:  # a ratio of probabilities: what top_k and top_p have removed does not change it
        relative = _relative_probabilities(logits, logits.max(axis=-1, keepdims=True), temperature)
        filtered = jnp.where(relative >= filters.min_p, filtered, -jnp.inf)
    return filtered


def _relative_probabilities(
    logits: Float[Array, "B K"], largest: Float[Array, "B 1"], temperature: Float[Array, ""]
) -> Float[Array, "B K"]:
    """Probabilities over that of the likeliest token; at temperature 0, 1 for tokens as likely and 0 for all others."""
    # The difference is taken first, so that no quotient is inf - inf or 0 / 0 however small the temperature is.
    return jnp.exp((logits - largest) / jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny))


def _nucleus(
    logits: Float[Array, "B V"], temperature: Float[Array, ""], top_k: int | None, top_p: float
) -> Bool[Array, "B V"]:
    """Which tokens top_k, then top_p leave."""
    # From the likeliest down. K is top_k, or V: of what top_k leaves, only ties with its last one are not among them.
    if top_k is None:
        values = jnp.sort(logits, axis=-1, descending=True, stable=False)
    else:
        values, _ = jax.lax.top_k(logits, top_k)
    masses = _relative_probabilities(values, values[:, :1], temperature)
    last = values[:, -1:]
    num_unlisted = _count(logits == last) - _count(values == last)  # tokens that tie with the K-th beyond K; 0 for V
    unlisted_mass = num_unlisted.astype(jnp.float32) * masses[:, -1:]

    # A token goes when it and all less likely ones weigh at most 1 - p. Summed from the small end, as in transformers.
    masses_from_here = unlisted_mass + jax.lax.cumsum(masses, axis=1, reverse=True)
    may_go = (1 - top_p) * masses_from_here[:, :1]
    num_listed_kept = jnp.maximum(_count(masses_from_here > may_go), 1)
    num_unlisted_gone = jnp.minimum(jnp.floor(may_go / masses[:, -1:]), num_unlisted.astype(jnp.float32))
    num_kept = num_listed_kept + num_unlisted - num_unlisted_gone.astype(jnp.int32)

    # Back to the order of the vocabulary with neither a scatter nor the sort's permutation.
    lowest = jnp.take_along_axis(values, num_listed_kept - 1, axis=-1)
    more_likely, ties = logits > lowest, logits == lowest
    rank_among_ties = jnp.cumsum(ties, axis=-1, dtype=jnp.int32)  # from 1, in the order of ids
    return more_likely | (ties & (rank_among_ties <= num_kept - _count(more_likely)))


def _count(marked: Bool[Array, "B K"]) -> Int[Array, "B 1"]:
    return marked.sum(axis=-1, keepdims=True, dtype=jnp.int32)


def sample_tokens(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    positions: Int[Array, " B"],
    temperature: Float[Array, ""],
    filters: Filters,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Draws a token for each row from softmax(logits / temperature), filtered; temperature 0 takes the likeliest.

    A token's noise does not depend on the filters: where they leave the token that would be drawn without them, it is
    the one that is drawn.

    Returns:
      The tokens, and their log-probabilities at temperature 1 without filters.
    """
    position_keys = jax.vmap(jax.random.fold_in)(keys, positions)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:], jnp.float32))(position_keys)
    # The Gumbel trick with the temperature on the noise's side: it needs no division, and 0 is greedy.
    tokens = jnp.argmax(filter_logits(logits, temperature, filters) + temperature * noise, axis=-1).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)
