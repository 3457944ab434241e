"""Plans one sampling pass: which prompts fit, the prefix they share, and the slot shape to compile."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

from tpt_jax.config import AUTO, NumSlots, RunConfig
from tpt_jax.errors import UserError
from tpt_jax.models.decoding_weights import DecodingWeights
from tpt_jax.prune.apply import SCORES
from tpt_jax.prune.demand import asks_one_by_one, sample_levels
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.think.cache import CacheType
from tpt_jax.think.requests import Request
from tpt_jax.think.sampling import Filters
from tpt_jax.think.state import SlotShape

SHORTEST_PREFIX = 32  # tokens; a shorter prefix costs more as a separate attention product than it saves


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """The prompts to sample from, and the slot shape that holds them.

    Attributes:
      prompt_ids: token ids by question id, without prompts that are too long.
      prefix: the token ids that every prompt starts with; may be empty.
      shape: one data shard's slots.
    """

    prompt_ids: Mapping[str, tuple[int, ...]]
    prefix: tuple[int, ...]
    shape: SlotShape
    num_samples: int

    def request(self, question_id: str, samples: tuple[int, ...]) -> Request:
        limits = (self.shape.max_new_tokens,) * len(samples)
        return Request(question_id, self.prompt_ids[question_id], samples, limits)

    def requests(self, question_ids: Iterable[str], done: Collection[tuple[str, int]]) -> list[Request]:
        """Requests for the samples that are not done, given as (question id, sample); skips prompts that do not fit."""
        return [
            self.request(name, tuple(sample for sample in range(self.num_samples) if (name, sample) not in done))
            for name in question_ids
            if name in self.prompt_ids
        ]


def plan_sampling(
    prompts: Mapping[str, tuple[int, ...]],
    *,
    num_questions: int | None,
    num_samples: int,
    max_prompt_tokens: int,
    max_new_tokens: int,
    num_slots: NumSlots,
    num_shards: int,
    filters: Filters,
    cache_type: CacheType,
    weights: DecodingWeights,
    option: str,
) -> SamplingPlan:
    """Selects the prompts that fit, and the smallest shape that holds them.

    Args:
      num_questions: questions per pass; None for all.
      option: prefix of option names in error messages: "think." or "--".

    Raises:
      UserError: no prompt fits, or the slots do not divide over the data shards.
    """
    fitting = {question_id: ids for question_id, ids in prompts.items() if len(ids) <= max_prompt_tokens}
    if not fitting:
        raise UserError(
            f"{option}max_prompt_tokens ({max_prompt_tokens}): every prompt is longer; try "
            f"{max(map(len, prompts.values()))}, the longest prompt's length"
        )
    prefix = common_prefix(list(fitting.values()))
    shape = slot_shape(
        num_questions=min(num_questions or len(prompts), len(prompts)),
        num_samples=num_samples,
        num_prefix_tokens=len(prefix),
        max_prompt_tokens=max(map(len, fitting.values())) - len(prefix),
        max_new_tokens=max_new_tokens,
        num_slots=num_slots,
        num_shards=num_shards,
        filters=filters,
        cache_type=cache_type,
        weights=weights,
        option=option,
    )
    return SamplingPlan(fitting, prefix, shape, num_samples)


def slot_shape(
    *,
    num_questions: int,
    num_samples: int,
    num_prefix_tokens: int,
    max_prompt_tokens: int,
    max_new_tokens: int,
    num_slots: NumSlots,
    num_shards: int,
    filters: Filters,
    cache_type: CacheType,
    weights: DecodingWeights,
    option: str,
) -> SlotShape:
    """One data shard's share of the questions and slots.

    Args:
      num_questions, num_slots: totals over all data shards.

    Raises:
      UserError: the slots do not divide over the data shards.
    """
    if num_slots != AUTO and num_slots % num_shards:
        raise UserError(
            f"{option}num_slots ({num_slots}) must be a multiple of data x fsdp = {num_shards}; "
            f"try {-(-num_slots // num_shards) * num_shards}"
        )
    shard_questions = -(-num_questions // num_shards)
    num_traces = shard_questions * num_samples
    return SlotShape(
        num_slots=num_traces if num_slots == AUTO else min(num_slots // num_shards, num_traces),
        auto_slots=num_slots == AUTO,
        num_questions=shard_questions,
        num_traces=num_traces,
        traces_per_prefill=num_samples,
        num_prefix_tokens=num_prefix_tokens,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        filters=filters,
        cache_type=cache_type,
        weights=weights,
    )


def keeps_token_scores(config: RunConfig) -> bool:
    """Whether the think stage keeps token scores: on request, or because pruning needs them."""
    needs = Pipeline.from_config(config.prune, config.seed).needs
    return config.think.token_scores or not needs.isdisjoint(SCORES)


def think_shape(shape: SlotShape, config: RunConfig, num_shards: int) -> SlotShape:
    """The shape of a think stage: with room for all samples and prefills that it may need.

    Args:
      shape: for `think.num_samples` samples of each question.
    """
    think, pipeline = config.think, Pipeline.from_config(config.prune, config.seed)
    levels, one_by_one = sample_levels(think.num_samples, think.max_samples), asks_one_by_one(pipeline, think.until)
    most = shape.num_questions * levels[-1]
    if think.num_slots != AUTO:
        most = min(think.num_slots // num_shards, most)
    elif one_by_one:
        most = _most_at_a_time(shape.num_questions, pipeline, num_shards)
    return dataclasses.replace(
        shape,
        num_slots=most,
        num_traces=shape.num_questions * levels[-1],
        prefills_per_question=levels[-1] if one_by_one else len(levels),
        traces_per_prefill=1 if one_by_one else think.num_samples,
        token_scores=keeps_token_scores(config),
    )


def _most_at_a_time(num_questions: int, pipeline: Pipeline, num_shards: int) -> int:
    """Traces that are of use at a time if questions are asked one sample after the other: one of each question.

    And at most as many as the round keeps: with more slots, most of its traces would be surplus.
    """
    per_shard = num_questions if pipeline.max_traces is None else -(-pipeline.max_traces // num_shards)
    return min(num_questions, per_shard)


def common_prefix(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The tokens that all prompts start with, if worth storing once; at least one token of each prompt remains."""
    longest = min(map(len, prompts)) - 1
    shared = next((index for index in range(longest) if len({ids[index] for ids in prompts}) > 1), longest)
    return tuple(prompts[0][:shared]) if shared >= SHORTEST_PREFIX else ()
