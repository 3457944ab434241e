"""Judges answers. tpt calls `check` in worker processes, with a limit of time and memory for each completion."""

import re

import tpt_jax as tpt

NUMBER = re.compile(r"-?\d+")


def check(question: tpt.Question, completion: str) -> tpt.Verdict:
    """Right if the last whole number of the completion is the answer; strict if it is all that the model wrote.

    True or False would do as well. `question.data` holds the other keys of the question's line.
    """
    if not NUMBER.fullmatch(question.answer):
        return tpt.Verdict.unreadable()  # neither right nor wrong: such a question is never trained on
    numbers = NUMBER.findall(completion.replace(",", ""))
    if not numbers:
        return tpt.Verdict.wrong("no answer")
    correct = int(numbers[-1]) == int(question.answer)
    return tpt.Verdict(numbers[-1], strict=correct and completion.strip() == numbers[-1], correct=correct)
