"""top_k, top_p and min_p: parity with transformers' logits processors, and draws from the kept tokens only."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from tpt_jax.config import MeshConfig
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.think.sampling import Filters, filter_logits, sample_tokens, trace_keys

ROWS, VOCAB = 16, 24
LOGPROB_ERROR = 6e-6  # the difference of two fp32 numbers of 16 and above, whose spacing is 1.9e-6
FILTERS = (
    Filters(top_k=5),
    Filters(top_k=VOCAB + 1),
    Filters(top_p=0.9),
    Filters(top_p=0.35),
    Filters(min_p=0.1),
    Filters(min_p=1.0),
    Filters(top_k=5, top_p=0.65),
    Filters(top_k=9, min_p=0.2),
    Filters(top_p=0.8, min_p=0.15),
    Filters(top_k=7, top_p=0.93, min_p=0.05),
)


@st.composite
def batch_logits(draw: st.DrawFn) -> np.ndarray:
    """Rows of random scale, rounded to a grid; on coarser grids more tokens tie."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    grid = draw(st.sampled_from([2.0, 0.5, 2.0**-10]))
    scales = random.uniform(0.2, 5.0, (ROWS, 1))
    return (np.round(random.normal(0.0, scales, (ROWS, VOCAB)) / grid) * grid).astype(np.float32)


@functools.partial(jax.jit, static_argnames="filters")
def run(logits: jax.Array, temperature: jax.Array, filters: Filters) -> tuple[jax.Array, ...]:
    """The filtered logits, the drawn tokens, their log-probabilities, and the entropies of the distributions."""
    rows = jnp.arange(ROWS, dtype=jnp.uint32)
    keys = trace_keys(jnp.uint32(0), jnp.uint32(0), rows, jnp.zeros_like(rows))
    drawn = sample_tokens(logits, keys, jnp.zeros(ROWS, jnp.int32), temperature, filters)
    return filter_logits(logits, temperature, filters), drawn.token, drawn.logprob, drawn.entropy


def results(logits: np.ndarray, temperature: float, filters: Filters) -> tuple[np.ndarray, ...]:
    return tuple(map(np.asarray, run(jnp.asarray(logits), jnp.float32(temperature), filters)))


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def transformers_scores(logits: np.ndarray, temperature: float, filters: Filters) -> tuple[np.ndarray, np.ndarray]:
    """transformers' filtered scores, and a mask of rows where rounding could decide which tokens are removed."""
    import torch
    from transformers.generation import logits_process

    scores: Any = logits_process.TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))  # type: ignore
    close = np.zeros(len(logits), bool)
    if filters.top_k is not None:
        scores = logits_process.TopKLogitsWarper(filters.top_k)(None, scores)  # type: ignore
    if filters.top_p < 1:
        tails = np.cumsum(np.sort(softmax(scores.numpy()), axis=-1), axis=-1)
        close |= (np.abs(tails - (1 - filters.top_p)) < 1e-5).any(axis=-1)
        scores = logits_process.TopPLogitsWarper(filters.top_p)(None, scores)  # type: ignore
    if filters.min_p > 0:
        probabilities = softmax(scores.numpy())
        relative = probabilities / probabilities.max(axis=-1, keepdims=True)
        close |= ((np.abs(relative - filters.min_p) < 1e-5) & (relative != 1)).any(axis=-1)
        scores = logits_process.MinPLogitsWarper(filters.min_p)(None, scores)  # type: ignore
    return scores.numpy(), close


@settings(deadline=None, max_examples=400)
@given(batch_logits(), st.sampled_from([0.3, 0.8, 1.0, 1.9]), st.sampled_from(FILTERS))
def test_filters_match_transformers(logits: np.ndarray, temperature: float, filters: Filters) -> None:
    """Same tokens, same probabilities; among tokens tied at top_p's cut, as many as transformers, lowest ids first."""
    expected, close = transformers_scores(logits, temperature, filters)
    filtered, tokens, logprobs, entropies = results(logits, temperature, filters)
    for row in np.flatnonzero(~close):
        kept, expected_kept = np.isfinite(filtered[row]), np.isfinite(expected[row])
        by_rank = np.lexsort((np.arange(VOCAB), -logits[row]))
        first_removed = by_rank[expected_kept.sum() :][:1]
        if not expected_kept.all() and logits[row, first_removed] != logits[row, expected_kept].min():
            np.testing.assert_array_equal(kept, expected_kept)
        np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(by_rank[: expected_kept.sum()]))
        ours, theirs = softmax(filtered[row] / temperature), softmax(expected[row])
        np.testing.assert_allclose(np.sort(ours), np.sort(theirs), rtol=1e-4)

    # Kept tokens keep their logits. The draw is one of them; it is the unfiltered draw if that one is kept.
    assert set(np.unique((filtered - logits)[np.isfinite(filtered)])) == {0.0}
    chosen = np.arange(ROWS), tokens
    assert np.isfinite(filtered[chosen]).all()
    _, unfiltered, *_ = results(logits, temperature, Filters())
    is_kept = np.isfinite(filtered[np.arange(ROWS), unfiltered])
    np.testing.assert_array_equal(tokens[is_kept], unfiltered[is_kept])
    np.testing.assert_allclose(logprobs, np.log(softmax(logits)[chosen]), rtol=1e-6, atol=LOGPROB_ERROR)
    probabilities = softmax(logits)
    by_hand = -(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum(axis=-1)
    np.testing.assert_allclose(entropies, by_hand, rtol=1e-5, atol=LOGPROB_ERROR)


@settings(deadline=None, max_examples=100)
@given(batch_logits(), st.sampled_from(FILTERS))
def test_temperature_zero_is_greedy(logits: np.ndarray, filters: Filters) -> None:
    """Takes the first argmax; a temperature close to 0 does not overflow a filter either."""
    _, tokens, logprobs, *_ = results(logits, 0.0, filters)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))
    np.testing.assert_allclose(logprobs, np.log(softmax(logits).max(axis=-1)), rtol=1e-6, atol=LOGPROB_ERROR)
    _, tokens, *_ = results(logits, 1e-42, filters)
    np.testing.assert_array_equal(logits[np.arange(ROWS), tokens], logits.max(axis=-1))


def test_ties_by_hand() -> None:
    """Twelve tokens tie for the last of five ranks: top_k keeps them all, top_p as many as it needs."""
    row = np.array([-9.0] * 6 + [0.0] * 6 + [3.0] * 2 + [0.0] * 6 + [1.0] * 2 + [-9.0] * 2, np.float32)
    # The masses are 2 e^3 (threes), 2 e (ones) and 12 (zeros), 57.6 in total. top_p may remove 1 - p of that: 4.03 is
    # four zeros, 11.52 is eleven, 20.16 is all zeros and the ones. One token is kept even if 1 - p rounds to 1.
    for top_p, zeros, ones, threes in (
        (1.0, 12, 2, 2),
        (0.93, 8, 2, 2),
        (0.8, 1, 2, 2),
        (0.65, 0, 0, 2),
        (1e-9, 0, 0, 1),
    ):
        filtered, *_ = results(np.tile(row, (ROWS, 1)), 1.0, Filters(top_k=5, top_p=top_p))
        kept = [np.flatnonzero(row == value)[:count] for value, count in ((0, zeros), (1, ones), (3, threes))]
        np.testing.assert_array_equal(np.flatnonzero(np.isfinite(filtered[0])), np.sort(np.concatenate(kept)))


def test_draws_follow_the_filtered_softmax() -> None:
    """Chi-square test on 20,000 draws; the bound is the 99.9% point for 5 degrees of freedom."""
    logits, count, temperature = np.linspace(-1.0, 2.0, 10).astype(np.float32), 20_000, 0.7
    keys = trace_keys(jnp.uint32(0), jnp.uint32(0), jnp.arange(count, dtype=jnp.uint32), jnp.zeros(count, jnp.uint32))
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, 10))
    draw = jax.jit(sample_tokens, static_argnames="filters")
    filters = Filters(top_k=8, top_p=0.97, min_p=0.08)
    tokens = draw(rows, keys, jnp.zeros(count, jnp.int32), jnp.float32(temperature), filters).token
    observed = np.bincount(np.asarray(tokens), minlength=10)
    # A logit step of 1/3 is a factor of exp(-10/21) = 0.621 in probability. Of the eight tokens that top_k keeps, the
    # six likeliest have 0.963, so top_p keeps the seventh too; min_p removes it: it is 0.057 times as likely as the
    # first.
    assert (observed[:4] == 0).all()
    expected = np.exp(logits[4:] / temperature)
    expected *= count / expected.sum()
    assert ((observed[4:] - expected) ** 2 / expected).sum() < 20.52


def test_filters_do_not_depend_on_the_mesh() -> None:
    """Sorting, counting and summing over a vocabulary that is split over devices."""
    logits = np.random.default_rng(0).integers(-6, 6, (ROWS, VOCAB)).astype(np.float32)
    filters = Filters(top_k=7, top_p=0.93, min_p=0.05)
    sharding = NamedSharding(make_mesh(MeshConfig(2, 2, 2)), PartitionSpec(("data", "fsdp"), "tensor"))
    sharded = run(jax.device_put(logits, sharding), jnp.float32(0.8), filters)
    for ours, unsharded in zip(sharded, results(logits, 0.8, filters), strict=True):
        np.testing.assert_allclose(np.asarray(ours), unsharded, rtol=1e-6)


@pytest.mark.parametrize(
    ("filters", "costs"),
    [
        (Filters(), set()),
        (Filters(top_k=VOCAB), set()),
        (Filters(min_p=0.1), set()),
        (Filters(top_k=5, min_p=0.1), {"top_k"}),
        (Filters(top_k=5, top_p=0.9), {"top_k", "cumsum"}),
        (Filters(top_p=0.9), {"sort", "cumsum"}),
    ],
)
def test_unused_filters_cost_nothing(filters: Filters, costs: set[str]) -> None:
    program = jax.make_jaxpr(filter_logits, static_argnums=2)(jnp.zeros((ROWS, VOCAB)), jnp.float32(1), filters)
    assert set(re.findall(r" (sort|top_k|cumsum)\[", str(program))) == costs
    is_noop = filters.top_p == 1 and filters.min_p == 0 and filters.top_k in (None, VOCAB)
    assert bool(program.eqns) != is_noop  # a no-op compiles to no operation at all
