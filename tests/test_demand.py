"""Sampling on demand: the training set is that of sampling everything, whatever the order in which traces finish."""

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from simulated_slots import sample

from tpt_jax.prune.candidate import Candidate
from tpt_jax.prune.demand import Demand, sample_levels
from tpt_jax.prune.order import question_order
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.prune.registry import parse_steps
from tpt_jax.records import Trace, Verdict

Name = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Model:
    """Questions of known difficulty; a trace's length and verdict depend on seed, question and sample."""

    rates: dict[str, float]
    seed: int = 0
    mean_length: int = 40

    def length(self, name: Name) -> int:
        drawn = random.Random(f"length {self.seed} {name}").lognormvariate(0, 0.5)
        return max(1, min(4 * self.mean_length, round(self.mean_length * drawn)))

    def is_right(self, name: Name) -> bool:
        return random.Random(f"verdict {self.seed} {name}").random() < self.rates[name[0]]

    def candidate(self, pipeline: Pipeline, name: Name) -> Candidate:
        right = self.is_right(name)
        return pipeline.candidate(Trace(*name, completion=f"{self.length(name)} {name}"), Verdict("1", right, right))


def make_model(num_questions: int, rate: float, seed: int = 0) -> Model:
    """Difficulties spread from hopeless to easy, `rate` on average."""
    generator = random.Random(seed)
    names = [f"q{index}" for index in range(num_questions)]
    return Model({name: generator.betavariate(2 * rate, 2 * (1 - rate)) for name in names}, seed)


def training_set(pipeline: Pipeline, demand: Demand, model: Model, names: Sequence[Name]) -> set[Name]:
    candidates = [model.candidate(pipeline, name) for name in names if demand.is_needed(name)]
    return {(candidates[index].id, candidates[index].sample) for index in pipeline.choose(candidates).kept}


def expected(model: Model, pipeline: Pipeline, levels: Sequence[int]) -> set[Name]:
    """The first right samples of the first questions, in a few lines."""
    kept: list[Name] = []
    for question in question_order(model.rates, pipeline.seed):
        for level in levels:
            right = [(question, sample) for sample in range(level) if model.is_right((question, sample))]
            if right:
                kept += right[: pipeline.max_per_question]
                break
    return set(kept[: pipeline.max_traces])


RUNS = st.fixed_dictionaries(
    {
        "num_questions": st.integers(1, 30),
        "rate": st.sampled_from([0.05, 0.5, 0.95]),
        "seed": st.integers(0, 1000),
        "max_per_question": st.sampled_from([None, 1, 1, 3]),
        "max_traces": st.sampled_from([None, 1, 5, 12]),
        "num_samples": st.integers(1, 4),
        "max_samples": st.sampled_from([None, None, 7]),
        "until": st.sampled_from(["enough", "enough", "all"]),
        "num_slots": st.integers(1, 9),
        "num_shards": st.integers(1, 3),
    }
)


@settings(deadline=None, max_examples=150)
@given(RUNS)
def test_the_training_set_does_not_depend_on_what_finishes_first(run: dict) -> None:
    model = make_model(run["num_questions"], run["rate"], run["seed"])
    pipeline = Pipeline(parse_steps(["correct"]), run["max_per_question"], run["max_traces"], seed=run["seed"])
    levels = sample_levels(run["num_samples"], run["max_samples"])
    counts = {name: run[name] for name in ("until", "num_samples", "max_samples")}
    demand = Demand(question_order(model.rates, pipeline.seed), pipeline, num_shards=run["num_shards"], **counts)
    devices = sample(demand, pipeline, model, run["num_slots"], run["num_shards"])
    written = [name for device in devices for name in device.written]
    assert training_set(pipeline, demand, model, written) == expected(model, pipeline, levels)
    most_requests = max(count for device in devices for count in (0, *device.num_requests.values()))
    assert most_requests <= (levels[-1] if demand.is_one_by_one else len(levels))
    if run["until"] == "all":
        assert len(written) == demand.num_needed  # no surplus

    # A run that was killed goes on from any part of its traces, and on another mesh.
    rest = Demand(question_order(model.rates, pipeline.seed), pipeline, num_shards=1, **counts)
    random.Random(run["seed"]).shuffle(written)
    half = written[: len(written) // 2]
    rest.add(model.candidate(pipeline, name) for name in half)
    (again,) = sample(rest, pipeline, model, num_slots=4)
    assert not set(again.written) & set(half)
    assert training_set(pipeline, rest, model, [*half, *again.written]) == expected(model, pipeline, levels)


@settings(deadline=None, max_examples=60)
@given(RUNS, st.sampled_from(["correct, shortest", "correct, {random: {count: 9}}"]))
def test_samples_that_are_compared_are_requested_together(run: dict, steps: str) -> None:
    model = make_model(run["num_questions"], run["rate"], run["seed"])
    pipeline = Pipeline(parse_steps(f"[{steps}]"), run["max_per_question"], run["max_traces"], seed=run["seed"])
    counts = {name: run[name] for name in ("until", "num_samples", "max_samples")}
    demand = Demand(question_order(model.rates, pipeline.seed), pipeline, num_shards=run["num_shards"], **counts)
    devices = sample(demand, pipeline, model, run["num_slots"], run["num_shards"])
    levels = sample_levels(run["num_samples"], run["max_samples"])
    assert max(count for device in devices for count in (0, *device.num_requests.values())) <= len(levels)


def test_a_question_whose_reference_cannot_be_read_is_given_up_at_once() -> None:
    pipeline = Pipeline(parse_steps(["correct"]), 1, None)
    demand = Demand(["a", "b"], pipeline, until="enough", num_samples=4)
    assert demand.take(0, 9, 0) == [("a", (0,)), ("b", (0,))]
    verdicts = {"a": Verdict.unreadable(), "b": Verdict.wrong("")}
    demand.add(pipeline.candidate(Trace(name, 0, ""), verdict) for name, verdict in verdicts.items())
    assert demand.take(0, 9, 0) == [("b", (1,))]


@pytest.mark.parametrize("steps", [["correct", "shortest"], ["correct", {"pass_rate": {"high": 0.75}}]])
def test_steps_that_compare_samples_get_all_of_a_question(steps: list) -> None:
    model, pipeline = make_model(40, 0.5), Pipeline(parse_steps(steps), 1, 12)
    demand = Demand(question_order(model.rates, 0), pipeline, until="enough", num_samples=4)
    (device,) = sample(demand, pipeline, model, num_slots=6)
    everything = [model.candidate(pipeline, (name, index)) for name in model.rates for index in range(4)]
    best = {(everything[index].id, everything[index].sample) for index in pipeline.choose(everything).kept}
    assert training_set(pipeline, demand, model, list(device.written)) == best
    assert len(device.written) < 0.7 * len(everything)  # the round still ends once it has enough


def test_a_step_that_looks_at_the_round_gets_everything() -> None:
    model, pipeline = make_model(20, 0.5), Pipeline(parse_steps(["correct", {"random": {"count": 5}}]), 1, 5)
    demand = Demand(question_order(model.rates, 0), pipeline, until="enough", num_samples=2)
    (device,) = sample(demand, pipeline, model, num_slots=6)
    assert len(device.written) == 40


def test_kept_traces_are_distributed_as_in_a_selection_from_all_samples() -> None:
    """Over 200 seeds, against a draw that knows nothing of demand: shuffled questions, a random right trace of each."""
    ours: list[tuple[float, int]] = []
    drawn: list[tuple[float, int]] = []
    ranks: Counter[int] = Counter()
    rates = make_model(60, 0.5).rates
    for seed in range(200):
        model, pipeline = Model(rates, seed), Pipeline(parse_steps(["correct"]), 1, 20, seed=seed)
        demand = Demand(question_order(rates, seed), pipeline, until="enough", num_samples=4)
        (device,) = sample(demand, pipeline, model, num_slots=16)
        for name in training_set(pipeline, demand, model, list(device.written)):
            ours.append((rates[name[0]], model.length(name)))
            ranks[name[1]] += 1
        generator, other = random.Random(f"reference {seed}"), Model(rates, 1000 + seed)
        questions = generator.sample(list(rates), len(rates))
        right = [[(name, index) for index in range(4) if other.is_right((name, index))] for name in questions]
        chosen = [generator.choice(names) for names in right if names][:20]
        drawn += [(rates[name[0]], other.length(name)) for name in chosen]
    assert len(ours) == len(drawn) == 200 * 20
    for one, two in zip(zip(*ours, strict=True), zip(*drawn, strict=True), strict=True):
        comparison: Any = stats.ks_2samp(one, two)
        assert comparison.pvalue > 0.01
    # The kept sample is the first right one: its index is geometric given the question's rate, cut off at 4.
    shares = [sum(rate * (1 - rate) ** index for rate in rates.values()) for index in range(4)]
    counts = [len(ours) * share / sum(shares) for share in shares]
    assert stats.chisquare([ranks[index] for index in range(4)], counts).pvalue > 0.01


def test_several_traces_of_a_question_are_requested_together() -> None:
    """All three are needed; only a wrong one asks for more. The slots stay busy as with one."""
    model, pipeline = make_model(2000, 0.6), Pipeline(parse_steps(["correct"]), 3, 1200)
    demand = Demand(question_order(model.rates, 0), pipeline, until="enough", num_samples=8)
    assert demand.take(0, 6, 0) == [(name, (0, 1, 2)) for name in question_order(model.rates, 0)[:2]]
    demand = Demand(question_order(model.rates, 0), pipeline, until="enough", num_samples=8)
    (device,) = sample(demand, pipeline, model, num_slots=64)
    assert device.num_open_busy >= 0.95 * device.num_open_steps * 64
    assert device.num_busy >= 0.85 * device.num_steps * 64


def test_slots_stay_busy_and_little_is_surplus() -> None:
    """512 slots, 60% of traces right, the paper's 2,000 traces: a sixth of all samples."""
    model, pipeline = make_model(7473, 0.6), Pipeline(parse_steps(["correct"]), 1, 2000)
    demand = Demand(question_order(model.rates, 0), pipeline, until="enough", num_samples=4)
    (device,) = sample(demand, pipeline, model, num_slots=512)
    assert device.num_open_busy >= 0.95 * device.num_open_steps * 512
    needed = [name for name in device.written if demand.is_needed(name)]
    assert len(needed) == demand.num_needed
    assert len(device.written) <= 1.1 * len(needed)
    assert len(device.written) < 29_892 / 6
    assert device.num_busy <= 1.1 * sum(map(model.length, needed))  # cancelled traces count too
    assert math.ceil(len(needed) / 512) < device.num_steps
