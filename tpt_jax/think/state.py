"""What sampling keeps on the device, and the shapes that it is compiled for.

The shapes here are those of one data shard: B slots, Q questions, T traces, R prompts in the pool, M new tokens.
"""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int, UInt32

from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.attention import KVCache
from tpt_jax.think import cache as kv_cache
from tpt_jax.think.cache import CacheType
from tpt_jax.think.sampling import Filters

FREE = -1  # the trace of a slot that has none


@dataclasses.dataclass(frozen=True)
class SlotShape:
    """What a sampling program is compiled for; numbers are those of one data shard.

    Attributes:
      num_prefix_tokens: at the start of all prompts, prefilled once.
      max_prompt_tokens: of what follows the prefix.
      chunk_steps: decoding steps between two buffers of finished traces for the host.
      prefill_rows: questions prefilled together.
      shows_running: whether a chunk hands over unfinished traces too, for a host that looks for stop strings.
      tile: lengths of caches are multiples of it.
    """

    num_slots: int
    num_questions: int
    num_traces: int
    num_prefix_tokens: int
    max_prompt_tokens: int
    max_new_tokens: int
    filters: Filters = dataclasses.field(default_factory=Filters)
    cache_type: CacheType = "compute"
    chunk_steps: int = 32
    prefill_rows: int = 8
    shows_running: bool = False
    tile: int = 1

    @property
    def cache_length(self) -> int:
        """Room for a sequence's positions, but for the prefix's; the last sampled token is never fed back."""
        return self._in_tiles(self.max_prompt_tokens + self.max_new_tokens - 1)

    @property
    def pool_rows(self) -> int:
        """The prompts of all slots if each has another question, and those prefilled ahead."""
        rows = -(-self.num_slots * self.num_questions // self.num_traces) + self.prefill_rows
        return -(-rows // self.prefill_rows) * self.prefill_rows

    @property
    def buffer_rows(self) -> int:
        """Finished traces that one chunk can hand over; slots wait where there are more."""
        return 2 * self.num_slots

    def bytes_per_slot(self, config: ModelConfig, itemsize: int) -> int:
        """Of the cache that a slot keeps."""
        width = 1 + 4 / config.head_dim if self.cache_type == "int8" else itemsize  # int8 has a scale for each head
        sizes = kv_cache.layer_sizes(config, self.cache_length)
        entries = sum(sizes[layer % config.period] for layer in range(config.num_layers))
        return int(2 * entries * config.num_kv_heads * config.head_dim * width)

    @property
    def live_lengths(self) -> tuple[int, ...]:
        """How much of the cache a step reads: the shortest of these that holds the longest live sequence."""
        quarter = self._in_tiles(-(-self.cache_length // 4))
        return tuple(min(self.cache_length, quarter * count) for count in (1, 2, 3, 4))

    def _in_tiles(self, length: int) -> int:
        return -(-length // self.tile) * self.tile


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RequestBatch:
    """The traces that a phase wants; stays on the device, only read. Traces of one question stand together."""

    prompts: Int[Array, "Q P"]  # what follows the prefix, right-padded
    prompt_lengths: Int[Array, " Q"]  # of what follows the prefix, at least 1
    question_numbers: UInt32[Array, " Q"]
    trace_questions: Int[Array, " T"]  # rows of `prompts`, ascending
    trace_samples: UInt32[Array, " T"]
    trace_limits: Int[Array, " T"]  # tokens, at most M
    cancelled: Bool[Array, " T"]  # traces to end where they are
    num_questions: Int[Array, " 1"]  # of the Q and T, how many there are
    num_traces: Int[Array, " 1"]
    seed: UInt32[Array, ""]
    round_index: UInt32[Array, ""]
    temperature: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """The state that decoding goes on from."""

    caches: list[KVCache]  # for each layer of the period: [L, B, K, S, H]
    pool: list[KVCache]  # of prompts: [L, R, K, P, H]; question q stands in row q % R
    prefix: list[KVCache]  # [L, K, S, H]; no entries where the prompts share nothing
    num_prefilled: Int[Array, " 1"]  # questions
    num_started: Int[Array, " 1"]  # traces
    trace: Int[Array, " B"]  # which one the slot works on, or FREE
    done: Bool[Array, " B"]  # finished, but not handed over yet
    newest: Int[Array, " B"]  # the token to decode from
    position: Int[Array, " B"]  # of `newest`, counted from the prefix's end
    tokens: Int[Array, "B M"]  # sampled so far
    length: Int[Array, " B"]  # how many
    stopped: Bool[Array, " B"]  # the last one is a stop token
    logprob: Float[Array, " B"]  # their sum, at temperature 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Running:
    """The traces in the slots at the end of a chunk."""

    trace: Int[Array, " B"]
    tokens: Int[Array, "B M"]
    length: Int[Array, " B"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Finished:
    """What a chunk hands over to the host: F traces, of which `count` are there, and how it went."""

    count: Int[Array, " 1"]
    trace: Int[Array, " F"]
    tokens: Int[Array, "F M"]
    length: Int[Array, " F"]  # stop token included
    stopped: Bool[Array, " F"]  # False: cut at its limit
    logprob: Float[Array, " F"]  # not finite where the model's logits were not
    num_left: Int[Array, " 1"]  # traces that are still to be handed over; of all shards together where they are many
    num_steps: Int[Array, " 1"]
    num_decoded: Int[Array, " 1"]  # tokens: what num_steps x B would be with all slots busy
    num_full_steps: Int[Array, " 1"]  # steps while traces were waiting for a slot
    num_full_decoded: Int[Array, " 1"]  # tokens decoded in these
    num_prefilled: Int[Array, " 1"]  # questions, since the phase began
    running: Running | None = None  # where the shape asks for it
