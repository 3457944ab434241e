"""Sampling: parity with transformers and the softmax; traces do not depend on slots, order or mesh."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SHALLOW, TINY, Twins, make_twins, shallow
from flax import nnx

from tpt_jax.config import MeshConfig
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.transformer import initialize_parameters
from tpt_jax.records import Trace
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
from tpt_jax.think import cache as kv_cache
from tpt_jax.think.engine import Engine, Statistics
from tpt_jax.think.requests import FixedSchedule, Request
from tpt_jax.think.sampler import SamplerProgram, compile_sampler
from tpt_jax.think.sampling import Filters, _grid_rows, question_hash, sample_tokens, trace_keys
from tpt_jax.think.sampling_plan import SamplingPlan, common_prefix, plan_sampling
from tpt_jax.think.state import SlotShape
from tpt_jax.think.stop_strings import StopStrings

GEMMA = shallow("gemma2")
NUM_PROMPTS, NUM_SAMPLES, MAX_NEW = 8, 2, 16
SHAPE = SlotShape(
    num_slots=4,
    num_questions=NUM_PROMPTS,
    num_traces=NUM_PROMPTS * NUM_SAMPLES,
    num_prefix_tokens=0,
    max_prompt_tokens=12,
    max_new_tokens=MAX_NEW,
    chunk_steps=6,
    prefill_tokens=24,
)
STOP = (5, 9)
PROMPTS = [tuple(np.random.default_rng(row).integers(10, 64, 3 + row).tolist()) for row in range(NUM_PROMPTS)]
Traces = dict[tuple[str, int], Trace]


class Ids:
    """Stands in for a Prompt: the text of token ids is the ids themselves."""

    def text(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))

    def token_ends(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(len(self.text(token_ids[: index + 1])) for index in range(len(token_ids)))


def compiled(config: ModelConfig, mesh: Any, shape: SlotShape = SHAPE) -> SamplerProgram:
    return compile_sampler(config, mesh, compute_dtype="float32", shapes={"think": shape}, stop_ids=STOP)


def requests(
    prompts: Sequence[tuple[int, ...]], num_samples: int = NUM_SAMPLES, limits: Sequence[int] = (MAX_NEW,)
) -> list[Request]:
    """One request per prompt; its id is the prompt itself, so that it does not depend on the order."""
    return [
        Request(Ids().text(prompt), prompt, tuple(range(num_samples)), (limits[row % len(limits)],) * num_samples)
        for row, prompt in enumerate(prompts)
    ]


def sample(
    program: SamplerProgram,
    parameters: nnx.State,
    wanted: Sequence[Request],
    temperature: float,
    seed: int = 0,
    round_index: int = 1,
    prefix: tuple[int, ...] = (),
) -> Traces:
    shards = program.layout.batch_ways
    engine = Engine(program.slots["think"], Ids(), prefix, shards)  # pyright: ignore[reportArgumentType]
    batches = engine.sample(
        program.reshards["think"](parameters),
        FixedSchedule(wanted, shards),
        seed=seed,
        round_index=round_index,
        temperature=temperature,
    )
    traces = [trace for batch in batches for trace in batch]
    by_name = {(trace.id, trace.sample): trace for trace in traces}
    assert len(by_name) == len(traces) == sum(len(request.samples) for request in wanted)
    assert engine.statistics.num_tokens == sum(trace.num_sampled for trace in traces)
    return by_name


def tokens(traces: Traces) -> dict[tuple[str, int], tuple[int, ...]]:
    return {name: trace.token_ids for name, trace in traces.items()}


@pytest.fixture(scope="module")
def tiny(layout: Layout) -> tuple[SamplerProgram, nnx.State]:
    return compiled(GEMMA, layout.mesh), initialize_parameters(GEMMA, layout, seed=3)


@pytest.fixture(scope="module")
def expected(tiny: tuple[SamplerProgram, nnx.State]) -> Traces:
    return sample(*tiny, requests(PROMPTS), temperature=1.0)


@pytest.fixture(scope="module", params=SHALLOW)
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, layout: Layout) -> Twins:
    return make_twins(request.param, tmp_path_factory.mktemp(request.param), layout, SHALLOW[request.param])


@pytest.fixture(scope="module")
def twin_program(twins: Twins) -> SamplerProgram:
    return compiled(twins.config, twins.layout.mesh)


def test_greedy_sampling_matches_transformers_generate(twins: Twins, twin_program: SamplerProgram) -> None:
    """Sequences are longer than the sliding window of 8, so the local layers' caches wrap around."""
    import torch

    traces = sample(twin_program, twins.parameters, requests(PROMPTS), temperature=0.0)
    for prompt in PROMPTS:
        with torch.no_grad():
            sequence = twins.torch_model.generate(
                torch.tensor([prompt]),
                max_new_tokens=MAX_NEW,
                do_sample=False,
                eos_token_id=list(STOP),
                pad_token_id=0,
                use_cache=False,
            )
        new = tuple(sequence[0, len(prompt) :].tolist())
        for index in range(NUM_SAMPLES):
            trace = traces[Ids().text(prompt), index]
            assert trace.finish_reason == ("stop" if new[-1] in STOP else "length")
            assert trace.token_ids == (new[:-1] if new[-1] in STOP else new)


def test_logprobs_match_the_full_forward_pass(twins: Twins, twin_program: SamplerProgram) -> None:
    traces = sample(twin_program, twins.parameters, requests(PROMPTS), temperature=1.0)
    for prompt in PROMPTS:
        trace = traces[Ids().text(prompt), 0]
        if trace.finish_reason == "stop":
            continue  # the trace does not say which stop token was sampled
        sequence = np.asarray([[*prompt, *trace.token_ids]])
        logits = twins.expected_logits(sequence)[0, :-1].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total = sum(logprobs[len(prompt) - 1 + step, token] for step, token in enumerate(trace.token_ids))
        assert trace.logprob == pytest.approx(total, rel=1e-3, abs=2e-5)  # fp32 logits of up to 30


@pytest.mark.parametrize(
    "changes",
    [
        {"num_slots": 1, "chunk_steps": 64, "prefill_tokens": 12},
        {"num_slots": 16, "chunk_steps": 1, "prefill_tokens": 96},
        {"num_slots": 3, "chunk_steps": 100, "prefill_tokens": 36},
    ],
    ids=lambda changes: f"{changes['num_slots']} slots",
)
def test_traces_do_not_depend_on_slots_or_order(
    changes: dict[str, int], tiny: tuple[SamplerProgram, nnx.State], expected: Traces, layout: Layout
) -> None:
    program = compiled(GEMMA, layout.mesh, dataclasses.replace(SHAPE, **changes))
    reordered = sample(program, tiny[1], requests(PROMPTS[::-1]), temperature=1.0)
    assert tokens(reordered) == tokens(expected)


def test_traces_depend_on_seed_round_and_sample(tiny: tuple[SamplerProgram, nnx.State], expected: Traces) -> None:
    assert tokens(sample(*tiny, requests(PROMPTS), temperature=1.0)) == tokens(expected)
    other_seed = sample(*tiny, requests(PROMPTS), temperature=1.0, seed=1)
    other_round = sample(*tiny, requests(PROMPTS), temperature=1.0, round_index=2)
    for name, trace in expected.items():
        assert other_seed[name].token_ids != trace.token_ids
        assert other_round[name].token_ids not in (trace.token_ids, other_seed[name].token_ids)
    assert len({expected[Ids().text(prompt), index].token_ids for prompt in PROMPTS for index in (0, 1)}) == 16


def test_trace_keys_fold_in_round_question_and_sample() -> None:
    """Compared with keys derived by single folds, without vmap."""
    seed, round_index, questions, samples = 7, 3, (0, 5, 2**32 - 1), (0, 1, 4)
    keys = trace_keys(
        jnp.uint32(seed), jnp.uint32(round_index), jnp.asarray(questions, jnp.uint32), jnp.asarray(samples, jnp.uint32)
    )
    for key, question, index in zip(keys, questions, samples, strict=True):
        by_hand = jax.random.key(seed)
        for value in (round_index, question, index):
            by_hand = jax.random.fold_in(by_hand, np.uint32(value))
        np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(by_hand))


def test_question_hashes_are_the_same_on_every_machine() -> None:
    """The first four bytes of SHA-256; the published digest of "abc" (FIPS 180-4) begins with ba7816bf."""
    assert question_hash("abc") == 0xBA7816BF


def test_remaining_traces_are_the_same_on_resume(tiny: tuple[SamplerProgram, nnx.State], expected: Traces) -> None:
    """Some questions lack one sample, others none."""
    remaining = [dataclasses.replace(request, samples=(1,), limits=(MAX_NEW,)) for request in requests(PROMPTS[2:5])]
    traces = sample(
        *tiny,
        [*remaining, *(dataclasses.replace(request, samples=(), limits=()) for request in requests(PROMPTS[5:]))],
        temperature=1.0,
    )
    assert tokens(traces) == {name: tokens(expected)[name] for name in traces}


def test_each_trace_ends_at_its_limit(tiny: tuple[SamplerProgram, nnx.State], expected: Traces) -> None:
    limits = (1, 3, 16, 7)
    traces = sample(*tiny, requests(PROMPTS, limits=limits), temperature=1.0)
    for row, prompt in enumerate(PROMPTS):
        for index in range(NUM_SAMPLES):
            cut, full = traces[Ids().text(prompt), index], expected[Ids().text(prompt), index]
            limit = limits[row % 4]
            assert cut.token_ids == full.token_ids[:limit]
            assert cut.finish_reason == ("length" if full.num_sampled > limit else full.finish_reason)


def test_a_trace_ends_in_the_step_that_completes_a_stop_string(
    tiny: tuple[SamplerProgram, nnx.State], expected: Traces, layout: Layout
) -> None:
    """It ends before the stop string, which may begin and end inside of tokens, and decodes nothing more."""
    vocab_size = GEMMA.vocab_size
    first, second = expected[Ids().text(PROMPTS[0]), 0].token_ids[2:4]
    stop_strings = StopStrings.build(
        [f"{first} {str(second)[0]}"], [f"{token} ".encode() for token in range(vocab_size)]
    )
    shape = dataclasses.replace(SHAPE, num_stop_states=stop_strings.num_states)
    program = compiled(GEMMA, layout.mesh, shape)
    engine = Engine(program.slots["think"], Ids(), (), 1, stop_strings)  # pyright: ignore[reportArgumentType]
    schedule = FixedSchedule(requests(PROMPTS), 1)
    batches = engine.sample(program.reshards["think"](tiny[1]), schedule, seed=0, round_index=1, temperature=1.0)
    num_decoded = num_ended = 0
    for trace in (trace for batch in batches for trace in batch):
        full = expected[trace.id, trace.sample]
        text = "".join(f"{token} " for token in full.token_ids)
        start = text.find(f"{first} {str(second)[0]}")
        if start < 0:
            assert (trace.token_ids, trace.finish_reason) == (full.token_ids, full.finish_reason)
            assert trace.stop_string is None
            num_decoded += full.num_sampled
        else:
            assert trace.token_ids == full.token_ids[: text[:start].count(" ")]
            assert (trace.finish_reason, trace.stop_string) == ("stop", f"{first} {str(second)[0]}")
            num_decoded += len(trace.token_ids) + 2
            num_ended += 1
    assert num_ended
    assert engine.statistics.num_tokens == num_decoded


# Sampling on demand.


class OneByOne:
    """Asks for the samples of a question one after the other, and cancels what it is told to forget."""

    def __init__(self, wanted: Sequence[Request], num_shards: int, forget: frozenset[str] = frozenset()):
        self.prompts = {request.id: request.prompt_ids for request in wanted}
        self.taken: list[tuple[str, int]] = []
        self._left = {
            shard: [(request, sample) for sample in range(NUM_SAMPLES) for request in wanted[shard::num_shards]]
            for shard in range(num_shards)
        }
        self._forget = forget

    def take(self, shard: int, count: int, num_idle: int) -> list[Request]:
        taken = [self._left[shard].pop(0) for _ in range(min(1, count, len(self._left[shard])))]
        self.taken += [(request.id, sample) for request, sample in taken]
        return [dataclasses.replace(request, samples=(sample,), limits=(MAX_NEW,)) for request, sample in taken]

    def has_more(self, shard: int) -> bool:
        return bool(self._left[shard])

    def is_needed(self, name: tuple[str, int]) -> bool:
        return name[0] not in self._forget

    def is_done(self, num_left: int) -> bool:
        return num_left == 0 and not any(self._left.values())


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 1)])
def test_traces_do_not_depend_on_when_they_are_requested(
    mesh: tuple[int, int, int], tiny: tuple[SamplerProgram, nnx.State], expected: Traces
) -> None:
    """Requests come one by one, each with its own prefill, while the slots decode; the pool of prompts wraps around."""
    shape = dataclasses.replace(SHAPE, num_slots=2, prefills_per_question=NUM_SAMPLES, token_scores=True)
    devices = jax.devices()[: math.prod(mesh)]
    program = compiled(GEMMA, make_mesh(MeshConfig(*mesh), devices), shape)
    parameters = initialize_parameters(GEMMA, Layout(program.layout.mesh, TRAIN_RULES), seed=3)
    shards = program.layout.batch_ways
    forgotten = frozenset({Ids().text(PROMPTS[3])})
    for forget in (frozenset(), forgotten):
        schedule = OneByOne(requests(PROMPTS), shards, forget)
        engine = Engine(program.slots["think"], Ids(), (), shards)  # pyright: ignore[reportArgumentType]
        batches = engine.sample(program.reshards["think"](parameters), schedule, seed=0, round_index=1, temperature=1.0)
        traces = [trace for batch in batches for trace in batch]
        assert len(schedule.taken) == len(set(schedule.taken)) == NUM_PROMPTS * NUM_SAMPLES
        by_name = {(trace.id, trace.sample): trace for trace in traces}
        assert tokens(by_name) == {name: each for name, each in tokens(expected).items() if name[0] not in forget}
        assert engine.statistics.num_cancelled == (NUM_SAMPLES if forget else 0)
        assert engine.statistics.num_cancelled_tokens <= NUM_SAMPLES
        for trace in traces:
            assert len(trace.token_logprobs) == len(trace.token_entropies) == len(trace.token_ids)
            rest = trace.logprob - sum(trace.token_logprobs)  # of the end of turn, which is not in the lists
            assert rest < 0.02 if trace.finish_reason == "stop" else abs(rest) < 0.02  # float16
            assert 0 <= sum(trace.token_entropies) < trace.entropy + 0.02


# Planning a pass.


def plan(lengths: dict[str, int], max_prompt_tokens: int) -> SamplingPlan:
    """Four samples of each question, in prompts of these lengths."""
    return plan_sampling(
        {name: tuple(range(length)) for name, length in lengths.items()},
        num_questions=None,
        num_samples=4,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=8,
        num_slots=4,
        num_shards=1,
        filters=Filters(),
        cache_type="compute",
        weights="compute",
        option="think.",
    )


def test_only_prompts_that_fit_and_samples_that_are_missing_are_requested() -> None:
    done = {("fits", 1), ("fits", 3), *(("done", index) for index in range(4))}
    requested = plan({"fits": 9, "too long": 10, "done": 3}, 9).requests(["done", "too long", "fits"], done)
    assert [(request.id, request.samples) for request in requested if request.samples] == [("fits", (0, 2))]


def test_a_shared_prefix_leaves_a_token_of_the_shortest_prompt() -> None:
    """The last token of a prompt is decoded, not prefilled."""
    assert common_prefix([range(40), range(50)]) == tuple(range(39))
    assert plan({"a": 40, "b": 50}, 50).shape.max_prompt_tokens == 11


@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_a_shared_prefix_does_not_change_traces(family: str, layout: Layout) -> None:
    """A prefix stored once gives the traces of full prompts, even beyond the sliding window."""
    parameters = initialize_parameters(shallow(family), layout, seed=3)
    shared = tuple(np.random.default_rng(99).integers(10, 64, 40).tolist())
    wanted = requests([(*shared, *prompt) for prompt in PROMPTS])
    assert common_prefix([request.prompt_ids for request in wanted])[:40] == shared
    without_prefix = compiled(shallow(family), layout.mesh, dataclasses.replace(SHAPE, max_prompt_tokens=52))
    with_prefix = compiled(shallow(family), layout.mesh, dataclasses.replace(SHAPE, num_prefix_tokens=40))
    expected = sample(without_prefix, parameters, wanted, temperature=0.5)
    traces = sample(with_prefix, parameters, wanted, temperature=0.5, prefix=shared)
    assert tokens(traces) == tokens(expected)


def test_int8_entries_are_within_half_a_step_of_the_written_ones() -> None:
    """A step is 1/127 of the largest magnitude among one head's values of one token."""
    rng = np.random.default_rng(0)
    heads = np.asarray([[1.0], [100.0]])  # of different magnitudes
    key, value = ((rng.normal(size=(4, 3, 2, 8)) * heads).astype(np.float32) for _ in range(2))  # L B K H
    caches = kv_cache.empty(TINY["llama"], 3, [5], jnp.dtype("float32"), "int8")
    positions = jnp.asarray([0, 4, 7], jnp.int32)
    (cache,) = kv_cache.write_tokens(caches, [(jnp.asarray(key), jnp.asarray(value))], positions)
    for written, entries, scales in ((key, cache.key, cache.key_scale), (value, cache.value, cache.value_scale)):
        assert scales is not None
        stored = np.asarray(entries, np.float32) * np.asarray(scales)[..., 0, :, None]  # L B K S H
        steps = np.abs(written).max(axis=-1) / 127
        for row, entry in enumerate((0, 4, 2)):  # position 7 of a cache of five entries is entry 2
            errors = np.abs(stored[:, row, :, entry] - written[:, row]).max(axis=-1)
            assert (errors <= 0.5001 * steps[:, row]).all()


def test_an_int8_cache_is_close(tiny: tuple[SamplerProgram, nnx.State], layout: Layout) -> None:
    """The first token depends only on the prompt's KV cache: log-probabilities differ by the quantization error."""
    quantized = compiled(GEMMA, layout.mesh, dataclasses.replace(SHAPE, cache_type="int8"))
    wanted = requests(PROMPTS, limits=(1,))
    exact, rounded = (sample(program, tiny[1], wanted, temperature=0.0) for program in (tiny[0], quantized))
    differences = [abs(exact[name].logprob - rounded[name].logprob) for name in exact]
    assert 0 < max(differences) < 0.05


def test_traces_do_not_depend_on_the_rows_of_the_cache(
    tiny: tuple[SamplerProgram, nnx.State], expected: Traces, layout: Layout
) -> None:
    """Two tokens in a row, as on a TPU with a head size of 64."""
    shape = dataclasses.replace(SHAPE, row_tokens=2, tile=4)
    assert tokens(sample(compiled(GEMMA, layout.mesh, shape), tiny[1], requests(PROMPTS), 1.0)) == tokens(expected)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_traces_do_not_depend_on_the_mesh(
    sizes: tuple[int, int, int], tiny: tuple[SamplerProgram, nnx.State], expected: Traces
) -> None:
    mesh = make_mesh(MeshConfig(*sizes))
    shards = sizes[0] * sizes[1]
    num_questions = NUM_PROMPTS // shards
    shape = dataclasses.replace(SHAPE, num_slots=2, num_questions=num_questions, num_traces=num_questions * NUM_SAMPLES)
    spread = initialize_parameters(GEMMA, Layout(mesh, TRAIN_RULES), seed=3)
    program = compiled(GEMMA, mesh, shape)
    traces = sample(program, spread, requests(PROMPTS), temperature=1.0)
    assert tokens(traces) == tokens(expected)
    for name, trace in traces.items():
        assert trace.logprob == pytest.approx(expected[name].logprob, rel=1e-3)


def test_filters_reach_every_token(tiny: tuple[SamplerProgram, nnx.State], layout: Layout) -> None:
    """top_k=1 at temperature 1 samples the greedy tokens."""
    top_1 = compiled(GEMMA, layout.mesh, dataclasses.replace(SHAPE, filters=Filters(top_k=1)))
    greedy = sample(*tiny, requests(PROMPTS), temperature=0.0)
    assert tokens(sample(top_1, tiny[1], requests(PROMPTS), temperature=1.0)) == tokens(greedy)


def test_non_finite_logits_raise_and_name_the_question(tiny: tuple[SamplerProgram, nnx.State]) -> None:
    program, parameters = tiny
    broken = jax.tree.map(lambda weight: weight * jnp.float32(np.nan), parameters)
    with pytest.raises(FloatingPointError, match="sample 0: the model's logits are not finite"):
        sample(program, broken, requests(PROMPTS), temperature=1.0)


@pytest.mark.parametrize(
    ("vocab_size", "num_rows", "temperature", "bound"),
    [(10, 16, 0.7, 27.88), (587, 16, 0.7, 697.52), (601, 304, 1.6, 712.77)],
)
def test_sampled_frequencies_follow_the_softmax(
    vocab_size: int, num_rows: int, temperature: float, bound: float
) -> None:
    """Chi-square tests; the bounds are the 99.9% points. The grid has one column, 37 or 2, and its last row a gap."""
    assert _grid_rows(vocab_size) == num_rows
    count = 12_000
    logits = np.random.default_rng(0).permutation(np.linspace(-1.0, 1.5, vocab_size)).astype(np.float32)
    keys = trace_keys(jnp.uint32(0), jnp.uint32(0), jnp.arange(count, dtype=jnp.uint32), jnp.zeros(count, jnp.uint32))
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, vocab_size))
    drawn = sample_tokens(rows, keys, jnp.zeros(count, jnp.int32), jnp.float32(temperature), Filters()).token
    expected = np.exp(logits / temperature)
    expected *= count / expected.sum()
    observed = np.bincount(np.asarray(drawn), minlength=vocab_size)
    assert len(observed) == vocab_size
    assert ((observed - expected) ** 2 / expected).sum() < bound


def test_hosts_sample_at_the_same_time() -> None:
    """Tokens of all hosts add up; their seconds do not."""
    first = Statistics(4.0, 1.0, num_steps=7, num_tokens=10, num_full_steps=3, num_full_tokens=6)
    second = Statistics(6.0, 0.0, num_steps=9, num_tokens=30, num_full_steps=1, num_full_tokens=2)
    combined = Statistics.combine([dataclasses.asdict(first), dataclasses.asdict(second)])
    assert (combined.seconds, combined.idle_seconds, combined.num_steps, combined.num_tokens) == (5.0, 0.5, 9, 40)
    assert combined.occupancy(4) == 8 / (4 * 4)
