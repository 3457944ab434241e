"""top_k, top_p and min_p: what they leave is what transformers' processors leave, and only that is drawn."""

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
LOGPROB_ERROR = 6e-6  # a difference of two fp32 numbers of 16 and more, which lie 1.9e-6 apart
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
def logits_of_a_batch(draw: st.DrawFn) -> np.ndarray:
    """Rows of random scale; the coarser the grid that they are rounded to, the more of their tokens tie."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    grid = draw(st.sampled_from([2.0, 0.5, 2.0**-10]))
    scales = random.uniform(0.2, 5.0, (ROWS, 1))
    return (np.round(random.normal(0.0, scales, (ROWS, VOCAB)) / grid) * grid).astype(np.float32)


@functools.partial(jax.jit, static_argnames="filters")
def run(logits: jax.Array, temperature: jax.Array, filters: Filters) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The filtered logits, tokens drawn, and their log-probabilities."""
    rows = jnp.arange(ROWS, dtype=jnp.uint32)
    keys = trace_keys(jnp.uint32(0), jnp.uint32(0), rows, jnp.zeros_like(rows))
    drawn = sample_tokens(logits, keys, jnp.zeros(ROWS, jnp.int32), temperature, filters)
    return filter_logits(logits, temperature, filters), *drawn


def results(logits: np.ndarray, temperature: float, filters: Filters) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    filtered, tokens, logprobs = run(jnp.asarray(logits), jnp.float32(temperature), filters)
    return np.asarray(filtered), np.asarray(tokens), np.asarray(logprobs)


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def transformers_scores(logits: np.ndarray, temperature: float, filters: Filters) -> tuple[np.ndarray, np.ndarray]:
    """Scores after transformers' processors, and rows in which a rounding error could decide what they remove."""
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
@given(logits_of_a_batch(), st.sampled_from([0.3, 0.8, 1.0, 1.9]), st.sampled_from(FILTERS))
def test_what_is_left_is_what_transformers_leaves(logits: np.ndarray, temperature: float, filters: Filters) -> None:
    """The same tokens with the same probabilities; of tokens that tie where top_p cuts, as many, the lowest ids."""
    expected, close = transformers_scores(logits, temperature, filters)
    filtered, tokens, logprobs = results(logits, temperature, filters)
    for row in np.flatnonzero(~close):
        left, expected_left = np.isfinite(filtered[row]), np.isfinite(expected[row])
        by_rank = np.lexsort((np.arange(VOCAB), -logits[row]))
        first_gone = by_rank[expected_left.sum() :][:1]
        if not expected_left.all() and logits[row, first_gone] != logits[row, expected_left].min():
            np.testing.assert_array_equal(left, expected_left)
        np.testing.assert_array_equal(np.flatnonzero(left), np.sort(by_rank[: expected_left.sum()]))
        ours, theirs = softmax(filtered[row] / temperature), softmax(expected[row])
        np.testing.assert_allclose(np.sort(ours), np.sort(theirs), rtol=1e-4)

    # What is left has its logits as they were; one of it is drawn, the one drawn without filters where that is left.
    assert set(np.unique((filtered - logits)[np.isfinite(filtered)])) == {0.0}
    chosen = np.arange(ROWS), tokens
    assert np.isfinite(filtered[chosen]).all()
    _, unfiltered, _ = results(logits, temperature, Filters())
    stays = np.isfinite(filtered[np.arange(ROWS), unfiltered])
    np.testing.assert_array_equal(tokens[stays], unfiltered[stays])
    np.testing.assert_allclose(logprobs, np.log(softmax(logits)[chosen]), rtol=1e-6, atol=LOGPROB_ERROR)


@settings(deadline=None, max_examples=100)
@given(logits_of_a_batch(), st.sampled_from(FILTERS))
def test_temperature_zero_is_greedy(logits: np.ndarray, filters: Filters) -> None:
    """argmax, which of several largest takes the first; and no filter divides by a temperature that is almost 0."""
    _, tokens, logprobs = results(logits, 0.0, filters)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))
    np.testing.assert_allclose(logprobs, np.log(softmax(logits).max(axis=-1)), rtol=1e-6, atol=LOGPROB_ERROR)
    _, tokens, _ = results(logits, 1e-42, filters)
    np.testing.assert_array_equal(logits[np.arange(ROWS), tokens], logits.max(axis=-1))


def test_ties_by_hand() -> None:
    """Twelve tokens tie for the last of five places; top_k leaves them all, and top_p as many as it needs."""
    row = np.array([-9.0] * 6 + [0.0] * 6 + [3.0] * 2 + [0.0] * 6 + [1.0] * 2 + [-9.0] * 2, np.float32)
    # The masses are 2 e^3, 2 e and 12, in all 57.6. Of that 1 - p may go: 4.03 is four zeros, 11.52 is eleven of them,
    # 20.16 is all of them and the ones. One token stays even where 1 - p rounds to 1.
    for top_p, zeros, ones, threes in (
        (1.0, 12, 2, 2),
        (0.93, 8, 2, 2),
        (0.8, 1, 2, 2),
        (0.65, 0, 0, 2),
        (1e-9, 0, 0, 1),
    ):
        filtered, _, _ = results(np.tile(row, (ROWS, 1)), 1.0, Filters(top_k=5, top_p=top_p))
        left = [np.flatnonzero(row == value)[:count] for value, count in ((0, zeros), (1, ones), (3, threes))]
        np.testing.assert_array_equal(np.flatnonzero(np.isfinite(filtered[0])), np.sort(np.concatenate(left)))


def test_draws_follow_the_filtered_softmax() -> None:
    """Chi-square over 20,000 draws; the limit is the 99.9% point for 5 degrees of freedom."""
    logits, count, temperature = np.linspace(-1.0, 2.0, 10).astype(np.float32), 20_000, 0.7
    keys = trace_keys(jnp.uint32(0), jnp.uint32(0), jnp.arange(count, dtype=jnp.uint32), jnp.zeros(count, jnp.uint32))
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, 10))
    draw = jax.jit(sample_tokens, static_argnames="filters")
    filters = Filters(top_k=8, top_p=0.97, min_p=0.08)
    tokens, _ = draw(rows, keys, jnp.zeros(count, jnp.int32), jnp.float32(temperature), filters)
    observed = np.bincount(np.asarray(tokens), minlength=10)
    # A step of 1/3 is a factor of exp(-10/21) = 0.621 in probability: of the eight tokens of top_k the six likeliest
    # have 0.963 and the seventh is needed too; min_p then takes it, 0.057 times as likely as the first.
    assert (observed[:4] == 0).all()
    expected = np.exp(logits[4:] / temperature)
    expected *= count / expected.sum()
    assert ((observed[4:] - expected) ** 2 / expected).sum() < 20.52


def test_every_mesh_leaves_the_same() -> None:
    """Sorted, counted and summed over a vocabulary that is split over devices."""
    logits = np.random.default_rng(0).integers(-6, 6, (ROWS, VOCAB)).astype(np.float32)
    filters = Filters(top_k=7, top_p=0.93, min_p=0.05)
    spread = NamedSharding(make_mesh(MeshConfig(2, 2, 2)), PartitionSpec(("data", "fsdp"), "tensor"))
    split = run(jax.device_put(logits, spread), jnp.float32(0.8), filters)
    for ours, whole in zip(split, results(logits, 0.8, filters), strict=True):
        np.testing.assert_allclose(np.asarray(ours), whole, rtol=1e-6)


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
def test_a_filter_that_is_not_asked_for_costs_nothing(filters: Filters, costs: set[str]) -> None:
    program = jax.make_jaxpr(filter_logits, static_argnums=2)(jnp.zeros((ROWS, VOCAB)), jnp.float32(1), filters)
    assert set(re.findall(r" (sort|top_k|cumsum)\[", str(program))) == costs
    no_limit = filters.top_p == 1 and filters.min_p == 0 and filters.top_k in (None, VOCAB)
    assert bool(program.eqns) != no_limit  # without filters there is not one operation
