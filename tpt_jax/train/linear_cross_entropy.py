"""Output projection and softmax cross-entropy in one function; the full [tokens, vocabulary] logits never exist.

Over the axes that split both tokens and the table's columns (fsdp), devices must exchange one or the other. Two
algorithms compute the same sum:

    exchanges="table"   Splits the vocabulary into chunks and visits them twice: once for the softmax denominators, once
                        for the gradients, recomputing the logits (Wijmans et al., "Cut Your Losses", arXiv 2411.09009).
                        Four products of tokens x embed x vocabulary. Each chunk of the table is gathered when needed,
                        and its gradient is reduce-scattered at once.
    exchanges="tokens"  Each device takes its share of the vocabulary's rows instead of columns. Splits the tokens into
                        chunks, gathers each, and visits it once, computing gradients together with the loss (Liger
                        Kernel, arXiv 2410.10989). Three products; the gradients of hidden states and table, as large as
                        their shards, wait for the backward pass.

Dimension letters: R tokens on one device, V vocabulary rows of one device or of one chunk, D embed, C one device's
shard of D.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from tpt_jax.models.attention import softcap
from tpt_jax.runtime.sharding import Layout
from tpt_jax.train.loss import TokenLoss

Exchanges = Literal["table", "tokens"]

MAX_LOGITS = 2**26  # per device; 256 MiB in fp32
PADDING_LOGIT = -1e9  # for padding rows of a chunk: probability 0, yet the soft cap's derivative stays finite
LANES = 128  # of a TPU's vector registers; vocabulary chunks are multiples of it


@dataclasses.dataclass(frozen=True)
class _Options:
    layout: Layout
    cap: float | None
    max_logits: int

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """Mesh axes that split the tokens."""
        return self.layout.rules["batch"]

    @property
    def embed_axes(self) -> tuple[str, ...]:
        """Mesh axes that split the table's columns. The table is replicated over the other batch axes."""
        return self.layout.rules["embed"]

    @property
    def other_batch_axes(self) -> tuple[str, ...]:
        """Mesh axes that split the tokens but not the table."""
        return tuple(axis for axis in self.batch_axes if axis not in self.embed_axes)

    @property
    def vocab_axes(self) -> tuple[str, ...]:
        """Mesh axes that split the table's rows."""
        return self.layout.rules["vocab"]


@jax.named_scope("loss")
def linear_cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    layout: Layout,
    cap: float | None,
    token_loss: TokenLoss,
    exchanges: Exchanges,
    max_logits: int = MAX_LOGITS,
) -> Float[Array, ""]:
    """Weighted sum of token losses. A sum, not a mean: micro-batches with different token counts add up exactly.

    Args:
      table: output projection in its own dtype. Products are computed in the dtype of `hidden`, summed in fp32.
      cap: logits become cap * tanh(logits / cap); None for no soft cap.
      token_loss: maps negative log-likelihoods to losses.
      exchanges: the algorithm; see the module docstring.
      max_logits: upper bound on the logits that exist at once on one device.
    """
    options = _Options(layout, cap, max_logits)
    if exchanges == "tokens":
        return _sum_with_gradients(hidden, table, targets, weights, token_loss, options)
    return (token_loss(_negative_log_likelihoods(hidden, table, targets, options)) * weights).sum()


def smaller_exchange(num_tokens: int, vocab_size: int, layout: Layout) -> Exchanges:
    """What to exchange: tokens, unless more of them would be gathered than a device has rows of the table.

    Args:
      num_tokens: in a batch.
    """
    options = _Options(layout, None, MAX_LOGITS)
    gathered = num_tokens // layout.ways(options.other_batch_axes)
    return "tokens" if gathered <= vocab_size // layout.ways(options.vocab_axes) else "table"


# exchanges="table": vocabulary chunks, visited twice.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _negative_log_likelihoods(
    hidden: Float[Array, "B T D"], table: Float[Array, "V D"], targets: Int[Array, "B T"], options: _Options
) -> Float[Array, "B T"]:
    return _nll_forward(hidden, table, targets, options)[0]


def _nll_forward(hidden: jax.Array, table: jax.Array, targets: jax.Array, options: _Options) -> tuple[jax.Array, tuple]:
    def per_device(
        hidden: Float[Array, "R D"], table: Float[Array, "V C"], targets: Int[Array, " R"]
    ) -> tuple[jax.Array, jax.Array]:
        chunks = _VocabChunks(table, len(hidden), options)

        def add_chunk(carry: tuple[jax.Array, jax.Array, jax.Array], index: jax.Array) -> tuple[tuple, None]:
            max_logit, sum_exp, target_logit = carry
            _, logits, is_target = chunks.logits(index, hidden, targets)
            new_max = jnp.maximum(max_logit, logits.max(axis=1))
            sum_exp = sum_exp * jnp.exp(max_logit - new_max) + jnp.exp(logits - new_max[:, None]).sum(axis=1)
            # A masked sum rather than a gather, whose gradient would be a scatter.
            return (new_max, sum_exp, target_logit + jnp.where(is_target, logits, 0.0).sum(axis=1)), None

        zeros = jnp.zeros(len(hidden), jnp.float32)
        (local_max, sum_exp, target_logit), _ = jax.lax.scan(
            add_chunk, (zeros + PADDING_LOGIT, zeros, zeros), chunks.indices
        )
        global_max = jax.lax.pmax(local_max, options.vocab_axes)
        sum_exp = jax.lax.psum(sum_exp * jnp.exp(local_max - global_max), options.vocab_axes)
        log_normalizer = global_max + jnp.log(sum_exp)
        return log_normalizer - jax.lax.psum(target_logit, options.vocab_axes), log_normalizer

    nll, log_normalizer = _map_devices(per_device, options, "token token", hidden, table, targets)
    return nll, (hidden, table, targets, log_normalizer)


def _nll_backward(
    options: _Options, residuals: tuple, cotangent: Float[Array, "B T"]
) -> tuple[jax.Array, jax.Array, None]:
    def per_device(
        hidden: Float[Array, "R D"],
        table: Float[Array, "V C"],
        targets: Int[Array, " R"],
        log_normalizer: Float[Array, " R"],
        grad_nll: Float[Array, " R"],
    ) -> tuple[jax.Array, jax.Array]:
        chunks = _VocabChunks(table, len(hidden), options)

        def add_chunk(grad_hidden: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
            chunk, logits, is_target = chunks.logits(index, hidden, targets)
            probabilities = jnp.exp(logits - log_normalizer[:, None])
            grad_logits = _grad_logits(logits, probabilities, is_target, grad_nll, options.cap).astype(hidden.dtype)
            grad_hidden = grad_hidden + _product("RV,VD->RD", grad_logits, chunk)
            grad_chunk = _product("RV,RD->VD", grad_logits, hidden).astype(hidden.dtype)
            return grad_hidden, _reduce_scatter(grad_chunk, options).astype(table.dtype)

        zeros = jnp.zeros(hidden.shape, jnp.float32)
        grad_hidden, grad_chunks = jax.lax.scan(add_chunk, zeros, chunks.indices)
        grad_table = grad_chunks.reshape(-1, table.shape[1])[: len(table)]
        return jax.lax.psum(grad_hidden, options.vocab_axes).astype(hidden.dtype), grad_table

    return *_map_devices(per_device, options, "hidden table", *residuals, cotangent), None


_negative_log_likelihoods.defvjp(_nll_forward, _nll_backward)


class _VocabChunks:
    """One device's rows of the table in chunks of equal size; each chunk is gathered when its logits are computed."""

    def __init__(self, table: Float[Array, "V C"], num_tokens: int, options: _Options):
        self._options = options
        self._num_rows = len(table)
        count = -(-num_tokens * len(table) // options.max_logits)
        self._size = -(-len(table) // count)
        if count > 1:
            self._size = -(-self._size // LANES) * LANES
        self._padding = count * self._size - len(table)
        self._table = jnp.pad(table, ((0, self._padding), (0, 0))) if self._padding else table
        self.indices = jnp.arange(count, dtype=jnp.int32)

    def logits(
        self, index: Int[Array, ""], hidden: Float[Array, "R D"], targets: Int[Array, " R"]
    ) -> tuple[Float[Array, "V D"], Float[Array, "R V"], Bool[Array, "R V"]]:
        """A chunk of the table, its logits, and which of them are the targets' logits."""
        rows = jax.lax.dynamic_slice_in_dim(self._table, index * self._size, self._size)
        chunk = _gather(rows.astype(hidden.dtype), self._options, axis=1)
        logits = softcap(_product("RD,VD->RV", hidden, chunk), self._options.cap)
        row = index * self._size + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        is_target = row == (targets - _first_token(self._num_rows, self._options))[:, None]
        if self._padding:
            is_real = row < self._num_rows
            logits, is_target = jnp.where(is_real, logits, PADDING_LOGIT), is_target & is_real
        return chunk, logits, is_target


# exchanges="tokens": token chunks, visited once.


class _VocabRows:
    """One device's share of the rows of the table, all columns of them, taken from its columns of all rows."""

    def __init__(self, table: Float[Array, "V C"], dtype: jnp.dtype, options: _Options):
        self._options = options
        self._num_real = len(table)
        self._padding = -len(table) % options.layout.ways(options.embed_axes)
        padded = jnp.pad(table.astype(dtype), ((0, self._padding), (0, 0)))
        self.table = jax.lax.all_to_all(padded, options.embed_axes, split_axis=0, concat_axis=1, tiled=True)

    def logits(
        self, hidden: Float[Array, "R D"], targets: Int[Array, " R"]
    ) -> tuple[Float[Array, "R V"], Bool[Array, "R V"]]:
        """Logits of these rows, and which of them are the targets' logits."""
        logits = softcap(_product("RD,VD->RV", hidden, self.table), self._options.cap)
        row = jax.lax.axis_index(self._options.embed_axes) * len(self.table)
        row = row + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        is_target = row == (targets - _first_token(self._num_real, self._options))[:, None]
        if self._padding:
            is_real = row < self._num_real
            logits, is_target = jnp.where(is_real, logits, PADDING_LOGIT), is_target & is_real
        return logits, is_target

    def columns_of(self, gradient: Float[Array, "V D"]) -> Float[Array, "V C"]:
        """A gradient of these rows, summed over all tokens, as one of the device's columns of all rows."""
        gradient = jax.lax.psum(gradient, self._options.other_batch_axes)
        columns = jax.lax.all_to_all(gradient, self._options.embed_axes, split_axis=1, concat_axis=0, tiled=True)
        return columns[: self._num_real]


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
    def per_device(
        hidden: Float[Array, "R D"], table: Float[Array, "V C"], targets: Int[Array, " R"], weights: Float[Array, " R"]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        rows = _VocabRows(table, hidden.dtype, options)
        everywhere = (*options.vocab_axes, *options.embed_axes)
        count = -(-len(hidden) * options.layout.ways(options.embed_axes) * len(rows.table) // options.max_logits)
        padding = -len(hidden) % count  # tokens of weight 0

        def in_chunks(x: jax.Array) -> jax.Array:
            padded = jnp.pad(x, ((0, padding), *((0, 0) for _ in x.shape[1:])))
            return padded.reshape(count, -1, *x.shape[1:])

        def add_chunk(carry: tuple[jax.Array, jax.Array], chunk: tuple) -> tuple[tuple, jax.Array]:
            total, grad_table = carry
            hidden, targets, weights = jax.tree.map(lambda x: _gather(x, options, axis=0), chunk)
            logits, is_target = rows.logits(hidden, targets)
            max_logit = jax.lax.pmax(logits.max(axis=1), everywhere)
            exponentials = jnp.exp(logits - max_logit[:, None])
            target_logit = jnp.where(is_target, logits, 0.0).sum(axis=1)
            sum_exp, target_logit = jax.lax.psum((exponentials.sum(axis=1), target_logit), everywhere)
            losses, pull_back = jax.vjp(token_loss, max_logit + jnp.log(sum_exp) - target_logit)
            (grad_nll,) = pull_back(weights)
            probabilities = exponentials / sum_exp[:, None]
            grad_logits = _grad_logits(logits, probabilities, is_target, grad_nll, options.cap).astype(hidden.dtype)
            grad_table = grad_table + _product("RV,RD->VD", grad_logits, hidden)
            grad_hidden = _product("RV,VD->RD", grad_logits, rows.table)
            grad_hidden = jax.lax.psum_scatter(grad_hidden, options.embed_axes, scatter_dimension=0, tiled=True)
            return (total + (losses * weights).sum(), grad_table), grad_hidden

        zeros = (jnp.float32(0), jnp.zeros(rows.table.shape, jnp.float32))
        (total, grad_table), grad_chunks = jax.lax.scan(
            add_chunk, zeros, jax.tree.map(in_chunks, (hidden, targets, weights))
        )
        grad_hidden = grad_chunks.reshape(-1, hidden.shape[1])[: len(hidden)]
        grad_hidden = jax.lax.psum(grad_hidden, options.vocab_axes).astype(hidden.dtype)
        total = jax.lax.psum(total, options.other_batch_axes)
        return total, grad_hidden, rows.columns_of(grad_table).astype(table.dtype)

    arrays = (hidden, table, targets, weights)
    total, *gradients = _map_devices(per_device, options, "sum hidden table", *arrays)
    return total, tuple(gradients)


def _sum_backward(
    token_loss: TokenLoss, options: _Options, gradients: tuple[jax.Array, jax.Array], cotangent: Float[Array, ""]
) -> tuple[jax.Array, jax.Array, None, None]:
    grad_hidden, grad_table = (gradient * cotangent.astype(gradient.dtype) for gradient in gradients)
    return grad_hidden, grad_table, None, None


_sum_with_gradients.defvjp(_sum_forward, _sum_backward)


# Shared by both.


def _product(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


def _grad_logits(
    logits: Float[Array, "R V"],
    probabilities: Float[Array, "R V"],
    is_target: Bool[Array, "R V"],
    grad_nll: Float[Array, " R"],
    cap: float | None,
) -> Float[Array, "R V"]:
    """Gradient of the logits before the soft cap, from capped logits and the gradient of each token's NLL."""
    gradient = grad_nll[:, None] * jnp.where(is_target, probabilities - 1, probabilities)
    return gradient if cap is None else gradient * (1 - (logits / cap) ** 2)


def _first_token(num_rows: int, options: _Options) -> Int[Array, ""]:
    """Token id of this device's first vocabulary row."""
    return jax.lax.axis_index(options.vocab_axes) * num_rows


def _reduce_scatter(grad_table: Float[Array, "V D"], options: _Options) -> Float[Array, "V C"]:
    """Sums the table's gradient over all tokens; each device keeps its own columns."""
    grad_table = jax.lax.psum_scatter(grad_table, options.embed_axes, scatter_dimension=1, tiled=True)
    return jax.lax.psum(grad_table, options.other_batch_axes)


def _gather(shard: jax.Array, options: _Options, *, axis: int) -> jax.Array:
    """Joins the shards of the devices that split the table's columns."""
    return jax.lax.all_gather(shard, options.embed_axes, axis=axis, tiled=True)


def _map_devices(function: Any, options: _Options, results: str, *arrays: jax.Array) -> Any:
    """Calls a function on each device's shards, with the batch and sequence dimensions flattened into one of tokens.

    Args:
      results: kinds of the function's results, separated by spaces: hidden, table, token or sum.
      arrays: hidden states, table, then arrays with one value per token.
    """
    specs = {
        "hidden": P(options.batch_axes, None, None),
        "table": P(options.vocab_axes, options.embed_axes),
        "token": P(options.batch_axes, None),
        "sum": P(),
    }
    length = arrays[0].shape[1]
    array_kinds = ["hidden", "table", *("token" for _ in arrays[2:])]
    result_kinds = results.split()

    def on_shards(*shards: jax.Array) -> tuple[jax.Array, ...]:
        batch = len(shards[0])
        flat = [
            shard if kind == "table" else shard.reshape(-1, *shard.shape[2:])
            for kind, shard in zip(array_kinds, shards, strict=True)
        ]
        return tuple(
            result.reshape(batch, length, *result.shape[1:]) if kind in ("hidden", "token") else result
            for kind, result in zip(result_kinds, function(*flat), strict=True)
        )

    return jax.shard_map(
        on_shards,
        mesh=options.layout.mesh,
        in_specs=tuple(specs[kind] for kind in array_kinds),
        out_specs=tuple(specs[kind] for kind in result_kinds),
        check_vma=False,
    )(*arrays)
