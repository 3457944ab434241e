"""The schedule of the think stage: what the training set still needs is asked for next."""

from collections.abc import Mapping, Sequence

from tpt_jax.config import RunConfig
from tpt_jax.loop.seeds import derive_seed
from tpt_jax.prune.candidate import Candidate
from tpt_jax.prune.demand import Demand
from tpt_jax.prune.order import question_order
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.records import TraceName
from tpt_jax.think.requests import Request
from tpt_jax.think.sampling_plan import SamplingPlan


def make_pipeline(config: RunConfig, round_index: int) -> Pipeline:
    """The round's pipeline, with its seed for the order of questions."""
    return Pipeline.from_config(config.prune, derive_seed(config.seed, round_index, "select"))


def make_demand(
    config: RunConfig, round_index: int, pipeline: Pipeline, names: Sequence[str], num_shards: int = 1
) -> Demand:
    """What the round needs of these questions; without a verdict yet."""
    think = config.think
    return Demand(
        question_order(names, pipeline.seed),
        pipeline,
        until=think.until,
        num_samples=think.num_samples,
        max_samples=think.max_samples,
        num_shards=num_shards,
    )


def needed_traces(
    config: RunConfig, round_index: int, candidates: Sequence[Candidate], names: Sequence[str]
) -> list[int]:
    """The indices of the traces that decide on the round's training set; the others are surplus.

    Args:
      names: the questions that were asked.
    """
    demand = make_demand(config, round_index, make_pipeline(config, round_index), names)
    demand.add(candidates)
    return [index for index, each in enumerate(candidates) if demand.is_needed((each.id, each.sample))]


class OnDemand:
    """Asks a `Demand` for requests; see think.requests.Schedule."""

    def __init__(self, plan: SamplingPlan, demand: Demand):
        self.prompts: Mapping[str, tuple[int, ...]] = {name: plan.prompt_ids[name] for name in demand.names}
        self._plan = plan
        self._demand = demand

    def take(self, shard: int, count: int, num_idle: int) -> list[Request]:
        return [self._plan.request(name, samples) for name, samples in self._demand.take(shard, count, num_idle)]

    def has_more(self, shard: int) -> bool:
        return self._demand.has_more(shard)

    def is_needed(self, name: TraceName) -> bool:
        return self._demand.is_needed(name)

    def is_done(self, num_left: int) -> bool:
        return self._demand.is_settled
