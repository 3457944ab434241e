"""The output projection and the softmax cross-entropy as one function: [tokens, vocabulary] scores never exist whole.

Two ways to the same sum, which differ in what they save:

    memory  The vocabulary in pieces, twice: once for the softmax's denominators and once for the gradients, with the
            scores computed anew (as in Wijmans et al., "Cut Your Losses", arXiv 2411.09009). Four products of tokens x
            embed x vocabulary. A piece of the table is gathered where it is used, and its gradient goes back at once
            to the devices that own it.
    flops   The tokens in pieces, once: the gradients are taken along with the loss (as in Liger Kernel, arXiv
            2410.10989). Three products, but the table is gathered whole, and its gradient is summed whole in fp32.

Letters: R tokens of one device, V its part of the vocabulary, or a piece of that, C its part of the embed dimension D.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from tpt_jax.models.attention import softcap
from tpt_jax.runtime.sharding import Layout
from tpt_jax.train.loss import TokenLoss

Saves = Literal["memory", "flops"]

SCORES_AT_ONCE = 2**26  # on a device, in fp32: 256 MiB
NO_SCORE = -1e9  # of rows that only fill up a piece: no probability is left, and the cap's slope stays finite
LANES = 128  # of a TPU's vector registers: pieces of a vocabulary are multiples of it


@dataclasses.dataclass(frozen=True)
class _Options:
    layout: Layout
    cap: float | None
    scores_at_once: int

    @property
    def batch(self) -> tuple[str, ...]:
        """The mesh axes over which tokens are split."""
        return self.layout.rules["batch"]

    @property
    def columns(self) -> tuple[str, ...]:
        """Those over which the table's columns are split. Devices along the other batch axes hold copies."""
        return self.layout.rules["embed"]

    @property
    def rows(self) -> tuple[str, ...]:
        """Those over which the vocabulary is split."""
        return self.layout.rules["vocab"]


def linear_cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    layout: Layout,
    cap: float | None,
    token_loss: TokenLoss,
    saves: Saves,
    scores_at_once: int = SCORES_AT_ONCE,
) -> Float[Array, ""]:
    """Weighted sum of the tokens' losses: a sum, so that batches of unequal counts add up exactly.

    Args:
      table: the output projection in its own type; products are taken in the type of `hidden`, sums in fp32.
      cap: scores become cap * tanh(scores / cap); None for no cap.
      token_loss: from negative log-likelihood to loss.
      saves: what to save.
      scores_at_once: at most so many scores exist at a time on a device.
    """
    options = _Options(layout, cap, scores_at_once)
    if saves == "flops":
        return _sum_with_gradients(hidden, table, targets, weights, token_loss, options)
    return (token_loss(_negative_log_likelihoods(hidden, table, targets, options)) * weights).sum()


# Saving memory: the vocabulary in pieces, twice.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _negative_log_likelihoods(
    hidden: Float[Array, "B T D"], table: Float[Array, "V D"], targets: Int[Array, "B T"], options: _Options
) -> Float[Array, "B T"]:
    return _forward(hidden, table, targets, options)[0]


def _forward(hidden: jax.Array, table: jax.Array, targets: jax.Array, options: _Options) -> tuple[jax.Array, tuple]:
    def on_one_device(
        hidden: Float[Array, "R D"], table: Float[Array, "V C"], targets: Int[Array, " R"]
    ) -> tuple[jax.Array, jax.Array]:
        pieces = _Pieces(table, len(hidden), options)

        def add_piece(carry: tuple[jax.Array, jax.Array, jax.Array], index: jax.Array) -> tuple[tuple, None]:
            top, total, chosen = carry
            scores, is_target = pieces.scores(index, hidden, targets)[1:]
            new_top = jnp.maximum(top, scores.max(axis=1))
            total = total * jnp.exp(top - new_top) + jnp.exp(scores - new_top[:, None]).sum(axis=1)
            # A masked sum rather than a gather: its gradient needs no scatter.
            return (new_top, total, chosen + jnp.where(is_target, scores, 0.0).sum(axis=1)), None

        zeros = jnp.zeros(len(hidden), jnp.float32)
        (top, total, chosen), _ = jax.lax.scan(add_piece, (zeros + NO_SCORE, zeros, zeros), pieces.indices)
        highest = jax.lax.pmax(top, options.rows)
        total = jax.lax.psum(total * jnp.exp(top - highest), options.rows)
        log_total = highest + jnp.log(total)
        return log_total - jax.lax.psum(chosen, options.rows), log_total

    nll, log_total = _on_each_device(on_one_device, options, "token token", hidden, table, targets)
    return nll, (hidden, table, targets, log_total)


def _backward(options: _Options, saved: tuple, cotangent: Float[Array, "B T"]) -> tuple[jax.Array, jax.Array, None]:
    def on_one_device(
        hidden: Float[Array, "R D"],
        table: Float[Array, "V C"],
        targets: Int[Array, " R"],
        log_total: Float[Array, " R"],
        slope: Float[Array, " R"],
    ) -> tuple[jax.Array, jax.Array]:
        pieces = _Pieces(table, len(hidden), options)

        def add_piece(to_hidden: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
            piece, scores, is_target = pieces.scores(index, hidden, targets)
            probabilities = jnp.exp(scores - log_total[:, None])
            to_scores = _to_scores(scores, probabilities, is_target, slope, options.cap).astype(hidden.dtype)
            to_hidden = to_hidden + _product("RV,VD->RD", to_scores, piece)
            to_piece = _product("RV,RD->VD", to_scores, hidden).astype(hidden.dtype)
            return to_hidden, _to_owners(to_piece, options).astype(table.dtype)

        zeros = jnp.zeros(hidden.shape, jnp.float32)
        to_hidden, to_table = jax.lax.scan(add_piece, zeros, pieces.indices)
        to_table = to_table.reshape(-1, table.shape[1])[: len(table)]
        return jax.lax.psum(to_hidden, options.rows).astype(hidden.dtype), to_table

    return *_on_each_device(on_one_device, options, "hidden table", *saved, cotangent), None


_negative_log_likelihoods.defvjp(_forward, _backward)


class _Pieces:
    """The part of a table that a device has the rows of, in equal pieces, each gathered when it is asked for."""

    def __init__(self, table: Float[Array, "V C"], num_tokens: int, options: _Options):
        self._options = options
        self._num_rows = len(table)
        count = -(-num_tokens * len(table) // options.scores_at_once)
        self._size = -(-len(table) // count)
        if count > 1:
            self._size = -(-self._size // LANES) * LANES
        self._padding = count * self._size - len(table)
        self._table = jnp.pad(table, ((0, self._padding), (0, 0))) if self._padding else table
        self.indices = jnp.arange(count, dtype=jnp.int32)

    def scores(
        self, index: Int[Array, ""], hidden: Float[Array, "R D"], targets: Int[Array, " R"]
    ) -> tuple[Float[Array, "V D"], Float[Array, "R V"], jax.Array]:
        """A piece, its scores, and where the targets are among them."""
        rows = jax.lax.dynamic_slice_in_dim(self._table, index * self._size, self._size)
        piece = jax.lax.all_gather(rows.astype(hidden.dtype), self._options.columns, axis=1, tiled=True)
        scores = softcap(_product("RD,VD->RV", hidden, piece), self._options.cap)
        row = index * self._size + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        is_target = row == (targets - _first_row(self._num_rows, self._options))[:, None]
        if self._padding:
            is_real = row < self._num_rows
            scores, is_target = jnp.where(is_real, scores, NO_SCORE), is_target & is_real
        return piece, scores, is_target


# Saving flops: the tokens in pieces, once.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _sum_with_gradients(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    token_loss: TokenLoss,
    options: _Options,
) -> Float[Array, ""]:
    return _sum_forward(hidden, table, targets, weights, token_loss, options)[0]


def _sum_forward(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    token_loss: TokenLoss,
    options: _Options,
) -> tuple[jax.Array, tuple]:
    def on_one_device(
        hidden: Float[Array, "R D"], table: Float[Array, "V C"], targets: Int[Array, " R"], weights: Float[Array, " R"]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        whole = jax.lax.all_gather(table.astype(hidden.dtype), options.columns, axis=1, tiled=True)
        targets = targets - _first_row(len(table), options)

        def add_piece(carry: tuple[jax.Array, jax.Array], piece: tuple) -> tuple[tuple, jax.Array]:
            total, to_table = carry
            hidden, targets, weights = piece
            scores = softcap(_product("RD,VD->RV", hidden, whole), options.cap)
            is_target = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1) == targets[:, None]
            top = jax.lax.pmax(scores.max(axis=1), options.rows)
            exponentials = jnp.exp(scores - top[:, None])
            denominator = jax.lax.psum(exponentials.sum(axis=1), options.rows)
            chosen = jax.lax.psum(jnp.where(is_target, scores, 0.0).sum(axis=1), options.rows)
            losses, pull_back = jax.vjp(token_loss, top + jnp.log(denominator) - chosen)
            (slope,) = pull_back(weights)
            probabilities = exponentials / denominator[:, None]
            to_scores = _to_scores(scores, probabilities, is_target, slope, options.cap).astype(hidden.dtype)
            to_table = to_table + _product("RV,RD->VD", to_scores, hidden)
            return (total + (losses * weights).sum(), to_table), _product("RV,VD->RD", to_scores, whole)

        count = -(-len(hidden) * len(table) // options.scores_at_once)
        padding = -len(hidden) % count  # tokens of weight 0

        def in_pieces(x: jax.Array) -> jax.Array:
            padded = jnp.pad(x, ((0, padding), *((0, 0) for _ in x.shape[1:])))
            return padded.reshape(count, -1, *x.shape[1:])

        start = (jnp.float32(0), jnp.zeros(whole.shape, jnp.float32))
        (total, to_table), to_hidden = jax.lax.scan(
            add_piece, start, jax.tree.map(in_pieces, (hidden, targets, weights))
        )
        to_hidden = to_hidden.reshape(-1, hidden.shape[1])[: len(hidden)]
        to_hidden = jax.lax.psum(to_hidden, options.rows).astype(hidden.dtype)
        return jax.lax.psum(total, options.batch), to_hidden, _to_owners(to_table, options).astype(table.dtype)

    arrays = (hidden, table, targets, weights)
    total, *gradients = _on_each_device(on_one_device, options, "sum hidden table", *arrays)
    return total, tuple(gradients)


def _sum_backward(
    token_loss: TokenLoss, options: _Options, gradients: tuple[jax.Array, jax.Array], cotangent: Float[Array, ""]
) -> tuple[jax.Array, jax.Array, None, None]:
    to_hidden, to_table = gradients
    return to_hidden * cotangent.astype(to_hidden.dtype), to_table * cotangent.astype(to_table.dtype), None, None


_sum_with_gradients.defvjp(_sum_forward, _sum_backward)


# What both do.


def _product(letters: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(letters, left, right, preferred_element_type=jnp.float32)


def _to_scores(
    scores: Float[Array, "R V"],
    probabilities: Float[Array, "R V"],
    is_target: jax.Array,
    slope: Float[Array, " R"],
    cap: float | None,
) -> Float[Array, "R V"]:
    """The gradient of the scores before their cap; slope is that of each token's negative log-likelihood."""
    to_scores = slope[:, None] * jnp.where(is_target, probabilities - 1, probabilities)
    return to_scores if cap is None else to_scores * (1 - (scores / cap) ** 2)


def _first_row(num_rows: int, options: _Options) -> Int[Array, ""]:
    """The token whose row is the first of this device's."""
    return jax.lax.axis_index(options.rows) * num_rows


def _to_owners(to_table: Float[Array, "V D"], options: _Options) -> Float[Array, "V C"]:
    """The sum over all tokens, on each device the columns that it owns."""
    to_table = jax.lax.psum_scatter(to_table, options.columns, scatter_dimension=1, tiled=True)
    return jax.lax.psum(to_table, tuple(axis for axis in options.batch if axis not in options.columns))


def _on_each_device(function: Any, options: _Options, results: str, *arrays: jax.Array) -> Any:
    """Runs on each device's part of hidden states, table and arrays of one value a token, the tokens in one dimension.

    Args:
      results: what comes back: hidden, table, token or sum.
    """
    specs = {
        "hidden": P(options.batch, None, None),
        "table": P(options.rows, options.columns),
        "token": P(options.batch, None),
        "sum": P(),
    }
    length = arrays[0].shape[1]
    kinds = ["hidden", "table", *("token" for _ in arrays[2:])]
    result_kinds = results.split()

    def run(*parts: jax.Array) -> tuple[jax.Array, ...]:
        rows = len(parts[0])
        flat = [
            part if kind == "table" else part.reshape(-1, *part.shape[2:])
            for kind, part in zip(kinds, parts, strict=True)
        ]
        return tuple(
            made.reshape(rows, length, *made.shape[1:]) if kind in ("hidden", "token") else made
            for kind, made in zip(result_kinds, function(*flat), strict=True)
        )

    return jax.shard_map(
        run,
        mesh=options.layout.mesh,
        in_specs=tuple(specs[kind] for kind in kinds),
        out_specs=tuple(specs[kind] for kind in result_kinds),
        check_vma=False,
    )(*arrays)
