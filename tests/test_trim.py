"""Steps that trim a trace: what they drop, the verdict that must not change, and the tokens of what is left."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tpt_jax
from tpt_jax.checks.answers.ending import answer_span
from tpt_jax.checks.answers.number import check_numeric
from tpt_jax.errors import UserError
from tpt_jax.io.paths import to_path
from tpt_jax.prompts import Prompt, load_prompt
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.prune.reasoning_steps import reasoning_steps
from tpt_jax.prune.registry import parse_steps
from tpt_jax.prune.trim import trim, trimmed_completion
from tpt_jax.records import JudgedTrace, Question, Trace, Verdict

AFTER_ANSWER = Pipeline(parse_steps("correct, trim_after_answer"))
QUESTION = "How many apples are 3 apples and 4 apples?"


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    """With the tokenizer of the model that ships."""
    return load_prompt(to_path(Path(tpt_jax.__file__).parent / "quickstart" / "model"))


# The final answer.


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("3 + 4 = 7\n#### 7\n\nLet me know!", "#### 7"),
        ("**#### Answer: $7**\n\nGood luck", "Answer: $7**"),
        ("The answer is 7. I hope that helps.", "answer is 7."),
        ("So \\boxed{7}. Check: 3 + 4 is 7.", "\\boxed{7}."),
        ("<answer>7</answer> as said", "<answer>7</answer>"),
        ("#### 8\nWait, no.\n#### 7 apples\nDone", "#### 7 apples"),
        ("#### 7\n\nQuestion: 1 + 1?\n#### 2", "#### 7"),
        ("<think>\n#### 3\n</think>\n#### 7\nBye", "#### 7"),
        ("The answer is not 8", None),
        ("3 + 4 is 7", None),
        ("", None),
    ],
)
def test_the_final_answer_is_found(completion: str, answer: str | None) -> None:
    span = answer_span(completion)
    assert (None if span is None else completion[span[0] : span[1]]) == answer


def test_text_after_the_answer_is_dropped() -> None:
    def trimmed(completion: str) -> str:
        return trimmed_completion(AFTER_ANSWER, Trace("a", 0, completion))

    assert trimmed(" 3 + 4 = 7\n#### 7 \n\nLet me know!") == " 3 + 4 = 7\n#### 7"
    assert trimmed("3 + 4 is 7, bye") == "3 + 4 is 7, bye"
    assert trimmed("#### 7\n") == "#### 7\n"  # as sampled: only whitespace follows


# Steps of low entropy.


def with_entropies(completion: str, entropies: Sequence[float]) -> Trace:
    """A trace whose tokens are its characters; each step's are as uncertain as given."""
    of_tokens = [
        entropy
        for (start, end), entropy in zip(reasoning_steps(completion), entropies, strict=True)
        for _ in range(start, end)
    ]
    ends = tuple(range(1, len(completion) + 1))
    return Trace("a", 0, completion, ends, token_entropies=tuple(of_tokens), token_ends=ends)


def test_steps_of_lowest_entropy_go_as_long_as_the_share_is_left() -> None:
    """Lines of 2, 4, 6 and 6 tokens, of entropy 10, 4, 12 and 0; the answer stays."""
    trace = with_entropies("a\nbbb\nccccc\n#### 7", [5.0, 1.0, 2.0, 0.0])

    def left(share: float) -> str:
        return trimmed_completion(Pipeline(parse_steps([{"trim_steps": {"share": share}}])), trace)

    assert left(0.99) == left(0.8) == trace.completion
    assert left(14 / 18) == left(0.7) == "a\nccccc\n#### 7"
    assert left(12 / 18) == left(0.4) == "ccccc\n#### 7"
    assert left(6 / 18) == left(0.01) == "#### 7"


@settings(max_examples=60)
@given(
    lines=st.lists(st.sampled_from(["a", "bb", "ccc", "#### 7", "so 8"]), min_size=2, max_size=6),
    entropies=st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=6, max_size=6),
    share=st.floats(0.05, 0.95),
)
def test_the_steps_dropped_are_the_first_by_entropy_that_fit(
    lines: list[str], entropies: list[float], share: float
) -> None:
    completion = "\n".join(lines)
    trace = with_entropies(completion, entropies[: len(lines)])
    (step,) = Pipeline(parse_steps([{"trim_steps": {"share": share}}])).trims
    steps = reasoning_steps(completion)
    held = max((index for index, line in enumerate(lines) if line == "#### 7"), default=len(lines) - 1)
    others = [index for index in range(len(lines)) if index != held]
    sizes = [end - start for start, end in steps]
    others.sort(key=lambda index: entropies[index] * sizes[index])
    lefts = [len(completion) - sum(sizes[index] for index in others[:count]) for count in range(len(others) + 1)]
    count = max(count for count, left in enumerate(lefts) if left >= share * len(completion))
    assert list(step.drop(trace)) == [steps[index] for index in others[:count]]


def test_trims_come_last() -> None:
    with pytest.raises(UserError, match=r"^prune\.steps: trim_after_answer comes before shortest; put it after all"):
        parse_steps("correct, trim_after_answer, shortest")
    with pytest.raises(UserError, match=r"^prune\.steps\.trim_steps\.share \(1\.5\): input should be less than 1"):
        parse_steps("trim_steps: {share: 1.5}")


# What becomes of the traces.


def judge(traces: Sequence[Trace]) -> list[Verdict]:
    return [check_numeric(Question("a", QUESTION, "7"), trace.completion) for trace in traces]


def judged(completion: str, token_ids: tuple[int, ...] = (5, 6)) -> JudgedTrace:
    trace = Trace("a", 0, completion, token_ids, logprob=-3.0, token_logprobs=(-1.0, -2.0), entropy=2.0)
    return JudgedTrace(trace, judge([trace])[0], kept=True)


def test_a_trimmed_trace_is_tokenized_anew_and_whole_ones_keep_their_tokens(prompt: Prompt) -> None:
    """Its example is what the chat template renders, token by token: the prompt's contract."""
    whole, long = judged("3 + 4 = 7\n#### 7"), judged("3 + 4 = 7\n#### 7\nLet me know!")
    new = trim(AFTER_ANSWER, [whole, long], judge, lambda trace: prompt.completion_ids(trace.completion))
    assert new[0] is whole
    ids = prompt.completion_ids("3 + 4 = 7\n#### 7")
    assert new[1] == JudgedTrace(Trace("a", 0, "3 + 4 = 7\n#### 7", ids), whole.verdict, kept=True)
    assert prompt.is_faithful(QUESTION, new[1].trace.completion)
    example = prompt.example(QUESTION, new[1].trace.token_ids)
    assert example.tokens[: example.num_prompt] == prompt.prompt_ids(QUESTION)
    assert prompt.text(example.tokens[example.num_prompt :]).startswith("3 + 4 = 7\n#### 7")


def test_a_trace_whose_verdict_would_change_stays_whole() -> None:
    """The first is taken back after its answer, so that it is wrong; without its end it would be right."""
    taken_back = judged("#### 7\nWait, that is wrong. It is 8.")
    assert not taken_back.verdict.correct
    assert trimmed_completion(AFTER_ANSWER, taken_back.trace) == "#### 7"
    assert trim(AFTER_ANSWER, [taken_back], judge) == [taken_back]


def test_a_text_that_cannot_be_tokenized_faithfully_stays_whole() -> None:
    long = judged("#### 7\nLet me know!")
    assert trim(AFTER_ANSWER, [long], judge, lambda trace: None) == [long]


def test_select_trims_and_judges_again() -> None:
    questions = tpt_jax.QuestionSet((Question("a", QUESTION, "7"),))
    texts = ("3 + 4 = 7\n#### 7\nBye", "#### 7\nThat is wrong: it is 8.", "#### 8")
    verdicts = [judge([Trace("a", 0, text)])[0] for text in texts]
    traces = [JudgedTrace(Trace("a", sample, text), verdicts[sample]) for sample, text in enumerate(texts)]
    judged = tpt_jax.Traces(tuple(traces), questions)
    kept = tpt_jax.select(judged, steps=["any", "trim_after_answer"], max_per_question=None)
    assert [each.trace.completion for each in kept] == ["3 + 4 = 7\n#### 7", *texts[1:]]
    assert tpt_jax.select(judged, steps="correct, {pass_rate: {high: 0.2}}").num_dropped["pass_rate"] == 1
    with pytest.raises(UserError, match="the traces have no verdicts; give them as"):
        tpt_jax.select(tpt_jax.Traces((traces[0].trace,), questions))  # pyright: ignore[reportArgumentType]


# Where tokens end.


@pytest.mark.parametrize("text", ["3 + 4 = 7\n#### 7", "  two  words", "naïve 数学 🎉🎉 ½ x", "é", ""])
def test_token_ends_are_the_lengths_of_decoded_prefixes(prompt: Prompt, text: str) -> None:
    ids = prompt.completion_ids(text)
    whole = prompt.text(ids)
    prefixes = [prompt.text(ids[: index + 1]) for index in range(len(ids))]
    expected = [len(prefix.rstrip("\ufffd")) for prefix in prefixes[:-1]] + [len(whole)] * bool(ids)
    assert list(prompt.token_ends(ids)) == expected
