"""Pipelines of steps: order, limits, scopes, guards, and their replay from plain JSON."""

import collections
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpt_jax.errors import UserError
from tpt_jax.prune.apply import Selection, select
from tpt_jax.prune.candidate import Candidate
from tpt_jax.prune.order import question_order
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.prune.registry import STEPS, dump_steps, parse_steps
from tpt_jax.prune.step import Scope, Step, Trim
from tpt_jax.records import JudgedTrace, Trace, Verdict

CORRECT = Verdict("1", strict=True, correct=True)
FORMAT_ONLY = Verdict("1", strict=False, correct=True)
WRONG = Verdict("2", strict=False, correct=False)
UNKNOWN = Verdict.unreadable()

TEXTS = ["1 + 2 = 3. So 3.", "Now 1+2=3", "5 * 6 = 30\n30 - 1 = 29", "no calculation"]
JUDGED = st.lists(
    st.builds(
        JudgedTrace,
        st.builds(
            Trace,
            id=st.sampled_from("abc"),
            sample=st.integers(0, 99),
            completion=st.sampled_from(TEXTS),
            token_ids=st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
            logprob=st.sampled_from([-1.0, -0.5, -2.25]),
            finish_reason=st.sampled_from(["stop", "stop", "stop", "length"]),
            entropy=st.sampled_from([0.5, 1.0]),
        ),
        st.sampled_from([CORRECT, CORRECT, FORMAT_ONLY, WRONG, UNKNOWN]),
    ),
    unique_by=lambda judged: (judged.trace.id, judged.trace.sample),
    max_size=40,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "shortest": {"count": 2},
    "diverse": {"count": 3},
    "pass_rate": {"low": 0.2, "high": 0.8},
    "random": {"share": 0.7},
    "own": {"function": f"{__name__}:of_even_samples"},
}
NEED_NO_SCORES = [name for name, step in STEPS.items() if issubclass(step, Step) and name != "lowest_surprisal"]


def of_even_samples(judged: list[JudgedTrace]) -> list[JudgedTrace]:
    return [each for each in judged if each.trace.sample % 2 == 0]


def pipelines(scopes: set[Scope]) -> st.SearchStrategy[Pipeline]:
    """Up to three steps of these scopes, in any order, with any limits."""
    steps = parse_steps([{name: OPTIONS.get(name)} for name in NEED_NO_SCORES])
    allowed = [step for step in steps if isinstance(step, Step) and step.scope in scopes]
    return st.builds(
        Pipeline,
        st.lists(st.sampled_from(allowed), max_size=3).map(tuple),
        max_per_question=st.sampled_from([None, 1, 2]),
        max_traces=st.sampled_from([None, 1, 4]),
        seed=st.integers(0, 5),
    )


ANY_PIPELINE = pipelines({"trace", "question", "round"})


def candidates_of(pipeline: Pipeline, judged: list[JudgedTrace]) -> list[Candidate]:
    return [pipeline.candidate(each.trace, each.verdict) for each in judged]


def names(selection: Selection) -> list[str]:
    return [each.trace.name for each in selection.kept]


# Properties of all pipelines.


@settings(max_examples=50)
@given(judged=JUDGED, pipeline=ANY_PIPELINE, order=st.randoms())
def test_the_order_of_the_input_does_not_matter(
    judged: list[JudgedTrace], pipeline: Pipeline, order: random.Random
) -> None:
    selection = select(pipeline, judged)
    shuffled = judged[:]
    order.shuffle(shuffled)
    assert select(pipeline, shuffled) == selection
    assert len(selection.kept) + sum(selection.num_dropped.values()) == len(judged)
    counts = collections.Counter(each.trace.id for each in selection.kept)
    assert max(counts.values(), default=0) <= (pipeline.max_per_question or len(judged))
    assert len(selection.kept) <= (pipeline.max_traces or len(judged))
    assert all(each.trace.finish_reason == "stop" and not each.verdict.unknown for each in selection.kept)


@settings(max_examples=50)
@given(judged=JUDGED, pipeline=ANY_PIPELINE)
def test_candidates_that_went_through_json_are_chosen_alike(judged: list[JudgedTrace], pipeline: Pipeline) -> None:
    candidates = candidates_of(pipeline, judged)
    copies = [Candidate.from_json(json.loads(json.dumps(each.to_json()))) for each in candidates]
    assert pipeline.choose(copies) == pipeline.choose(candidates)
    again = Pipeline(parse_steps(dump_steps(pipeline.steps)), *list(vars(pipeline).values())[1:4])
    assert again == pipeline


@settings(max_examples=50)
@given(judged=JUDGED, pipeline=pipelines({"trace", "question"}))
def test_a_questions_choice_agrees_with_the_rounds(judged: list[JudgedTrace], pipeline: Pipeline) -> None:
    """The first max_traces of what is kept of each question, in the questions' order."""
    candidates = candidates_of(pipeline, judged)
    kept = [
        each
        for name in question_order([each.id for each in candidates], pipeline.seed)
        for each in pipeline.keep_of_question([each for each in candidates if each.id == name])
    ]
    expected = sorted((each.id, each.sample) for each in kept[: pipeline.max_traces])
    assert [(each.trace.id, each.trace.sample) for each in select(pipeline, judged).kept] == expected


@settings(max_examples=50)
@given(judged=JUDGED, pipeline=pipelines({"trace"}))
def test_later_samples_change_nothing_with_scope_trace(judged: list[JudgedTrace], pipeline: Pipeline) -> None:
    """So a sampler may stop as soon as a question has enough."""
    assert pipeline.scope == "trace"
    candidates = sorted((each for each in candidates_of(pipeline, judged) if each.id == "a"), key=lambda a: a.sample)
    whole = pipeline.keep_of_question(candidates)
    for length in range(len(candidates)):
        kept = pipeline.keep_of_question(candidates[:length])
        assert kept == whole[: len(kept)]
        assert {each.sample for each in whole[len(kept) :]}.isdisjoint(each.sample for each in candidates[:length])


def test_the_widest_scope_and_all_needs_count() -> None:
    def of(text: str) -> tuple[Scope, frozenset[str]]:
        pipeline = Pipeline(parse_steps(text))
        return pipeline.scope, pipeline.needs

    assert of("[]") == of("correct, unique_texts") == ("trace", frozenset())
    assert of("correct, shortest, unique_texts") == ("question", frozenset())
    assert of("random: {count: 3}, shortest") == ("round", frozenset())
    assert of("random: {share: 0.5}") == ("trace", frozenset())
    assert of("highest_logprob, lowest_surprisal") == (
        "question",
        {"logprob", "token_ids", "token_logprobs", "token_ends"},
    )


# The order of traces.


def test_the_order_of_questions_is_random_and_the_same_everywhere() -> None:
    ids = [f"q{number}" for number in range(5)]
    assert question_order(ids, 0) == ["q2", "q4", "q1", "q3", "q0"]  # as on any other machine
    assert question_order([*reversed(ids), "q1"], 0) == question_order(ids, 0)
    firsts = collections.Counter(question_order(ids, seed)[0] for seed in range(500))
    assert all(60 <= firsts[name] <= 140 for name in ids)  # 100 expected, four and a half standard deviations


def trace(name: str, sample: int, text: str, verdict: Verdict = CORRECT, *, is_finished: bool = True) -> JudgedTrace:
    return JudgedTrace(Trace(name, sample, text, finish_reason="stop" if is_finished else "length"), verdict)


def test_the_first_samples_and_the_first_questions_are_kept() -> None:
    judged = [trace(name, sample, str(sample)) for name in "abcd" for sample in (3, 1, 2)]
    first, second, third, _ = question_order("abcd", seed=7)
    kept = names(select(Pipeline((), max_per_question=2, max_traces=5, seed=7), judged))
    assert kept == sorted([f"{first}/1", f"{first}/2", f"{second}/1", f"{second}/2", f"{third}/1"])


# Guards and counts.

MIXED = [
    trace("b", 1, "one"),
    trace("b", 0, "two"),
    trace("b", 2, "two", FORMAT_ONLY),  # the text of b/0
    trace("a", 0, "two"),  # the same text for another question
    trace("a", 1, "three", is_finished=False),
    trace("a", 2, "four", WRONG),
    trace("a", 3, "five", UNKNOWN),
    trace("c", 0, "six"),
    trace("c", 1, "seven", is_finished=False),
    trace("c", 2, "eight", UNKNOWN),
    trace("d", 0, "nine", FORMAT_ONLY),
]


def test_every_dropped_trace_is_counted_under_its_first_reason() -> None:
    pipeline = Pipeline(parse_steps("correct, unique_texts"), max_per_question=1, max_traces=2)
    selection = select(pipeline, MIXED, is_held_out=lambda name: name == "c")
    assert list(selection.num_dropped.items()) == [
        ("unfinished", 2),
        ("held out", 2),
        ("unknown", 1),
        ("correct", 1),
        ("unique_texts", 1),
        ("over max_per_question", 1),
        ("over max_traces", 1),
    ]
    assert len(selection.kept) == 2
    assert all(each.kept for each in selection.kept)


def test_without_limits_everything_usable_is_kept_in_order() -> None:
    selection = select(Pipeline(parse_steps("correct, unique_texts")), MIXED)
    assert names(selection) == ["a/0", "b/0", "b/1", "c/0", "d/0"]
    assert list(selection.num_dropped.values()) == [2, 0, 2, 1, 1, 0, 0]


def test_steps_apply_in_order_and_a_second_one_of_a_name_is_counted_alone() -> None:
    judged = [trace("a", sample, text) for sample, text in enumerate(["xxx", "x", "xx", "x"])]
    kept = select(Pipeline(parse_steps("shortest: {count: 3}, unique_texts, shortest: {count: 1}")), judged)
    assert names(kept) == ["a/1"]
    counts = {name: kept.num_dropped[name] for name in ("shortest", "unique_texts", "shortest (2)")}
    assert counts == {"shortest": 1, "unique_texts": 1, "shortest (2)": 1}
    assert names(select(Pipeline(parse_steps("unique_texts, shortest: {count: 3}")), judged)) == ["a/0", "a/1", "a/2"]


# What a step needs.


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("correct, lowest_surprisal", "lowest_surprisal needs token_ends, .* think.token_scores: true"),
        ("highest_logprob", "highest_logprob needs logprob, which the traces lack; take traces that tpt sampled"),
        ("lowest_entropy", "lowest_entropy needs entropy, which the traces lack; take traces that tpt sampled"),
    ],
)
def test_traces_that_lack_what_a_step_needs_are_refused(steps: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^prune\.steps: {message}$"):
        select(Pipeline(parse_steps(steps)), [trace("a", 0, "x")])


# A user's own step.


def raises_an_error(judged: list[JudgedTrace]) -> list[JudgedTrace]:
    raise ValueError("two\nlines")


def returns_another(judged: list[JudgedTrace]) -> list[JudgedTrace]:
    return [trace("z", 0, "x")]


def returns_nothing(judged: list[JudgedTrace]) -> None:
    assert [each.trace.name for each in judged] == ["a/0", "a/2"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raises_an_error, "ValueError: two lines; return those of"),
        (returns_another, r"KeyError: \('z', 0\); return those of"),
        (returns_nothing, "TypeError: 'NoneType' object is not iterable; return"),
    ],
)
def test_mistakes_of_a_users_step_are_one_line(function: Callable[..., Any], message: str) -> None:
    judged = [trace("a", 2, "x"), trace("a", 0, "y"), trace("a", 1, "z", WRONG), trace("a", 3, "z", is_finished=False)]
    steps = parse_steps(["correct", {"own": {"function": f"{__name__}:{function.__name__}"}}])
    with pytest.raises(UserError, match=f"^step '{__name__}:{function.__name__}': {message}") as caught:
        select(Pipeline(steps), judged)
    assert "\n" not in str(caught.value)


def test_every_step_is_declared_in_full() -> None:
    for name, step in STEPS.items():
        assert issubclass(step, Step | Trim)
        assert (step.name, len(step.__doc__ or "") > 60) == (name, True)
