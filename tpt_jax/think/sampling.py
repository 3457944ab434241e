"""Next-token sampling. A draw depends only on the logits and (seed, round, question, sample, position)."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

LANES = 128  # of a TPU's vector registers


@dataclasses.dataclass(frozen=True)
class Filters:
    """Truncation of the next-token distribution; compiled into the program, unlike the temperature.

    Applied in the order of transformers' generate, each to the tokens that the previous filter kept:

        temperature 1, probabilities   0.50  0.20  0.15  0.10  0.05
        top_k 4                        0.53  0.21  0.16  0.11   -      renormalized over four tokens
        top_p 0.8                      0.59  0.24  0.18   -     -      0.53 + 0.21 < 0.8 <= 0.53 + 0.21 + 0.16
        min_p 0.35                     0.71  0.29   -     -     -      0.18 < 0.35 * 0.59

    Attributes:
      top_k: keeps the k most likely tokens (Fan et al., arXiv 1805.04833); None for no limit.
      top_p: keeps the smallest set of most likely tokens with total probability at least p (Holtzman et al., arXiv
        1904.09751); 1 for no limit.
      min_p: keeps tokens at least p times as likely as the most likely one (Nguyen et al., arXiv 2407.01082); 0 for no
        limit.
    """

    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0


def question_hash(question_id: str) -> int:
    """A 32-bit hash of a question's id, the same on every machine."""
    return int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:4], "big")


def trace_keys(
    seed: UInt32[Array, ""],
    round_index: UInt32[Array, ""],
    questions: UInt32[Array, " B"],
    samples: UInt32[Array, " B"],
) -> Key[Array, " B"]:
    """One random key per trace; `questions` are hashes of question ids."""
    round_key = jax.random.fold_in(jax.random.key(seed), round_index)

    def trace_key(question: jax.Array, sample: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(round_key, question), sample)

    return jax.vmap(trace_key)(questions, samples)


def filter_logits(logits: Float[Array, "B V"], temperature: Float[Array, ""], filters: Filters) -> Float[Array, "B V"]:
    """The logits, not divided by the temperature, with -inf for removed tokens.

    Keeps the tokens that transformers' logits processors keep given logits / temperature, always including the most
    likely one. With equal logits, top_k keeps every token tied with the k-th, min_p treats ties alike, and top_p keeps
    only as many tied tokens as it needs. transformers picks those by an unstable sort; we keep the lowest ids, so the
    token argmax would take is always kept. Ties are decided on the logits; transformers compares after the division by
    the temperature, which can round neighbouring floats to the same value.

    Temperature 0 is the limit: all probability on the most likely tokens.
    """
    top_k = filters.top_k if filters.top_k is not None and filters.top_k < logits.shape[-1] else None
    filtered = logits
    if filters.top_p < 1:
        filtered = jnp.where(_nucleus(logits, temperature, top_k, filters.top_p), filtered, -jnp.inf)
    elif top_k is not None:
        values, _ = jax.lax.top_k(logits, top_k)
        filtered = jnp.where(logits >= values[:, -1:], filtered, -jnp.inf)
    if filters.min_p > 0:  # a ratio of probabilities, unaffected by what top_k and top_p removed
        relative = _relative_probabilities(logits, logits.max(axis=-1, keepdims=True), temperature)
        filtered = jnp.where(relative >= filters.min_p, filtered, -jnp.inf)
    return filtered


def _relative_probabilities(
    logits: Float[Array, "B K"], largest: Float[Array, "B 1"], temperature: Float[Array, ""]
) -> Float[Array, "B K"]:
    """Probabilities relative to the most likely token's; at temperature 0, 1 for the most likely tokens and 0 else."""
    # Subtract before dividing: no inf - inf or 0 / 0, however small the temperature.
    return jnp.exp((logits - largest) / jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny))


def _nucleus(
    logits: Float[Array, "B V"], temperature: Float[Array, ""], top_k: int | None, top_p: float
) -> Bool[Array, "B V"]:
    """The tokens kept by top_k followed by top_p."""
    # `values` lists K logits in descending order, K = top_k or V. Of the tokens top_k keeps, only ties with the K-th
    # are not listed.
    if top_k is None:
        values = jnp.sort(logits, axis=-1, descending=True, stable=False)
    else:
        values, _ = jax.lax.top_k(logits, top_k)
    masses = _relative_probabilities(values, values[:, :1], temperature)
    last = values[:, -1:]
    num_unlisted = _count(logits == last) - _count(values == last)  # 0 if K = V
    unlisted_mass = num_unlisted.astype(jnp.float32) * masses[:, -1:]

    # Remove a token if it and all less likely ones weigh at most 1 - p. Summed from the small end, as in transformers.
    tail_masses = unlisted_mass + jax.lax.cumsum(masses, axis=1, reverse=True)
    removable_mass = (1 - top_p) * tail_masses[:, :1]
    num_listed_kept = jnp.maximum(_count(tail_masses > removable_mass), 1)
    num_unlisted_removed = jnp.minimum(jnp.floor(removable_mass / masses[:, -1:]), num_unlisted.astype(jnp.float32))
    num_kept = num_listed_kept + num_unlisted - num_unlisted_removed.astype(jnp.int32)

    # Back to vocabulary order without a scatter or the sort's permutation.
    lowest_kept = jnp.take_along_axis(values, num_listed_kept - 1, axis=-1)
    more_likely, ties = logits > lowest_kept, logits == lowest_kept
    rank_among_ties = jnp.cumsum(ties, axis=-1, dtype=jnp.int32)  # from 1, by token id
    return more_likely | (ties & (rank_among_ties <= num_kept - _count(more_likely)))


def _count(mask: Bool[Array, "B K"]) -> Int[Array, "B 1"]:
    return mask.sum(axis=-1, keepdims=True, dtype=jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """The tokens drawn in one step, each with its log-probability and the entropy of its distribution, in nats.

    Both are those of the model itself: at temperature 1, without filters.
    """

    token: Int[Array, " B"]
    logprob: Float[Array, " B"]
    entropy: Float[Array, " B"]


def sample_tokens(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    positions: Int[Array, " B"],
    temperature: Float[Array, ""],
    filters: Filters,
) -> Drawn:
    """Draws one token per row from the filtered softmax(logits / temperature); temperature 0 takes the argmax."""

    def draw(logits: jax.Array, keys: jax.Array, positions: jax.Array, temperature: jax.Array) -> Drawn:
        return _sample(logits, keys, positions, temperature, filters)

    def draw_on_cpu(logits: jax.Array, keys: jax.Array, positions: jax.Array, temperature: jax.Array) -> Drawn:
        def draw_row(row: tuple[jax.Array, jax.Array, jax.Array]) -> Drawn:
            logits, key, position = (x[None] for x in row)
            return jax.tree.map(lambda x: x[0], draw(logits, key, position, temperature))

        # A few rows at once, which stay in the processor's cache from one pass over the vocabulary to the next.
        return jax.lax.map(draw_row, (logits, keys, positions), batch_size=2)

    return jax.lax.platform_dependent(logits, keys, positions, temperature, cpu=draw_on_cpu, default=draw)


def _sample(
    logits: jax.Array, keys: jax.Array, positions: jax.Array, temperature: jax.Array, filters: Filters
) -> Drawn:
    most_likely = jnp.argmax(logits, axis=-1).astype(jnp.int32)  # no filter removes it
    largest = jnp.take_along_axis(logits, most_likely[:, None], axis=-1)
    position_keys = jax.vmap(jax.random.fold_in)(keys, positions)
    drawn = _draw(filter_logits(logits, temperature, filters), largest, position_keys, temperature)
    tokens = jnp.where(temperature > 0, drawn, most_likely)
    relative = logits - largest
    masses = jnp.exp(relative)
    total = masses.sum(axis=-1)  # both sums in one pass over the vocabulary
    weighted = jnp.where(masses > 0, masses * relative, 0.0).sum(axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1) - largest
    return Drawn(tokens, chosen[:, 0] - jnp.log(total), jnp.log(total) - weighted / total)


def _draw(
    logits: Float[Array, "B V"], largest: Float[Array, "B 1"], keys: Key[Array, " B"], temperature: Float[Array, ""]
) -> Int[Array, " B"]:
    """Draws from softmax(logits / temperature) by the Gumbel-max trick, with two draws in place of one.

    The vocabulary is laid out as a grid, row by row. A column is drawn by the mass of its tokens, then one of them.
    This takes as many random numbers as the grid has rows and columns; one draw would take as many as there are tokens.
    """

    def scores(logits: jax.Array) -> jax.Array:
        # Subtract before dividing: no inf - inf, however small the temperature.
        return (logits - largest) / jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny)

    num_rows = _grid_rows(logits.shape[-1])
    padding = -logits.shape[-1] % num_rows
    padded = jnp.pad(logits, ((0, 0), (0, padding)), constant_values=-jnp.inf)
    masses = jnp.exp(scores(padded)).reshape(len(logits), num_rows, -1).sum(axis=1)
    num_columns = masses.shape[-1]
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (num_columns + num_rows,), jnp.float32))(keys)
    column = jnp.argmax(jnp.log(masses) + noise[:, :num_columns], axis=-1).astype(jnp.int32)
    in_column = jnp.arange(num_rows, dtype=jnp.int32)[None] * num_columns + column[:, None]
    column_scores = scores(jnp.take_along_axis(padded, in_column, axis=-1))
    row = jnp.argmax(column_scores + noise[:, num_columns:], axis=-1)
    return jnp.take_along_axis(in_column, row[:, None], axis=-1)[:, 0]


def _grid_rows(vocab_size: int) -> int:
    """Rows of the grid: a multiple of 16, so that devices which share the vocabulary hold whole rows.

    If columns are a multiple of a TPU's vector lanes, the grid takes no copy of the logits.
    """
    sixteenth = -(-vocab_size // 16)
    return 16 * max(
        (count for count in range(1, 33) if sixteenth % count == 0),
        key=lambda count: (sixteenth // count % LANES == 0, count),
    )
