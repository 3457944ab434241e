"""A round without traces to train on: the message names the setting to change."""

from pathlib import Path
from typing import Any

import pytest

from tpt_jax.config_parsing import load_config
from tpt_jax.errors import UserError
from tpt_jax.loop.training_set import check_training_set
from tpt_jax.prompts import Example
from tpt_jax.prune.summary import FORMAT_ONLY, STRICT, WRONG

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
SETTINGS: dict[str, Any] = {"think.max_new_tokens": 512, "train.sequence_length": 64}
EXAMPLES = [Example(tuple(range(72 + extra)), num_prompt=5) for extra in (3, 0)]  # the last token takes no room


def selection(num_correct: int, num_cut: int, emptied_by: str = "", **verdicts: int) -> dict[str, Any]:
    """The figures of a selection among 400 traces; half of the finished ones are dropped before the last step."""
    counts = {STRICT: 0, FORMAT_ONLY: num_correct, "no answer": 300, **verdicts}
    half = (400 - num_cut) // 2
    num_dropped = {"unfinished": num_cut, "any": half, emptied_by: 400 - num_cut - half, "over max_traces": 0}
    return {"num_traces": 400, "num_correct": num_correct, "num_dropped": num_dropped, "verdicts": counts}


@pytest.mark.parametrize(
    ("examples", "pruned", "message"),
    [
        (
            EXAMPLES,
            selection(2, 0),
            "none of the 2 kept traces fits train.sequence_length (64): the shortest needs 71; set at least that, "
            "in another --run_dir",
        ),
        (
            [],
            selection(0, 380, "correct", **{WRONG: 100}),
            "no trace was kept: 0 of 400 correct (no answer: 300, wrong answer: 100), 380 cut at think.max_new_tokens "
            "(512); none was left after correct; raise think.max_new_tokens, or give in prompt.stop a text that "
            "follows an answer, in another --run_dir",
        ),
        (
            [],
            selection(100, 0, "strict"),
            "no trace was kept: 100 of 400 correct (no answer: 300); none was left after strict; set correct "
            "instead of it in prune.steps, in another --run_dir",
        ),
        (
            [],
            selection(100, 0, "majority"),
            "no trace was kept: 100 of 400 correct (no answer: 300); none was left after majority; leave it out of "
            "prune.steps, or change its options, in another --run_dir",
        ),
        (
            [],
            selection(0, 3, "strict", **{WRONG: 100}),
            "no trace was kept: 0 of 400 correct (no answer: 300, wrong answer: 100), 3 cut at think.max_new_tokens "
            "(512); none was left after strict; set prompt.num_shots, ask easier questions, or sample more "
            "(think.num_questions, think.num_samples), in another --run_dir",
        ),
    ],
    ids=["too long", "cut", "not strict", "no majority", "wrong"],
)
def test_the_message_says_why_there_is_nothing_to_train_on(
    examples: list[Example], pruned: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        check_training_set(examples, 3, pruned, load_config(QUICKSTART, SETTINGS))
    assert str(error.value) == f"round 3: {message}"


def test_one_example_that_fits_is_enough() -> None:
    config = load_config(QUICKSTART, {**SETTINGS, "train.sequence_length": 71})
    check_training_set(EXAMPLES, 1, selection(2, 0), config)
