"""The numeric checker: finds the final answer that a human reader would, or none."""

import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpt_jax.checks.answers.doubt import find_doubt
from tpt_jax.checks.answers.extract import Answer, extract_answer
from tpt_jax.checks.answers.number import NUMBER_READER, canonical, check_numeric, parse_number
from tpt_jax.io.files import read_jsonl
from tpt_jax.records import Question, Verdict

SAMPLE = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared/ folder is not next to the checkout")


def check(answer: str, completion: str) -> Verdict:
    return check_numeric(Question("q", "?", answer), completion)


@pytest.mark.parametrize(
    ("completion", "answer", "correct", "strict"),
    [
        # The requested format and the variants that models write.
        ("6 * 3 = 18\n#### 18", "18", True, True),
        ("#### 1,234", "1234", True, True),
        ("#### 1234", "1,234", True, True),
        ("#### 18.", "18", True, True),
        ("**#### 18**", "18", True, True),
        ("#### 18.00", "18", True, False),  # strict-match compares strings
        ("#### $18", "18", True, False),
        ("####18", "18", True, False),
        ("####\n\n18", "18", True, False),
        ("#### Answer: $18", "18", True, False),
        ("#### **: $18.00", "18", True, False),
        ("#### **[18 apples]**", "18", True, False),
        ("#### 4 * 5 = 20", "20", True, False),
        ("#### 32 / 3 ≈ 10.67", "10.67", True, False),
        ("#### 18 = x", "18", True, True),
        ("#### Adam is 4 feet tall in **5 years**.", "5", True, False),
        ("#### - $11.00", "11", True, False),  # a dash, not a sign
        ("#### -11", "-11", True, True),
        ("#### 2:00 PM", "2", True, True),
        # Other markers.
        (r"so it is \boxed{276{,}000}.", "276000", True, False),
        (r"\boxed{\frac{1}{2}} of 30 is 15", "0.5", True, False),
        (r"\boxed{1\frac12}", "1.5", True, False),
        (r"\boxed{x = 18\text{ cm}}", "18", True, False),
        (r"**The answer is:** \$1,30,000", "130000", True, False),
        ("The final answer is -5 degrees.", "-5", True, False),
        ("The ANSWER to the question is 18.", "18", True, False),
        ("**Answer**: 18 dollars\nThat is 3 more than 15.", "18", True, False),
        ("<answer>18</answer>", "18", True, False),
        ("6 - 1 = 5\nA: 5", "5", True, False),
        # No marker: the last number, or one in bold.
        ("She has 2 1/2 pies", "2.5", True, False),
        ("he sold 5 and kept 7 apples.", "7", True, False),
        ("So **7** are left (of 12).\nLet me know!", "7", True, False),
        # Number formats.
        ("#### 1e2", "100", True, False),
        (r"#### 4 \times 10^{3}", "4000", True, False),
        ("#### 1 000 000", "1000000", True, False),
        ("#### 1\u202f000", "1000", True, False),
        ("#### 3½ hours", "3.5", True, False),
        ("#### 3,5", "3.5", True, False),
        ("#### two apples", "2", True, False),
        ("#### Twenty-five", "25", True, False),
        ("#### 25%", "25", True, True),
        ("#### 25%", "0.25", True, False),
        ("#### 0.25", "25%", True, False),
        ("#### 1.5 million dollars", "1500000", True, False),
        ("#### 1.5 million", "1.5", False, False),  # unless the question counts in millions: see below
        ("#### $5k", "5000", True, False),
        # Wrong.
        ("#### 17", "18", False, False),
        ("#### 18\nor rather\n#### 17", "18", False, False),
        ("#### 18\nThe answer is 5", "18", False, False),
        ("#### 18 = 3", "18", False, False),  # the format alone is not strict
        ("10-5", "-5", False, False),
        ("#### 1/2", "1", False, False),
        ("#### 12:43", "43", False, False),
        ("#### 20+1", "20", False, False),
        ("#### 20 + 1", "1", False, False),
        (r"#### 2\pi", "2", False, False),
        ("#### 17 or 18", "17", False, False),
        ("#### 36 candles, 20 flashlights", "36", False, False),
        ("#### 3 hours and 59 minutes", "3", False, False),
        ("#### 50%", "50000000", False, False),
        ("#### 50 million", "50%", False, False),
        ("#### One of them", "1", False, False),
        # Unfinished calculations: the first operand is no answer.
        ("#### 20 - 5", "20", False, False),
        ("#### 5 x 5", "5", False, False),
        ("#### 5 plus 5", "5", False, False),
        (r"\boxed{5+5}", "5", False, False),
        (r"#### 20 \div 4", "20", False, False),
        ("#### 10 divided by 2", "10", False, False),
        ("#### 2^3", "2", False, False),
        (r"\boxed{2^{10}}", "2", False, False),
        (r"\boxed{5x}", "5", False, False),
        ("#### 2 pi", "2", False, False),
        ("The answer is 3 : 2", "3", False, False),
        ("#### > 8", "8", False, False),
        # Several numbers, or a quantity in two units.
        ("#### 4 5", "4", False, False),
        ("#### 1 hour 30 minutes", "1", False, False),
        ("#### 6 feet 2 inches", "6", False, False),
        ("#### 8'6\"", "8", False, False),
        ("#### Emma: 14, Joe: 7", "7", False, False),
        ("#### Emma has 14 and Joe has 7", "7", False, False),
        (r"\boxed{5} and \boxed{7}", "7", False, False),
        ("#### 16 oz = 1 lb", "1", False, False),
        # Number words are read to their end.
        ("#### one hundred", "1", False, False),
        ("#### two hundred fifty dollars", "250", True, False),
        ("#### twenty thousand", "20000", True, False),
        ("#### two-thirds", "2", False, False),
        ("#### one and a half", "1", False, False),
        ("#### seven or eight", "7", False, False),
        ("#### negative 3", "3", False, False),
        ("#### negative 3", "-3", True, False),
        ("The answer is 1 million", "1", False, False),
        # Answers taken back or denied.
        ("The answer is 18. Hold on, I forgot 9.\n\nSo the correct answer should be 27.", "18", False, False),
        ("The answer is 18. Hold on, I forgot 9.\n\nSo the correct answer should be 27.", "27", True, False),
        ("#### 18\n\nHmm, let me double check: 18 + 9 = 27.\n\nTherefore, the total is **27**.", "18", False, False),
        ("#### 18\nWait, I made an error: it is 9*3 = 27.", "18", False, False),
        ("#### 18\nLet me double check: 9 + 9 = 18. That is correct.", "18", True, True),
        ("The answer is not 18", "18", False, False),
        # Hidden reasoning and invented turns.
        ("<think>the answer is 20? no</think>The total is 18.", "18", True, False),
        ("#### 18\n\nQuestion: What is 40 + 2?\nAnswer: #### 42", "18", True, True),
        ("The final answer is 5.\n\nHuman: What is 2+2?\nAssistant: The answer is 4.", "5", True, False),
        ("Let me restate.\nQuestion: how many?\nAnswer: 18", "18", True, False),
        # An explanation after the answer, a calculation before it.
        ("The answer is 3, since 2 + 2 = 4.", "3", True, False),
        ("The answer is 10 = 5 + 5", "10", True, False),
        ("* Money: 9 * $2 = $18\n\nTherefore, Janet makes $18 every day by selling 9 eggs.", "18", True, False),
        (r"\boxed{70,\!000}", "70000", True, False),
        ("Total:\n- 4", "4", True, False),
        ("#### 1 and 1/2", "1.5", True, False),
        ("The final answer is $18 per day for 7 days.", "18", True, False),
        # No answer, despite earlier numbers.
        ("", "18", False, False),
        ("####", "18", False, False),
        ("x = 18\n**Final answer:**\n####", "18", False, False),
        ("That would be 18 / 0.\n#### No answer\nIt cannot be solved.", "18", False, False),
        ("x = 18\n#### Let me know if you would like to see the steps!", "18", False, False),
        ("nothing here", "18", False, False),
        # Headings are not markers.
        ("#### Step 1: Add\n9 + 9 = 18", "18", True, False),
        ("#### 2. Divide\n36 / 2 = 18", "18", True, False),
        ("#### Conclusion\nShe has 18.", "18", True, False),
        ("#### 18\nThe final answer is the sum of the two.", "18", True, True),
        # Headings of solutions, and phrases that announce nothing.
        ("### Answer:\n\nJanet's ducks lay 16 eggs.\nShe makes 9 * 2 = 18 dollars.", "18", True, False),
        ("A: 12 apples\nB: 6 apples\nTotal: 12 + 6 = 18 apples", "18", True, False),
        ("To answer the question, let x = 12.\nTogether they have 18.", "18", True, False),
        ("#### Day 1\n12\n\n#### Day 2\n6\n\n**Total:** 18", "18", True, False),
        ("<answer>\nFirst y = 9.\nSo 2 * 9 = 18.\n</answer>", "18", True, False),
        ("The answer isn't 18.", "18", False, False),
        ("There is not enough information: she has 18 apples.", "18", False, False),
        ("#### No solution (18 is too large)", "18", False, False),
        # Numbers that continue.
        ("The answer is 18 trillion.", "18", False, False),
        ("The answer is 18 and a half.", "18", False, False),
        ("The answer is 18²", "18", False, False),
        ("The answer is 2 dozens", "24", True, False),
        # More invented turns.
        ("The answer is 18.\n\nQ: 3 + 4?\nA: 7. The answer is 7.", "18", True, False),
        ("The answer is 18.\n\n## Problem 2\n3 + 4?\n\nThe answer is 7.", "18", True, False),
        ("#### 18\n\nTom has 3 apples and buys 4. How many are there?\n3 + 4 = 7\n#### 7", "18", True, True),
        ("The answer is 18.<|eot_id|><|start_header_id|>user<|end_header_id|>The answer is 7.", "18", True, False),
        # An announcement that holds nothing readable: no earlier number counts.
        (r"So 18 is wrong, since \boxed{\text{No}}", "18", False, False),
        ("We have 18.\nThe answer is 3:10 pm", "3", False, False),
        ("2 + 2 = 4.\nThe answer is 3:10 pm", "4", False, False),
        ("x = 18\nThe answer cannot be determined.", "18", False, False),
        ("The answer is fifty-two point six two.", "52.62", True, False),
        ("The answer is:\n\nOne hundred and eighty", "180", True, False),
        ("The answer is ____.\n\n$18", "18", True, False),
        # A number beside a variable or an operator.
        ("#### 160 - y", "160", False, False),
        ("#### x + 160", "160", False, False),
        (r"\boxed{160/x}", "160", False, False),
        ("So there are 160 - r of them", "160", False, False),
        ("There are 160 marbles - a lot", "160", True, False),
        # A trace that ends in the middle of something.
        ("We get 18.\n```output\nTraceback (most recent call last):\nValueError: 18\n```", "18", False, False),
        ("9 + 9 = 18, and 18 + 9 =", "18", False, False),
        (r"It is 18, as $9^2 \cdot 18", "18", False, False),
        # What follows the answer.
        ("The answer is 36 hours in 4 weeks.", "36", True, False),
        ("#### 60, representing 60%", "60", True, True),
        ("The total is 118 000.", "118000", True, False),
        ("The answer is _8142_.", "8142", True, False),
        ("Answer: 4 gallons (15 liters)", "4", True, False),
        ("## Answer\n\nShe has 20 left (out of 25)", "20", True, False),
        ("The answer is:\n\nThe shop earned $1000 from selling 200 bags at $5 per bag.", "1000", True, False),
        ("12 plus 6 is 18. Bill is now on the 18th floor.", "18", True, False),
        ("So x = 100. There are 200 babies. There are 400 bees.", "400", True, False),
        # Per cent.
        ("#### 1200%", "12", False, False),
        ("#### 150%", "1.5", True, False),
        # References that were rounded, or computed in floating point.
        ("#### 5/6", "0.8333333333", True, False),
        ("#### 344330553.553", "344330553.55300003", True, False),
        ("#### 0.8333", "0.8333333333", False, False),
        ("#### 1/3", "0.33", False, False),
        # Hostile traces.
        ("9**9**9", "18", False, False),
        ("1" * 100_000, "18", False, False),
        ("1e999999999", "18", False, False),
        ("{" * 100_000 + "\0\ud800 18", "18", True, False),
        ("1/0", "18", False, False),
    ],
)
def test_verdicts(completion: str, answer: str, correct: bool, strict: bool) -> None:
    verdict = check(answer, completion)
    assert (verdict.correct, verdict.strict) == (correct, strict)
    assert not verdict.unknown


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (" Wait, I made an error: it is 27.", True),
        (", no wait, 27.", True),
        (" That was not right.", True),
        (" Let me double-check that.", True),
        ("\n\nI apologize for the confusion. It should be 27.", True),
        ("\n\nIt seems there was a mistake in the calculation.", True),
        (" My previous answer is wrong; it is 27.", True),
        ("$ is incorrect; it is 27.", True),
        (" Let's re-check: 9 * 3 = 27.", True),
        (" That can't be right.", True),
        (" This answer is correct.", False),
        (" Actually, that is correct.", False),
        (" That is right. I made 3 groups of 4.", False),
        ("\nTherefore, she waits 3 hours. This is actually simple.", False),
        ("\nLet me know if you have other problems!", False),
    ],
)
def test_doubt_is_found_only_in_second_thoughts(after: str, expected: bool) -> None:
    assert (find_doubt(after) is not None) == expected


def test_a_trace_that_was_cut_must_announce_its_answer() -> None:
    question = Question("q", "?", "18")
    assert check_numeric(question, "So there are 18").correct
    assert not check_numeric(question, "So there are 18", is_finished=False).correct
    assert check_numeric(question, "#### 18\nThat is", is_finished=False).correct
    assert check_numeric(question, "#### 18\n\nThe answer is", is_finished=False).strict
    assert not check_numeric(question, "#### 18\n\nThe answer is").correct


def test_bare_number_means_millions_only_if_the_question_says_so() -> None:
    assert check_numeric(Question("q", "How many million dollars?", "1.5"), "#### 1.5 million").correct
    assert check_numeric(Question("q", "How many dollars?", "1.5 million"), "#### 1500000").correct


def test_reasons_for_no_answer() -> None:
    assert check("18", "#### 18\nWait, that is wrong.").reason == "taken back"
    assert check("18", "nothing").reason == "no answer"
    assert check("18", "#### 17 or 18").reason == "several answers"
    assert check("18", "#### 9 * 2").reason == "unfinished calculation"


@pytest.mark.parametrize("answer", ["", "unclear", "3 and 4", "20 + 1", r"\sqrt{2}"])
def test_unreadable_reference_is_unknown(answer: str) -> None:
    verdict = check(answer, "#### 3")
    assert (verdict.unknown, verdict.correct, verdict.reason) == (True, False, "unreadable reference answer")


def test_reference_formats() -> None:
    for text, value in (("$1,234.50", "1234.5"), ("-3", "-3"), ("5 apples", "5"), ("2 1/2", "2.5"), ("eighteen", "18")):
        number = parse_number(text)
        assert number is not None
        assert number.value == Fraction(value)


@given(st.fractions(max_denominator=10**6), st.sampled_from(["#### {}", "The answer is {}.", "\\boxed{{{}}}"]))
def test_written_number_is_read_back(value: Fraction, template: str) -> None:
    if len(canonical(value)) < 40:
        answer = extract_answer("1 + 1 = 2\n" + template.format(canonical(value)), NUMBER_READER)
        assert isinstance(answer, Answer)
        assert answer.value.value == value


@given(st.integers(0, 10**9), st.integers(0, 99), st.sampled_from(["{:,}.{:02}", "{:_}.{:02}"]))
def test_thousands_separators_do_not_change_the_value(dollars: int, cents: int, template: str) -> None:
    written = template.format(dollars, cents).replace("_", "\u202f")
    assert check(str(Fraction(dollars * 100 + cents, 100)), f"#### ${written}").correct


MARKERS = ("####", "\\boxed{", "answer is", "A:", "**", "=", "<answer>", "Step 2:", "or", "and", "no")
NUMBERS = ("18", "$18", "-7", "1,000", "3/4", "5%", "million", "\\frac{1}{2}", "½", "9**9", "1e9", ".")
BRACKETS = ("{", "}", "(", ")", "\\text{", "\\", "\0")
FRAGMENTS = st.sampled_from(MARKERS + NUMBERS + BRACKETS)


@settings(max_examples=1_000, deadline=None)
@given(
    st.lists(st.one_of(FRAGMENTS, st.text(max_size=8)), max_size=30).map(" ".join),
    st.sampled_from(("18", "-7", "1000", "0.75", "5%")),  # the fragments can spell each of these
)
def test_any_text_gets_a_consistent_verdict(completion: str, answer: str) -> None:
    verdict = check(answer, completion)
    assert not verdict.strict or verdict.correct
    assert not verdict.correct or verdict.extracted is not None
    assert not verdict.unknown
    if verdict.correct:  # the text must contain a digit or a number word
        assert any(map(str.isnumeric, completion)) or re.search("seven|eighteen|thousand", completion, re.IGNORECASE)


def test_ten_megabyte_trace_takes_under_a_second() -> None:
    fragments = ("1,222", "- $ ", "#### ", "\n", "\\frac{", "**", "answer ", "(", "#### x\n", "1 ", "\\boxed{", "/1")
    for text in (fragment * (10_000_000 // len(fragment)) for fragment in fragments):
        started = time.thread_time()
        check("18", text)
        assert time.thread_time() - started < 1.0


@pytest.mark.parametrize(
    ("folder", "count"),
    [(SAMPLE, 40), pytest.param(SHARED, 2638, marks=needs_shared)],
    ids=["sample", "complete"],
)
def test_agrees_with_the_labels_of_openai(folder: Path, count: int) -> None:
    lines = list(read_jsonl(folder / "gsm8k" / "model_solutions_6b.jsonl"))
    verdicts = [check(line["ground_truth"].rpartition("A:")[2], line["solution"]) for line in lines]
    assert [verdict.correct for verdict in verdicts] == [line["is_correct"] for line in lines]
    assert len(lines) == count
