"""One table of phrases, read by every checker: what announces an answer, what does not, and what takes it back."""

import pytest

from tpt_jax.checks.answers.choice import check_choice
from tpt_jax.checks.answers.extract import Missing, extract_answer
from tpt_jax.checks.answers.latex import check_math
from tpt_jax.checks.answers.number import check_numeric
from tpt_jax.checks.answers.tagged import TEXT_READER
from tpt_jax.records import Question, Verdict

CHOICES = ("Paris", "London", "Rome", "Oslo")
# What each checker is asked for, and another value of the same kind; {x} and {y} in the phrases.
VALUES = {
    "number": ("18", "21"),
    "latex": (r"$\frac{3}{4}$", r"$\frac{5}{4}$"),
    "choice": ("C", "B"),
    "text": ("LURD", "RRUL"),
}
# Formulas need no delimiters where something else ends them.
BARE = {
    "number": ("18", "21"),
    "latex": (r"\frac{3}{4}", r"\frac{5}{4}"),
    "choice": ("C", "B"),
    "text": ("LURD", "RRUL"),
}


def read(kind: str, completion: str, *, is_finished: bool = True) -> Verdict:
    """The verdict on a completion whose right answer is {x}."""
    reference = BARE[kind][0]
    if kind == "number":
        return check_numeric(Question("q", "How many?", reference), completion, is_finished=is_finished)
    if kind == "latex":
        return check_math(Question("q", "How much?", reference), completion, is_finished=is_finished)
    if kind == "choice":
        question = Question("q", "Which?", reference, {"choices": CHOICES})
        return check_choice(question, completion, is_finished=is_finished)
    answer = extract_answer(completion, TEXT_READER, is_finished=is_finished)
    if isinstance(answer, Missing):
        return Verdict.wrong(answer.value)
    correct = answer.value.strip("$") == reference
    return Verdict(answer.value, strict=correct, correct=correct)


def phrase(kind: str, template: str) -> str:
    """A phrase with a checker's values; in <>, boxes and JSON formulas have no delimiters."""
    values = (BARE if any(sign in template for sign in ("boxed", "<", '"answer"', "answer:")) else VALUES)[kind]
    return template.replace("{x}", values[0]).replace("{y}", values[1])


STANDS = (
    "#### {x}",
    "so\n#### {x}\n",
    "####{x}",
    "####\n\n{x}",
    "**#### {x}**",
    "#### Answer: {x}",
    "<answer>{x}</answer>",
    "<answer> {x} </answer> as said",
    r"\boxed{{x}}",
    r"it is $\boxed{{x}}$.",
    r"\fbox{{x}} and that is all",
    "The answer is {x}.",
    "The answer is: {x}",
    "The answer is **{x}**.",
    "the final answer is {x}",
    "The answer has to be {x}.",
    "The answer must be {x}.",
    "The answer should be {x}.",
    "The answer would be {x}.",
    "The answer equals {x}.",
    "The answer comes out to {x}.",
    "The answer to the question is {x}.",
    "The correct answer is therefore {x}.",
    "So the answer is most likely {x}.",
    "**Answer:** {x}",
    "**Answer**: {x}",
    "Answer: {x}",
    "Answer - {x}",
    "Final Answer: {x}",
    "**Final Answer:**\n{x}",
    "**Final Answer**\n\n{x}",
    "## Answer\n\n{x}",
    "### Final Answer:\n{x}\n\nNothing else is left to do.",
    "A: {x}",
    '{"answer": "{x}"}',
    '```json\n{"reasoning": "I added them.", "answer": "{x}"}\n```',
    "{'final_answer': '{x}'}",
    "We are done, and {x} is the answer.",
    # Doubts that end at the same answer, and talk that doubts nothing.
    "The answer is {x}. Let me double-check that. Yes, the answer is {x}.",
    "The answer is {y}. Wait, that is wrong. The answer is {x}.",
    "#### {x}\n\nThat is correct.",
    "#### {x} (Note: the correct answer is {x}, not {y})",
    r"\boxed{{y}}. Wait, I made a mistake. \boxed{{x}}. Let me check again. \boxed{{x}}. I apologize for that.",
    "The answer is {x}, not {y}.",
    "The wrong answer is {y}. The answer is {x}.",
    "If the answer is {y}, two are left over, so the answer is {x}.",
    "We cannot take more, and the answer is {x}.",
    "To verify our answer, let's recap: all is well.\n#### {x}",
    "To answer the question, look at it closely. The answer is {x}.",
    # Hidden reasoning, and what a base model writes after its answer.
    "<think>The answer is {y}.</think>The answer is {x}.",
    "#### {x}\n\nQuestion: And now?\nAnswer: #### {y}",
    "#### {x}\n\n[Question] And now?\n[Answer] #### {y}",
    "#### {x}\nQ: And now?\nA: #### {y}",
    "#### {x}\n\nExample 2:\nWhat is it now?\n#### {y}",
    "#### {x}\nuser\nWhat is it now?\nassistant\n#### {y}",
    "#### {x}<|im_end|>\n<|im_start|>user\nWhat is it now?\n#### {y}",
    "#### {x}</s>[INST] What is it now? [/INST] #### {y}",
    "#### {x}\n\nA man walks home. How far does he walk in an hour?\nHe walks far.\n#### {y}",
    "#### {x}\nCalculate how far a man walks in an hour.\nHe walks far.\n#### {y}",
    "The answer is {x}.\n\nProblem 2\nWhat is it now?\nThe answer is {y}.",
    "The answer is {x}.\n\n### Instruction:\nSolve it.\n\n### Response:\nThe answer is {y}.",
    "Let me restate it.\nQuestion: which is it?\nAnswer: {x}",
)
NO_ANSWER = (
    "",
    "####",
    "The answer is",
    r"\boxed{",
    r"\boxed{}",
    r"#### {x}" + "\nWait, that is wrong.",
    "The answer is not {x}.",
    "The answer isn't {x}.",
    "The answer is {x}. The answer is not {x}.",
    "I don't think the answer is {x}.",
    "Suppose the answer is {x}. That contradicts the text.",
    "The wrong answer is {x}.",
    "The answer is {x}. No, the answer cannot be determined.",
    "So it is {x}.\nFinal answer: cannot be determined",
    "So it is {x}.\nThe answer is unknown.",
    'So it is {x}.\n{"answer": "unknown"}',
    "So it is {x}.\n**Final Answer:** N/A",
    "<think>So the answer is {x}. Let me see what else there is to",
    "<think>So the answer is {x}. But wait",
    "<think>So the answer is {x}.</think>",
    "So we get {x}. Let me write a program:\n```python\nprint(",
    "So we get {x}, as\n\\[",
    "The answer is {x}. Wait, I forgot one. The answer is {y}.",
    "#### {x}\n\nHowever, the answer is {y}.",
    "#### {y}",
)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("template", STANDS)
def test_an_announcement_that_stands_is_read_by_every_checker(kind: str, template: str) -> None:
    verdict = read(kind, phrase(kind, template))
    assert verdict.correct, verdict


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("template", NO_ANSWER)
def test_what_does_not_stand_is_read_by_none(kind: str, template: str) -> None:
    assert not read(kind, phrase(kind, template)).correct
