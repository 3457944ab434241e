"""Each step that selects, against a plain reference or a case worked out by hand; calculations and reasoning steps."""

import collections
import itertools
import statistics
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpt_jax.prune.apply import select
from tpt_jax.prune.calculations import equations, shape
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.prune.reasoning_steps import reasoning_steps, tokens_of
from tpt_jax.prune.registry import parse_steps
from tpt_jax.prune.steps.diversity import farthest_first
from tpt_jax.records import JudgedTrace, Trace, Verdict

# Calculations.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3+4=7", ["3+4=7"]),
        ("She has 3 red apples + 4 apples = <<3+4=7>>7 apples.", ["3+4=7"]),
        ("$1,200.50 \\times 2 = $2,401.00", ["1200.5*2=2401"]),
        ("2 x 3 = 6, and 12 books x 2 = 24; 8 ÷ 4 = 2; 5 × .50 = 2.5", ["2*3=6", "12*2=24", "8/4=2", "5*0.5=2.5"]),
        (r"\frac{6}{2} = 3, \[ (2 + 3) \cdot 4 = 20 \text{ km} \]", ["6/2=3", "(2+3)*4=20"]),
        ("8 miles/hour * 4 hours/day = 32 miles; a 5-year-old", ["8*4=32"]),
        ("**Step 1:** 20% * 50 = **10**", ["20%*50=10"]),
        ("3 + 4 = 7 = 14 / 2", ["3+4=7=14/2"]),
        ("x = 7 and y = 3 \n #### 7", []),
        ("1. 5 + 5 = 10\n2. 10 - 3 = 7", ["5+5=10", "10-3=7"]),
        ("from 3 of 9 to 4", []),
    ],
)
def test_equations_are_read_however_they_are_written(text: str, expected: list[str]) -> None:
    assert equations(text) == expected


def test_a_shape_has_no_numbers() -> None:
    assert shape("(2.5+3)*14=77") == "(#+#)*#=#"


# Reasoning steps.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One.\nStill one.\n\nTwo.\n \nThree.\n", ["One.\nStill one.", "Two.", "Three."]),
        ("a = 1. So\nb = 2\n\n", ["a = 1. So", "b = 2"]),
        ("Mr. A has 1.5 km. He sells it! Why?", ["Mr. A has 1.5 km.", "He sells it!", "Why?"]),
        ("  one", ["one"]),
        ("\n \n", []),
    ],
)
def test_steps_are_paragraphs_or_lines_or_sentences(text: str, expected: list[str]) -> None:
    assert [text[start:end].strip() for start, end in reasoning_steps(text)] == expected


@given(st.text(alphabet="a1. \n!", max_size=40))
def test_steps_cover_the_text_and_are_never_blank(text: str) -> None:
    steps = reasoning_steps(text)
    assert "".join(text[start:end] for start, end in steps) == (text if text.strip() else "")
    assert all(text[start:end].strip() for start, end in steps)
    ends = range(1, len(text) + 1)  # a token a character
    assert [*itertools.chain.from_iterable(tokens_of(step, ends) for step in steps)] == [*range(len(text))] * bool(
        steps
    )


# Steps that rank or filter the samples of a question, against plain references.


def judged(
    sample: int,
    text: str = "x",
    *,
    tokens: int = 1,
    correct: bool = True,
    answer: str | None = "1",
    name: str = "a",
    logprob: float = -1.0,
    entropy: float = 1.0,
    is_finished: bool = True,
) -> JudgedTrace:
    finish_reason = "stop" if is_finished else "length"
    trace = Trace(name, sample, text, (0,) * tokens, logprob, finish_reason, entropy=entropy)
    return JudgedTrace(trace, Verdict(answer, strict=correct, correct=correct))


def kept(steps: str, traces: Sequence[JudgedTrace], seed: int = 0) -> list[int]:
    return [each.trace.sample for each in select(Pipeline(parse_steps(steps), seed=seed), traces).kept]


TEXTS = ["1 + 1 = 2", "So 1+1=2.", "1 + 1 = 2\n\n2 + 1 = 3", "a\n\nb\n\nc", "a\nb", "a"]
SAMPLES = st.lists(
    st.tuples(
        st.sampled_from(TEXTS), st.integers(1, 5), st.sampled_from([-1.0, -3.5, -2.0]), st.sampled_from([0.5, 2.0, 3.0])
    ),
    min_size=1,
    max_size=9,
).map(
    lambda rows: [
        judged(sample, text, tokens=tokens, logprob=logprob, entropy=entropy)
        for sample, (text, tokens, logprob, entropy) in enumerate(rows)
    ]
)
NUM_STEPS = {text: text.count("\n\n") + 1 for text in TEXTS} | {"a\nb": 2}


def middle(traces: list[JudgedTrace]) -> float:
    return statistics.median(len(each.trace.token_ids) for each in traces)


RANKINGS: dict[str, Callable[[JudgedTrace, list[JudgedTrace]], object]] = {
    "shortest": lambda each, _: len(each.trace.token_ids),
    "median_length": lambda each, traces: (
        abs(len(each.trace.token_ids) - middle(traces)),
        len(each.trace.token_ids),
    ),
    "fewest_steps": lambda each, _: NUM_STEPS[each.trace.completion],
    "highest_logprob": lambda each, _: -each.trace.logprob / (len(each.trace.token_ids) + 1),
    "lowest_logprob": lambda each, _: each.trace.logprob / (len(each.trace.token_ids) + 1),
    "lowest_entropy": lambda each, _: each.trace.entropy / NUM_STEPS[each.trace.completion],
}


@pytest.mark.parametrize("name", RANKINGS)
@settings(max_examples=25)
@given(traces=SAMPLES, count=st.integers(1, 3))
def test_rankings_keep_the_first_of_each_question(name: str, traces: list[JudgedTrace], count: int) -> None:
    ranked = sorted(traces, key=lambda each: (RANKINGS[name](each, traces), each.trace.sample))  # pyright: ignore
    assert kept(f"{name}: {{count: {count}}}", traces) == sorted(each.trace.sample for each in ranked[:count])


def test_lengths_are_in_characters_where_only_the_text_is_known() -> None:
    traces = [judged(sample, text, tokens=0) for sample, text in enumerate(["xxx", "xx", "xxxxx"])]
    assert (kept("shortest", traces), kept("median_length", traces)) == ([1], [0])


@settings(max_examples=40)
@given(traces=SAMPLES)
def test_the_first_of_each_text_or_calculation_is_kept(traces: list[JudgedTrace]) -> None:
    texts = [each.trace.completion for each in traces]
    assert kept("unique_texts", traces) == sorted({texts.index(text) for text in texts})
    same = [text.replace("So 1+1=2.", "1 + 1 = 2") for text in texts]
    assert kept("unique_calculations", traces) == sorted({same.index(text) for text in same})


def test_equal_solutions_of_two_questions_are_both_kept() -> None:
    traces = [judged(0, "1 + 1 = 2", name=name) for name in "ab"]
    assert len(kept("unique_texts, unique_calculations", traces)) == 2


@given(
    st.lists(st.tuples(st.sampled_from(["7", "8", "9", None]), st.booleans(), st.booleans()), max_size=8), st.booleans()
)
def test_the_majority_has_more_votes_than_any_other_answer(
    rows: list[tuple[str | None, bool, bool]], is_right: bool
) -> None:
    """Whether an answer is right plays no part; unfinished traces have no vote."""
    traces = [
        judged(sample, str(sample), answer=answer, correct=correct is is_right, is_finished=is_finished)
        for sample, (answer, correct, is_finished) in enumerate(rows)
    ]
    votes = [answer for answer, _, is_finished in rows if is_finished and answer is not None]
    winners = [one for one in set(votes) if all(votes.count(one) > votes.count(two) for two in set(votes) - {one})]
    expected = [sample for sample, row in enumerate(rows) if row[2] and row[0] in winners]
    assert kept("majority", traces) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("{low: 0.5, high: 0.5}", ["half"]),
        ("{high: 0.75}", ["half"]),
        ("{low: 0.75}", ["all"]),
        ("{}", ["all", "half"]),
    ],
)
def test_the_pass_rate_is_that_of_all_samples_wherever_the_step_stands(options: str, expected: list[str]) -> None:
    """Of "half" one of two is right, the wrong one unfinished; a sample of unknown verdict does not count."""
    traces = [
        *(judged(sample, str(sample), name="all") for sample in range(2)),
        judged(0, name="half"),
        judged(1, name="half", correct=False, is_finished=False),
        JudgedTrace(Trace("half", 2, "x"), Verdict.unreadable()),
        judged(0, name="none", correct=False),
    ]
    for steps in (f"correct, pass_rate: {options}", f"pass_rate: {options}, correct"):
        selection = select(Pipeline(parse_steps(steps)), traces)
        assert sorted({each.trace.id for each in selection.kept}) == expected


# Scores of tokens.


def scored(sample: int, text: str, scores: dict[str, float]) -> JudgedTrace:
    """A trace whose tokens are the keys, with -log p or entropy as values."""
    ends = tuple(itertools.accumulate(map(len, scores)))
    assert ends[-1] == len(text) == len("".join(scores))
    values = tuple(scores.values())
    trace = Trace(
        "a",
        sample,
        text,
        tuple(range(len(scores))),
        token_logprobs=tuple(-value for value in values),
        token_entropies=values,
        token_ends=ends,
    )
    return JudgedTrace(trace, Verdict("1", strict=True, correct=True))


def test_surprisal_is_that_of_the_first_token_of_each_step() -> None:
    """Means 2 and 2.5; over all tokens the order would be the other one."""
    calm = scored(0, "So one.\n\nNow two.", {"So": 1.0, " one.": 9.0, "\n\n": 9.0, "Now": 3.0, " two.": 9.0})
    wild = scored(1, "So one.\n\nNow two.", {"So": 1.5, " one.": 0.0, "\n\n": 0.0, "Now": 3.5, " two.": 0.0})
    assert kept("lowest_surprisal", [wild, calm]) == [0]
    whole = scored(2, "So one.\n\nNow two.", {"So": 1.0, " one": 5.0, ".\n\nNow": 3.4, " two.": 0.0})
    assert kept("lowest_surprisal: {count: 2}", [wild, whole, calm]) == [0, 2]  # a token may straddle the border


# Draws.


def test_a_draw_of_some_gives_each_trace_the_same_chance() -> None:
    traces = [judged(sample, str(sample)) for sample in range(4)]
    drawn = collections.Counter(sample for seed in range(400) for sample in kept("random: {count: 1}", traces, seed))
    assert drawn.total() == 400
    assert all(66 <= drawn[sample] <= 134 for sample in range(4))  # 100 expected, four standard deviations


def test_a_draw_of_a_share_does_not_depend_on_the_other_traces() -> None:
    traces = [judged(sample, str(sample)) for sample in range(1_000)]
    drawn = kept("random: {share: 0.3}", traces)
    assert 242 <= len(drawn) <= 358  # 300 expected, four standard deviations
    assert kept("random: {share: 0.3}", traces[::2]) == [sample for sample in drawn if sample % 2 == 0]
    assert set(kept("random: {share: 0.3}", traces, seed=1)) != set(drawn)
    assert (kept("random: {share: 0}", traces), len(kept("random: {share: 1}", traces))) == ([], 1_000)


# Diversity.


@given(
    st.lists(
        st.sets(st.integers(0, 9), max_size=4), min_size=1, max_size=12, unique_by=lambda each: tuple(sorted(each))
    ),
    st.integers(1, 12),
)
def test_farthest_first_against_all_distances(sets: list[frozenset[int]], count: int) -> None:
    def distance(left: frozenset[int], right: frozenset[int]) -> float:
        return 1 - len(left & right) / len(left | right) if left | right else 0.0

    taken = [0]
    while len(taken) < min(count, len(sets)):
        others = [index for index in range(len(sets)) if index not in taken]
        taken.append(max(others, key=lambda other: (min(distance(sets[other], sets[one]) for one in taken), -other)))
    assert farthest_first([sorted(each) for each in sets], count) == taken


def test_diverse_traces_calculate_differently() -> None:
    texts = ["1 + 2 = 3", "5 + 6 = 11", "7 + 1 = 8", "3 * 4 = 12", "1 + 2 = 3, 3 * 4 = 12", "words"]
    traces = [judged(0, text, name=f"q{index}") for index, text in enumerate(texts)]

    def names(count: int) -> set[str]:
        steps = parse_steps([{"diverse": {"count": count}}])
        return {each.trace.id for each in select(Pipeline(steps), traces).kept}

    sums = {"q0", "q1", "q2"}
    assert len(names(3) & sums) == 1  # one of the sums that are alike
    assert names(4) >= {"q3", "q4", "q5"}
    assert [len(names(count)) for count in (1, 2, 5, 6, 9)] == [1, 2, 5, 6, 6]
