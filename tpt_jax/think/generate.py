"""Prefill and decode of one batch, to be jitted: every prompt is prefilled once and its samples share that work."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from tpt_jax.models.transformer import Transformer
from tpt_jax.sharding import Layout
from tpt_jax.think.cache import KVCache, fan_out
from tpt_jax.think.sampling import sample_tokens, trace_keys


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """num_prompts x num_samples traces decode together."""

    num_prompts: int
    num_samples: int
    max_prompt_tokens: int
    max_new_tokens: int

    @property
    def num_traces(self) -> int:
        return self.num_prompts * self.num_samples


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Request:
    """A batch of prompts, and what their traces' randomness depends on."""

    prompts: Int[Array, "Q P"]  # left-padded
    prompt_lengths: Int[Array, " Q"]  # 0: the row is only there to fill the batch
    questions: UInt32[Array, " Q"]  # question_number of each
    seed: UInt32[Array, ""]
    round_index: UInt32[Array, ""]
    temperature: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Completions:
    """The traces of a batch; sample n of prompt q is row q * num_samples + n."""

    tokens: Int[Array, "B M"]  # stop token included where there is one; what follows it means nothing
    lengths: Int[Array, " B"]  # tokens that count, stop token included
    stopped: Bool[Array, " B"]  # False: cut at max_new_tokens
    logprobs: Float[Array, " B"]  # sum over the tokens that count, at temperature 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _DecodeState:
    """The carry of the decode loop."""

    cache: KVCache
    completions: Completions
    num_decoded: Int[Array, ""]  # tokens that every live trace has, at least 1
    newest: Int[Array, " B"]  # the last token of each trace, not yet in the cache


def generate(
    parameters: nnx.State,
    request: Request,
    *,
    graph: nnx.GraphDef[Transformer],
    shape: BatchShape,
    stop_ids: tuple[int, ...],
    layout: Layout,
) -> Completions:
    """Samples num_samples completions of each prompt, until all have stopped or have max_new_tokens.

    Args:
      parameters: in the type to compute in, laid out for decoding.
    """
    model = nnx.merge(graph, parameters)
    keys = trace_keys(
        request.seed,
        request.round_index,
        jnp.repeat(request.questions, shape.num_samples),
        jnp.tile(jnp.arange(shape.num_samples, dtype=jnp.uint32), shape.num_prompts),
    )
    hidden, cache = _prefill(model, request, shape, layout)
    lengths = jnp.repeat(request.prompt_lengths, shape.num_samples)
    tokens, logprobs = sample_tokens(model.logits(hidden), keys, lengths, request.temperature)
    stopped = _is_stop(tokens, stop_ids) | (lengths == 0)
    state = _DecodeState(
        cache=cache,
        completions=Completions(
            tokens=jnp.zeros((shape.num_traces, shape.max_new_tokens), jnp.int32).at[:, 0].set(tokens),
            lengths=jnp.ones_like(lengths),
            stopped=stopped,
            logprobs=logprobs,
        ),
        num_decoded=jnp.int32(1),
        newest=tokens,
    )

    def some_go_on(state: _DecodeState) -> Bool[Array, ""]:
        return (state.num_decoded < shape.max_new_tokens) & ~state.completions.stopped.all()

    def step(state: _DecodeState) -> _DecodeState:
        return _decode_step(model, state, keys, lengths, request.temperature, shape, stop_ids, layout)

    return jax.lax.while_loop(some_go_on, step, state).completions


def _prefill(
    model: Transformer, request: Request, shape: BatchShape, layout: Layout
) -> tuple[Float[Array, "B D"], KVCache]:
    """The hidden state that predicts each trace's first token, and the cache that its decoding starts from."""
    length = shape.max_prompt_tokens
    offsets = jnp.arange(length, dtype=jnp.int32)[None] - (length - request.prompt_lengths[:, None])
    filled = offsets >= 0
    positions = jnp.maximum(offsets, 0)
    prompts = layout.constrain(request.prompts, "batch", None)
    hidden, prefilled = model.prefill(prompts, positions, filled.astype(jnp.int32), layout=layout)
    cache = fan_out(
        prefilled, positions, filled, num_samples=shape.num_samples, num_new=shape.max_new_tokens, layout=layout
    )
    return jnp.repeat(hidden[:, -1], shape.num_samples, axis=0), cache


def _decode_step(
    model: Transformer,
    state: _DecodeState,
    keys: Key[Array, " B"],
    prompt_lengths: Int[Array, " B"],
    temperature: Float[Array, ""],
    shape: BatchShape,
    stop_ids: tuple[int, ...],
    layout: Layout,
) -> _DecodeState:
    done = state.completions
    cache = state.cache
    positions = prompt_lengths + state.num_decoded - 1  # of the newest token
    hidden, key, value = model.decode(
        state.newest, positions, cache.key, cache.value, cache.positions, cache.filled, layout=layout
    )
    slot = shape.max_prompt_tokens + state.num_decoded - 1
    tokens, logprobs = sample_tokens(model.logits(hidden), keys, positions + 1, temperature)
    going = ~done.stopped
    return _DecodeState(
        cache=cache.write(slot, key, value, positions),
        completions=Completions(
            tokens=jax.lax.dynamic_update_slice_in_dim(done.tokens, tokens[:, None], state.num_decoded, axis=1),
            lengths=done.lengths + going.astype(jnp.int32),
            stopped=done.stopped | _is_stop(tokens, stop_ids),
            logprobs=done.logprobs + jnp.where(going, logprobs, 0.0),
        ),
        num_decoded=state.num_decoded + 1,
        newest=tokens,
    )


def _is_stop(tokens: Int[Array, " B"], stop_ids: tuple[int, ...]) -> Bool[Array, " B"]:
    return (tokens[:, None] == jnp.asarray(stop_ids, jnp.int32)[None]).any(axis=-1)
