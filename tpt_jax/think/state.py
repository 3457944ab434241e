"""The arrays that sampling keeps on the device, and the shapes its programs are compiled for.

Shapes are those of one data shard: B slots, Q questions, E prefills, T traces, M new tokens, P prompt tokens after the
shared prefix, C tokens in the pool of prompts. M' is M if per-token scores are kept, else 0.
"""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Float16, Int, UInt8, UInt32

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.attention import KVCache
from tpt_jax.models.decoding_weights import DecodingWeights
from tpt_jax.think import cache as kv_cache
from tpt_jax.think.cache import CacheType
from tpt_jax.think.sampling import Filters

FREE = -1  # Slots.trace of a slot without a trace


@dataclasses.dataclass(frozen=True)
class SlotShape:
    """The static shape of a sampling program; counts are per data shard.

    Attributes:
      auto_slots: num_slots is the most that traces could fill; as many are compiled as fit in memory and are of use.
      num_prefix_tokens: length of the prefix that all prompts share, prefilled once.
      max_prompt_tokens: longest prompt, prefix excluded.
      chunk_steps: decode steps per chunk; finished traces go to the host once per chunk.
      prefill_tokens: prompt tokens that a prefill batch aims at.
      num_stop_states: states of the automaton that finds stop strings; 0 for no stop strings.
      prefills_per_question: most requests for traces of one question; each has its own prefill.
      traces_per_prefill: fewest traces that usually share one.
      token_scores: keep each sampled token's log-probability and its distribution's entropy.
      tile: cache lengths are rounded up to a multiple of this.
      row_tokens: tokens that share a row of the KV cache; see KVCache.
      num_live_lengths: how many lengths of the KV cache a decode step chooses from.
    """

    num_slots: int
    num_questions: int
    num_traces: int
    num_prefix_tokens: int
    max_prompt_tokens: int
    max_new_tokens: int
    filters: Filters = dataclasses.field(default_factory=Filters)
    cache_type: CacheType = "compute"
    weights: DecodingWeights = "compute"
    auto_slots: bool = False
    chunk_steps: int = 32
    prefill_tokens: int = 512
    num_stop_states: int = 0
    prefills_per_question: int = 1
    traces_per_prefill: int = 1
    token_scores: bool = False
    tile: int = 1
    row_tokens: int = 1
    num_live_lengths: int = 4

    @property
    def cache_length(self) -> int:
        """Positions of one sequence, prefix excluded; the last sampled token is never fed back, so needs no entry."""
        return self._round_up(self.max_prompt_tokens + self.max_new_tokens - 1)

    @property
    def num_prefills(self) -> int:
        """Most prefills in one pass."""
        return self.num_questions * self.prefills_per_question

    @property
    def num_scored_tokens(self) -> int:
        return self.max_new_tokens if self.token_scores else 0

    @property
    def prefill_block(self) -> int:
        """Tokens of the smallest prefill batch, which holds the longest prompt."""
        return self._round_up(self.max_prompt_tokens)

    @property
    def prefill_batches(self) -> tuple[int, int]:
        """Tokens of a prefill batch: few, or many."""
        num_blocks = min(max(2, -(-self.prefill_tokens // self.prefill_block)), 8)
        return self.prefill_block, num_blocks * self.prefill_block

    @property
    def prefills_per_batch(self) -> int:
        """Most prompts in a prefill batch."""
        return min(self.num_prefills, 8 * (self.prefill_batches[1] // self.prefill_block))

    @property
    def pool_tokens(self) -> int:
        """Room for half of a longest prompt per prefill in the slots, and for two batches."""
        prompts = -(-self.num_slots // self.traces_per_prefill) * self.max_prompt_tokens // 2
        return self._round_up(prompts) + 2 * self.prefill_batches[1]

    @property
    def buffer_rows(self) -> int:
        """Most finished traces per chunk; if more finish, their slots wait for the next chunk."""
        return 2 * self.num_slots

    def bytes_per_slot(self, config: ModelConfig, itemsize: int) -> int:
        """Size of one slot's KV cache."""
        # int8 entries have an fp32 scale per head.
        entry_bytes = 1 + 4 / config.head_dim if self.cache_type == "int8" else itemsize
        entries = sum(kv_cache.layer_sizes(config, self.cache_length))
        return int(2 * entries * config.num_kv_heads * config.head_dim * entry_bytes)

    @property
    def live_lengths(self) -> tuple[int, ...]:
        """How many cache entries a decode step may read: it picks the shortest that covers the longest live trace."""
        part = self._round_up(-(-self.cache_length // self.num_live_lengths))
        return tuple(min(self.cache_length, part * (count + 1)) for count in range(self.num_live_lengths))

    def _round_up(self, length: int) -> int:
        return -(-length // self.tile) * self.tile


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """What does not change while a pass samples: all questions that may be asked, and how."""

    tokens: Int[Array, "Q P"]  # without the prefix, right-padded
    lengths: Int[Array, " Q"]  # without the prefix, at least 1
    question_hashes: UInt32[Array, " Q"]
    stop_table: UInt8[Array, "A V"]  # StopStrings.table, the same on every shard
    seed: UInt32[Array, ""]
    round_index: UInt32[Array, ""]
    temperature: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queue:
    """The traces requested so far, in the order in which they start. The host appends rows between chunks.

    Traces that share a prefill are adjacent.
    """

    prefill_questions: Int[Array, " E"]  # rows of Prompts
    trace_prefills: Int[Array, " T"]  # rows of `prefill_questions`, ascending
    trace_samples: UInt32[Array, " T"]  # sample indices
    trace_limits: Int[Array, " T"]  # new tokens, at most M
    is_cancelled: Bool[Array, " T"]  # ends at its next token, and is not needed
    num_prefills: Int[Array, " 1"]  # rows in use, of E
    num_traces: Int[Array, " 1"]  # rows in use, of T
    has_more: Bool[Array, " 1"]  # more rows are expected, so an idle slot is the host's fault


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """The decoding state carried from one chunk to the next."""

    caches: list[KVCache]  # one per group of layers: [L, B, K, R, W*H]
    pool: list[KVCache]  # prefilled prompts, one after the other: [L, 1, K, C + P, H]; used as a ring of C tokens
    prefix: list[KVCache]  # [L, K, S, H]; empty list if the prompts share no prefix
    num_prefilled: Int[Array, " 1"]
    pool_head: Int[Array, " 1"]  # the entry of the pool to write next
    prefill_starts: Int[Array, " E"]  # the entry of the pool where each prefill's prompt starts
    num_started: Int[Array, " 1"]  # traces
    trace: Int[Array, " B"]  # row of the queue, or FREE
    done: Bool[Array, " B"]  # finished, still to be moved to the host's buffer
    last_token: Int[Array, " B"]  # the next decode step's input
    position: Int[Array, " B"]  # of `last_token`, counted from the end of the prefix
    tokens: Int[Array, "B M"]  # sampled so far
    length: Int[Array, " B"]  # number of sampled tokens
    stopped: Bool[Array, " B"]  # the last sampled token is a stop token
    logprob: Float[Array, " B"]  # summed over the sampled tokens, at temperature 1
    entropy: Float[Array, " B"]  # of the next-token distributions at temperature 1, summed likewise, in nats
    token_logprobs: Float16[Array, "B M'"]
    token_entropies: Float16[Array, "B M'"]
    stop_state: UInt8[Array, " B"]  # row of the stop table


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Finished:
    """The result of one chunk: a buffer of F traces, the first `count` of them valid, and counters."""

    count: Int[Array, " 1"]
    trace: Int[Array, " F"]
    tokens: Int[Array, "F M"]
    length: Int[Array, " F"]  # stop token included
    stopped: Bool[Array, " F"]  # False: cut off at its limit, or at a stop string
    logprob: Float[Array, " F"]  # not finite if the model's logits were not
    entropy: Float[Array, " F"]
    token_logprobs: Float16[Array, "F M'"]
    token_entropies: Float16[Array, "F M'"]
    num_left: Int[Array, " 1"]  # requested traces still to be returned, summed over data shards by the compiled program
    num_started: Int[Array, " 1"]  # traces, since the pass began
    num_steps: Int[Array, " 1"]
    num_decoded: Int[Array, " 1"]  # tokens; num_steps x B if all slots were busy
    num_full_steps: Int[Array, " 1"]  # steps with traces waiting for a slot, or still to be requested
    num_full_decoded: Int[Array, " 1"]  # tokens decoded in those steps
