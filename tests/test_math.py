"""The math and multiple-choice checkers and their tasks."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpt_jax.checks.answers.boxes import boxed_answer, find_boxes
from tpt_jax.checks.answers.choice import check_choice
from tpt_jax.checks.answers.latex import check_math
from tpt_jax.checks.pool import CheckerPool
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.records import Question, Trace, Verdict
from tpt_jax.tasks import MathConfig, MultipleChoiceConfig, load_task


def check(answer: str, completion: str) -> Verdict:
    return check_math(Question("q", "?", answer), completion)


# Comparing a reference with the content of a box.


@pytest.mark.parametrize(
    ("reference", "boxed"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"\frac{1}{2}", r"\frac12"),
        (r"\frac{1}{2}", r"\dfrac{2}{4}"),
        (r"\frac{11}{2}", "5 1/2"),
        (r"0.\overline{36}", r"\frac{4}{11}"),
        ("1000", r"1{,}000"),
        ("1000", r"1\,000"),
        ("12345", r"12,\!345"),
        (r"5\sqrt{2}", r"\sqrt{50}"),
        (r"\sqrt{3}", r"\frac{3}{\sqrt 3}"),
        ("x^2+2x", "x(x+2)"),
        ("2^{2004}", "4^{1002}"),
        ("x=5", "5"),
        ("7", "x = 3 + 4 = 7"),
        ("1,-2", "-2, 1"),
        ("1,2", r"x=1 \text{ or } x=2"),
        (r"\pm 5", "-5, 5"),
        ("(3,1)", "3,1"),
        (r"[-1,2)", r"\left[-1,2\right)"),
        (r"(2,\infty)", "x>2"),
        (r"-2 \le x \le 7", r"x \in [-2,7]"),
        (r"10\text{ cm}", "10"),
        ("12", r"12\text{ square feet}"),
        ("12", "12 square feet"),
        (r"90^\circ", "90"),
        (r"50\%", "50"),
        ("6.5", r"6.5\%"),
        (r"\frac{3}{5}", r"60\%"),
        (r"\$18.00", "18"),
        ("101_2", "101"),
        ("5", "101_2"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"\text{(C)}", "C"),
        ("3i+2", "2+3i"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        ("9^{9^{9}}", "9^{9^{9}}"),
        ("10000000", r"10\text{ million}"),
        ("1500", "1.5 thousand dollars"),
        (r"10\text{ million}", "10,000,000"),
        (r"10\text{ cm}", r"10\text{ centimeters}"),
        (r"6\text{ p.m.}", r"6\text{ PM}"),
        (r"\frac{\sqrt{2}}{2}", r"0.5\sqrt{2}"),
        (r"50\%", "0.5"),
        ("listen", r"\text{listen}"),
        (r"(\frac{1}{2}, \sqrt{8})", r"(0.5, 2\sqrt{2})"),
        (r"(-\infty, 0.5)", r"(-\infty, \frac{1}{2})"),
        (r"\frac{1}{2}, 3", "3, 0.5"),
        (r"\log_2 8", "3"),
        ("3", r"\log_2 8"),
        (r"\log_2 100", r"2\log_2 10"),
        ("10", "**10**"),
        ("10", r"\approx 10"),
        ("10", r"\gcd(10,20)"),
        ("10", r"\underline{10}"),
        ("10", r"\text{The answer is }10"),
        ("-3", r"\text{negative }3"),
        (r"5\sqrt{2}", "5√2"),
        (r"\frac{1}{2}", "½"),
        (r"(-\infty, 2)", "(-∞, 2)"),
        (r"x^2", "x²"),
        ("-2,0,2", r"0, \pm 2"),
        (r"111, \! 111, \! 111", "111,111,111"),
        (r"36\text{ cm}^2", "36"),
        ("0.001", "1e-3"),
        ("E_{1}, E_{2}", "E_1, E_2"),
        ("26000", "1000(26)"),
        ("26000", "(1000)(26)"),
        ("0.8333333333", r"\frac{5}{6}"),
    ],
)
def test_equal_answers_are_correct(reference: str, boxed: str) -> None:
    verdict = check(reference, rf"So the answer is $\boxed{{{boxed}}}$.")
    assert (verdict.correct, verdict.strict) == (True, True)
    assert verdict.extracted == check(reference, rf"\boxed{{{reference}}}").extracted  # equal answers share one vote


@pytest.mark.parametrize(
    ("reference", "boxed"),
    [
        ("5", ""),
        ("5", "-5"),
        ("5", "5 or 6"),
        ("5", r"5\text{ or 6}"),
        ("5", r"5\text{ (not 6)}"),
        ("5", "5, 6"),
        ("5", "x > 5"),
        ("5", r"x \ne 5"),
        ("5", "5!"),
        ("5", "5 + C"),
        ("5", "9**9**9"),
        ("1,2", "1"),
        ("11", "5 6"),
        ("11", r"5\quad 6"),
        ("10", "1,0"),
        ("32349", "32, 349"),
        ("4t", "4"),
        ("4", "4t"),
        ("101_2", "101_3"),
        ("101", "101_2"),
        ("204_5", "54"),
        ("(1,2)", r"\{1,2\}"),
        (r"\{1,2\}", "(1,2)"),
        ("(1,2)", "[1,2]"),
        ("(3,1)", "1,3"),
        ("x=5", "y=5"),
        ("x^2+1", "y^2+1"),
        (r"\pi", "3.14"),
        (r"3\frac{1}{2}", r"\frac{3}{2}"),
        (r"1-\frac{1}{\mathrm{e}}", r"1+\frac{1}{\mathrm{e}}"),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
        ("2^{2004}", "2^{2003}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
        (r"\text{listen}", "silent"),
        (r"\text{June 20}", "20"),
        ("10", r"10\text{ million}"),
        ("10", "10 Million"),
        (r"\frac{1}{2}", r"\frac{1}{2} million"),
        ("10", r"10\text{ thousand}"),
        ("10", r"10\text{ dozen}"),
        ("10", r"10\text{ hundred}"),
        ("10", r"10\text{ is wrong}"),
        ("10", r"10\text{ times as many}"),
        (r"36\text{ cm}^2", r"36\text{ cm}^3"),
        ("1,1,2", "1,2"),
        (r"111,\! 111", "111"),
        (r"10\text{ cm}", r"10\text{ m}"),
        (r"6\text{ p.m.}", r"6\text{ a.m.}"),
        (r"\pi", "3.1415926"),
        (r"\sqrt{2}", "1.41421356"),
        (r"\frac13", "0.333333"),
        (r"\frac{x}{3}", "0.333333x"),
        (r"(\sqrt{2}, 2)", "(1.41421356, 2)"),
        (r"(\sqrt{2}, 2, 3)", "(1.41421356, 2, 3)"),
        (r"\sqrt{2}, 2", "2, 1.41421356"),
        (r"\begin{pmatrix}\sqrt{2}\\2\end{pmatrix}", r"\begin{pmatrix}1.41421356\\2\end{pmatrix}"),
        (r"\frac13", r"33.3333\%"),
        ("listen", "silent"),
        ("10", "10_a"),
        ("10", r"\text{negative }10"),
        ("10", r"\text{The answer is not }10"),
        ("m", "M"),
        ("Rr", "r^2"),
        ("x + c", "y = x + C"),
        ("12", r"1200\%"),
        ("160", "160 - y"),
        ("5", r"\text{No}"),
    ],
)
def test_different_answers_are_wrong(reference: str, boxed: str) -> None:
    verdict = check(reference, rf"So the answer is $\boxed{{{boxed}}}$.")
    assert (verdict.correct, verdict.strict, verdict.unknown) == (False, False, False)


FORMS = (r"\frac{{{}}}{{{}}}", r"\dfrac{{{}}}{{{}}}", "{}/{}", r"\left(\frac{{{}}}{{{}}}\right)", r"{} \cdot {}^{{-1}}")


@given(st.fractions(-99, 99, max_denominator=99), st.sampled_from(FORMS), st.sampled_from(FORMS), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_fraction_equals_its_other_forms_and_no_other_fraction(
    value: Fraction, reference_form: str, answer_form: str, multiplier: int
) -> None:
    equal = answer_form.format(multiplier * value.numerator, multiplier * value.denominator)
    assert check(reference_form.format(value.numerator, value.denominator), rf"\boxed{{{equal}}}").correct
    different = answer_form.format(value.numerator + 1, value.denominator)
    assert not check(reference_form.format(value.numerator, value.denominator), rf"\boxed{{{different}}}").correct


@given(st.integers(1, 9), st.sampled_from([2, 3, 5, 6, 7]), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_root_equals_its_other_forms_and_no_other_root(factor: int, radicand: int, shift: int) -> None:
    root = rf"{factor}\sqrt{{{radicand}}}"
    for equal in (rf"\sqrt{{{factor**2 * radicand}}}", rf"\frac{{{factor * radicand}}}{{\sqrt{{{radicand}}}}}"):
        assert check(root, rf"\boxed{{{equal}}}").correct
    assert not check(root, rf"\boxed{{\sqrt{{{factor**2 * radicand + shift}}}}}").correct


@pytest.mark.parametrize(
    ("question", "reference", "boxed", "correct"),
    [
        ("List them in increasing order.", "1, 2, 3", "1, 2, 3", True),
        ("List them in increasing order.", "1, 2, 3", "3, 2, 1", False),
        ("Give all solutions.", "1, 2, 3", "3, 2, 1", True),
        ("Find p.", "-4", r"p = -4, \quad r = 3", True),
        ("Find p.", "3", "p = -4, r = 3", False),
        ("Solve 2p + r = 1, p + r = 2 for p.", "-4", "(p = -4, r = 3)", True),
        ("Solve for p and r.", "p = -4, r = 3", "p = -4, r = 3", True),
        ("Which is larger? (a) 3/4 (b) -3", "0.75", r"\text{(a) } 3/4", True),
        ("Which is smaller? (a) 3/4 (b) -3", "-3", r"\text{(b) -3}", True),
        ("Put 0, 6 and 4 in decreasing order.", "6 4 0", "4, 6, 0", False),
        ("List the prime factors of 12.", "[2, 3]", "2, 3", True),
    ],
)
def test_the_question_says_which_part_counts_and_in_which_order(
    question: str, reference: str, boxed: str, correct: bool
) -> None:
    assert check_math(Question("q", question, reference), rf"\boxed{{{boxed}}}").correct == correct


# Finding the final answer in a trace.


@pytest.mark.parametrize(
    ("completion", "answer", "strict"),
    [
        (r"First $\boxed{3}$ apples, then $\boxed{5}$.", "5", True),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{\sqrt 2}{2}", True),
        (r"so $x=\boxed{1}$ or $x=\boxed{2}$", "1,2", True),
        (r"I was told to use \boxed{}. It is \boxed{7}, see \boxed{}.", "7", True),
        (r"$\boxed 7$", "7", True),
        (r"\boxed{28} percent", r"28\%", True),
        (r"\boxed{12}, and with the interest: Final Answer: The final answer is $13$.", "13", False),
        ("The answer is $x = 5$, because $y = 3$.", "5", False),
        ("The final answer is that there are $5$ of them.", "5", False),
        ("**Answer:** 18 dollars", "18", False),
        ("The answer is:\n$$\\frac{3}{4}$$", "3/4", False),
        ("The answer is Evelyn.", r"\text{Evelyn}", False),
        ("<answer>12\\pi</answer>", r"12\pi", False),
        ("#### 1,234", "1234", False),
        (r"so we get $\frac{1}{2}$ in the end", r"\frac12", False),
        ("Altogether there are 12 of 30 left.", "30", False),
        ("The answer is about 10", "10", False),
        ("The answer should be 10.", "10", False),
        ("The answer must be a multiple of 5, so I get 10.", "10", False),
        ("The final answer comes to $10$.", "10", False),
        ("So $x = 1$ or $x = 2$.", "1,2", False),
        ("so $5x=30$ and $x=6$.", "6", False),
        ('{"answer": "\\\\frac{1}{2}"}', r"\frac12", False),
        (r"$\boxed{10}$. Let me double-check: $2 \cdot 5 = 10$.", "10", True),
        (r"$\boxed{10}$. Wait, I forgot 2. The answer is 12.", "12", False),
        (r"$\boxed{10}$. Wait, I forgot 2: $\boxed{12}$.", "12", True),
        (r"<think>\boxed{10}? no</think>The answer is 20.", "20", False),
        ("The answer is 20.\n\nHuman: 2 + 2?\nAssistant: The answer is 4.", "20", False),
        (r"$5 + 5 = \boxed{10}$, and $y = 1$", "10", True),
        (r"Answer - \boxed{10}!", "10", True),
        (r"Therefore, $\boxed{14{,}916}$ is our answer.", "14916", True),
        (r"- **\boxed{10}**", "10", True),
        (r"$\left(\boxed{10}\right)$", "10", True),
        (r"$\boxed{10}\text{ cm}^2$", r"10\text{ cm}^2", True),
        (r"\boxed{10}^\circ", "10", True),
        (r"\boxed{101}_2", "101_2", True),
        (r"$-\boxed{10}$", "-10", True),
        (r"\boxed{10} million", "10000000", True),
        ("$\\boxed{10}$\n\nLet me double check the steps again. Yes, all is well.", "10", True),
    ],
)
def test_final_answer_is_found(completion: str, answer: str, strict: bool) -> None:
    verdict = check(answer, completion)
    assert (verdict.correct, verdict.strict) == (True, strict)


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("$\\boxed{10}$\n\nWait, let me recheck: actually it's 12.", "taken back"),
        (r"\boxed{10}. That is wrong.", "taken back"),
        ("The answer is 10, no wait, 12.", "taken back"),
        ('{"answer": "10 + i"}', ""),
        ("So $10$ it is.\nThe answer is unknown.", ""),
        ("So $x = 10 + 2^", "no answer"),
        ("So we get 10. Oops.", "taken back"),
        ("<think>the answer is 10? no</think>I cannot tell.", "no answer"),
        ("The answer is 4.\n\nHuman: 5 + 5?\nAssistant: The answer is 10.", ""),
        (r"-\boxed{10}", ""),
        (r"2\cdot\boxed{10}", ""),
        (r"$2 \cdot \boxed{10}$", ""),
        (r"\boxed{10}^2", ""),
        (r"\boxed{10}x", ""),
        (r"$\boxed{10}\text{ or }12$", ""),
        (r"$12\text{ or }\boxed{10}$", ""),
        (r"\boxed{10} \text{million}", ""),
        ("So $y = 12$ and $x = 10$.", ""),
        ("The answer is negative 10", ""),
        ("The answer is not $10$.", "no answer"),
        (r"\boxed{10}$ is incorrect; it is $12$.", "taken back"),
        (r"First \boxed{10} apples.\n\nTherefore, the answer is $12$.", "several answers"),
        (r"$\pm\boxed{10}$", ""),
        (r"\boxed{10} \times 10^3", ""),
        (r"\boxed{10\text{ times as many}}", ""),
        ("So we have the equation $2x = 10$.", "no answer"),
        ("The equation $x = 10$ has no real solutions.", "no answer"),
        ("Let us compute it:\n```python\nprint(10", "no answer"),
        ("```python\nprint(x[10])\n```\n```output\n[]\n```", ""),
        ("The answer is $12$.\n\n## Problem 2\nThe answer is $10$.", ""),
    ],
)
def test_ten_is_not_the_final_answer(completion: str, reason: str) -> None:
    verdict = check("10", completion)
    assert (verdict.correct, verdict.reason) == (False, reason)


def test_numbers_too_large_to_print_compare_by_spelling() -> None:
    huge = r"\binom{20000}{10000}"  # 6,019 digits; Python prints at most 4,300
    assert check(huge, rf"\boxed{{{huge}}}").correct
    assert not check(huge, r"\boxed{\binom{20000}{9999}}").correct


@pytest.mark.parametrize("completion", ["", "  ", r"\boxed{}", r"so it is \boxed{1", "no idea", r"\text{}", "."])
def test_missing_answer_is_never_correct(completion: str) -> None:
    for reference in ("1", "x", r"\text{no}", r"\emptyset"):
        assert not check(reference, completion).correct


@pytest.mark.parametrize("reference", ["", " ", "$$", r"\boxed{}", "1" * 1000])
def test_unreadable_reference_is_unknown(reference: str) -> None:
    assert check(reference, rf"\boxed{{{reference}}}").unknown


LATEX = st.lists(
    st.sampled_from([*r"0123456789abxy+-*/^_{}()[]|,.;=<>!$%&~ \ ", r"\frac", r"\sqrt", r"\text{", r"\pi"])
)


@given(LATEX.map("".join))
@settings(max_examples=100, deadline=None)
def test_any_text_gets_a_consistent_verdict(text: str) -> None:
    for completion in (text, rf"\boxed{{{text}}}"):
        verdict = check("x", completion)
        assert not verdict.strict or verdict.correct
        assert not verdict.correct or "x" in text


HOSTILE = {
    r"\boxed{\sum_{k=1}^{99999} k^k}": "time limit",
    r"\boxed{" + "1+" * 5_000_000 + "1}": "",
    r"\boxed{" * 1_400_000: "no answer",
    "the answer is " * 800_000: "no answer",
    "$" * 10_000_000: "no answer",
    r"\boxed{" + "{" * 9_000 + "1" + "}" * 9_000 + "}": "no answer",
    r"\boxed{" + "{" * 10_000 + "1" + "}" * 10_000 + "}": "no answer",
    r"\boxed{" + "(" * 200 + "1" + ")" * 200 + "}": "absurd answer",
    r"\boxed{" + "9" * 501 + "}": "absurd answer",
    r"\boxed{9**9**9}": "",
    r"\boxed{9^{9^{9^{9}}}}": "",
    r"\boxed{((9!)!)!}": "",
    r"\boxed{10^{-99999999999999}}": "",
    "\0\\boxed{\0}\0": "",
    "\ud800\\boxed{\ud800\udfff}": "",
}


def test_hostile_trace_fails_alone() -> None:
    question = Question("q", "?", r"\frac{x}{3}")
    completions = [*HOSTILE, r"\boxed{\frac{2x}{6}}"]
    with CheckerPool("math", 1, seconds_per_trace=3.0) as pool:
        verdicts = list(pool.judge((question, Trace("q", index, text)) for index, text in enumerate(completions)))
    assert [verdict.reason for verdict in verdicts] == [*HOSTILE.values(), ""]
    assert [verdict.correct for verdict in verdicts] == [False] * len(HOSTILE) + [True]


def test_nested_and_escaped_braces_stay_in_the_box() -> None:
    text = r"\boxed{a\}{b}} so \fbox{\boxed{c}} and \boxed{d"
    assert [box.content for box in find_boxes(text)] == [r"a\}{b}", r"\boxed{c}"]
    assert boxed_answer(text, find_boxes(text)) == r"\boxed{c}"


# Multiple choice.

CHOICES = ("Paris", "London", "Rome", "A triangle")
LISTED = "A) Paris: in France.\n**B) London:** in England.\nC) Rome: in Italy.\nD) A triangle: no city."


def check_c(completion: str) -> Verdict:
    return check_choice(Question("q", "?", "C", {"choices": list(CHOICES)}), completion)


@pytest.mark.parametrize(
    "completion",
    [
        "####C",
        "#### (C)",
        "#### c",
        "#### C. Rome",
        "#### Rome",
        "C.",
        "(C)",
        "**C**",
        "C) Rome",
        "Rome",
        "Option C",
        "The answer is C",
        "The answer is (C) Rome.",
        "the answer is c.",
        "**Answer: C**",
        "The correct option is C because A is wrong",
        r"$\boxed{C}$",
        r"\boxed{\text{C}}",
        r"$\boxed{\textbf{(C)}}$",
        "<answer> (C) </answer>",
        "A is in France.\nSo choice (C) is correct.",
        "The answer should be C.",
        "Ans: C",
        "Answer - C",
        "Since A is wrong, the answer is C.",
        "If it were 2, then A; so the answer is C because Paris is in France",
        "The incorrect answer is A. The correct one is C.",
        "The city is Rome (C).",
        "The answer is A.\nWait, I misread it. The answer is C.",
        "The answer is A. Hold on.\nC",
        "The answer is C. Let me double-check: A is in France, so C.",
        "<think>The answer is A.</think>The answer is C.",
        "The answer is C.\n\nHuman: Next?\nAssistant: The answer is A.",
        *(f"Let's analyze each option:\n\n{LISTED}\n\n{end}" for end in ("Therefore, C is the correct answer.", "C")),
        *(f"{LISTED}\n\n{end}" for end in ("C is correct", "**C) Rome** is the correct answer.", "C) Rome")),
        f"The correct answer is C.\n\nHere is a breakdown of each option:\n\n{LISTED}",
        "The answer is C.\n\nWhy not the others?\nA) Paris: this is wrong, it is in France.",
        "The correct answer is C. Another common choice is A",
        "The correct answer is C. The next best answer is A",
        "The correct answer is C. The only other option is D",
        "In other words the answer is C. This means the answer is C.",
        "We can eliminate the option: A. We can eliminate the option: B. So it is C.",
        "The answer is B or C. It is in Italy, so the answer is C.",
        "The answer is A.\n\\boxed{C}",
        "#### A\nNo, the answer is C",
        "The answer is A. That is wrong. C is correct.",
        "Option A is in France.\nTherefore, C) is the correct answer.",
        "C is correct.",
        "I would choose C.",
        "So it must be C.",
        "Option A is in France.\nC) Rome is the correct answer.",
        "**C) Rome**\n\nRome is in Italy.",
        "The answer is:\n\n**C) Rome**",
        "The answer is 'C'.",
        "The answer is [C].",
        "[C]",
        "letter C",
        "It is most likely C, because it is in Italy.",
        "So it is probably C.",
        "Only C remains.",
        "This city is known as C. Rome",
        "We look at each in turn, and it is the last one in Italy (C. Rome)",
        "We cannot compute it and the answer is (C).",
        "The answer is most likely to be C, a city.",
        "The answer choices are (A) Paris and (C) Rome. The answer is (C).",
    ],
)
def test_choice_c_is_read(completion: str) -> None:
    verdict = check_c(completion)
    assert (verdict.correct, verdict.strict, verdict.extracted) == (True, False, "C")


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", "no answer"),
        ("A triangle has three sides, and Rome none.", "no answer"),
        ("The answer is a hard one.", "no answer"),
        ("The closest is (C).\nAnswer: None of the above", "no answer"),
        ("It is in Italy (C).\nFinal Answer: N/A", "no answer"),
        ("The answer is not C", "no answer"),
        ("It can't be (C)", "no answer"),
        ("Vitamin C", "no answer"),
        ("#### E", "no answer"),
        ("Between A and C, I think.", "no answer"),
        ("(A) or (C) maybe", "several answers"),
        ("Maybe option B, maybe option C", "several answers"),
        ("The answer is A or C", "several answers"),
        ("The answer is (B) London, (C) Rome, or D.", "several answers"),
        ("The answer is C or maybe D", "several answers"),
        ("Answer: C/D", "several answers"),
        ("#### C) Paris", "several answers"),
        ("The answer is A triangle", ""),
        ("#### C\nNo, the answer is B", ""),
        ("C\n#### A", ""),
        ("The answer is C, no wait, A.", "taken back"),
        ("The answer is C.\nWait, actually it's A.", "taken back"),
        ("The answer is C. Wait, that is wrong.", "taken back"),
        ("<think>The answer is C.</think>Hm.", "no answer"),
        ("The answer is A.\n\nHuman: Next?\nAssistant: The answer is C.", ""),
        ("The wrong answer is C", "no answer"),
        ("The incorrect answer is C. The correct one is A.", ""),
        ("A tempting but wrong choice is C", "no answer"),
        ("I thought the answer is C but that is wrong", "no answer"),
        ("If the answer is C, then it is. That contradicts.", "no answer"),
        ("Suppose the answer is C. Contradiction.", "no answer"),
        ("We can rule out option C.", "no answer"),
        ("Option C seems unlikely.", "no answer"),
        ("Option C is the least likely.", "no answer"),
        ("Option C is in Italy.", "no answer"),
        ("(C) can be excluded.", "no answer"),
        ("Is it option C?", "no answer"),
        ("The answer is C?", "no answer"),
        ("The answer is C, which is Paris", "several answers"),
        ("The answer is C: Paris is the capital", "several answers"),
        (f"Let's analyze each option:\n\n{LISTED}\n\nI cannot decide.", "no answer"),
        (f"Let's analyze each option:\n\n{LISTED}", "no answer"),
        ("To find the right answer:\n\nC) Rome\nD) A triangle", "no answer"),
        ("A) Paris\nB) London\nC) Rome", "no answer"),
        ("C) Rome\nRome is in Italy.\nD) A triangle\nA triangle has three sides.", "no answer"),
        ("C) Rome\n\nWait, that is wrong: Rome is in Italy.", "no answer"),
        ("The answer is A. Another common choice is C", ""),
        ("The answer is A. The next best answer is C", ""),
        ("The first option is C, which is in Italy.", "no answer"),
        ("We can eliminate the option: C", "no answer"),
        ("I don't think the answer is C.", "no answer"),
        ("The answer is A. For Italy, the answer would be C.", "several answers"),
        ("The answer is A.\nTherefore, C is correct.", "several answers"),
        ("#### A\n\nFor Italy, the answer would be C.", "several answers"),
        ("The answer is C++.", "no answer"),
        ("The answer is C-shaped.", "no answer"),
        ("The answer: C is wrong.", "no answer"),
        ("C is not correct.", "no answer"),
        ("C) Paris is correct.", "no answer"),
        ("A and C is correct.", "no answer"),
        ("Many would choose C.", "no answer"),
        ("I would choose C or D.", "no answer"),
        ("So C is in Italy.", "no answer"),
    ],
)
def test_choice_c_is_not_read(completion: str, reason: str) -> None:
    verdict = check_c(completion)
    assert (verdict.correct, verdict.reason) == (False, reason)


def test_a_letter_that_is_also_a_choice_is_the_letter() -> None:
    question = Question("q", "Which is boron?", "B", {"choices": ["Al", "Tl", "C", "B"]})
    assert check_choice(question, "The answer is B.").correct
    assert not check_choice(question, "The answer is D.").correct


def test_i_before_a_verb_is_a_pronoun() -> None:
    question = Question("q", "?", "I", {"choices": [f"{index} apples" for index in range(10)]})
    assert not any(check_choice(question, f"The answer is I {rest}").correct for rest in ("don't know", "think B"))
    assert check_choice(question, "The answer is I because it is 8.").correct


def test_strict_choice_needs_the_requested_line() -> None:
    assert check_c("I think\n#### C").strict
    assert check_c("#### A\n#### C \n").strict
    assert not check_c("#### C\n#### A").correct
    assert check_choice(Question("q", "?", "E", {"choices": list(CHOICES)}), "#### E").unknown


@given(
    st.lists(st.sampled_from([*"ABCDE abc().:*\n/,", "#### C", "#### ", "or", "and", "is"]), max_size=20).map("".join)
)
def test_strict_choice_is_correct(completion: str) -> None:
    verdict = check_c(completion)
    assert not verdict.strict or (verdict.correct and "#### C" in completion)
    assert verdict.extracted in (None, *"ABCD")


# Tasks.


def write_math(folder: Path, split: str, count: int, solution: str = r"It is $\boxed{\frac12}$.") -> None:
    for subject in ("algebra", "geometry"):
        (folder / split / subject).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            problem = {
                "problem": f"{subject} {index} of {split}?",
                "level": f"Level {index % 5 + 1}",
                "type": subject.capitalize(),
                "solution": solution,
            }
            (folder / split / subject / f"{index}.json").write_text(json.dumps(problem))


def test_math_reads_published_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_math(tmp_path, "train", 60)
    write_math(tmp_path, "test", 12)
    task = load_task(MathConfig("math", folder=tmp_path))
    assert (len(task.train), len(task.test)) == MathConfig("math", folder=tmp_path).num_questions() == (120, 24)
    assert task.train[2] == Question("math/train/algebra/2", "algebra 2 of train?", r"\frac12")
    assert [question.id for question in task.test[9:11]] == ["math/test/algebra/9", "math/test/algebra/10"]
    filtered = load_task(MathConfig("math", folder=tmp_path, subjects=("geometry",), levels=(5,)))
    assert {question.id for question in filtered.test} == {"math/test/geometry/4", "math/test/geometry/9"}
    for shot in task.train.shots:
        assert task.train.checker == "math"
        assert check(boxed_answer(shot.completion, find_boxes(shot.completion)), shot.completion).strict
    (tmp_path / "train" / "algebra" / "7.json").write_text('{"problem": "?", "solution": "no box"}')
    assert len(load_task(MathConfig("math", folder=tmp_path)).train) == 119
    assert "leaving out 1 of 120 records" in capsys.readouterr().err
    for index in (8, 9):
        (tmp_path / "train" / "algebra" / f"{index}.json").write_text("{")
    with pytest.raises(UserError, match=r"3 of 120 records cannot be used.*algebra/7.json: its solution has no"):
        load_task(MathConfig("math", folder=tmp_path))


def test_math_reads_json_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds neither train/ nor train\.jsonl; get MATH"):
        load_task(MathConfig("math", folder=tmp_path))
    train = {"problem": "1 or 2?", "solution": r"Both: $\boxed{1}$ or $\boxed{2}$", "level": 3, "subject": "Algebra"}
    test = {"problem": "2?", "answer": r"\frac{1}{2}", "subject": "Counting & Probability"}
    (tmp_path / "train.jsonl").write_text(json.dumps(train))
    (tmp_path / "test.jsonl").write_text(json.dumps(test))
    task = load_task(MathConfig("math", folder=tmp_path))
    assert task.train.questions == (Question("math/train/0", "1 or 2?", "1, 2"),)
    assert task.test.questions == (Question("math/test/0", "2?", r"\frac{1}{2}"),)
    with pytest.raises(UserError, match="no test questions"):
        load_task(MathConfig("math", folder=tmp_path, subjects=("algebra",), levels=(3,)))


@pytest.mark.parametrize(
    "line",
    [
        {"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
        {
            "question": {"stem": "?", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]},
            "answerKey": "B",
        },
    ],
)
def test_multiple_choice_reads_arc_records(line: dict[str, Any]) -> None:
    question = MultipleChoiceConfig.read_question("q", line)
    assert (question.question, question.answer) == ("?\nA) a\nB) b", "B")
    with pytest.raises(InvalidRecordError, match=r'"answerKey" \(\'C\'\) is not a label'):
        MultipleChoiceConfig.read_question("q", {**line, "answerKey": "C"})


def test_multiple_choice_answer_may_be_letter_index_or_text(tmp_path: Path) -> None:
    lines = [
        {"id": str(index), "question": f"{index}?", "choices": CHOICES, "answer": answer}
        for index, answer in enumerate(["c", 2, "Rome"])
    ]
    for split in ("train", "test"):
        split_lines = ({**line, "question": f"{split} {line['question']}"} for line in lines)
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, split_lines)))
    config = MultipleChoiceConfig("multiple_choice", train=tmp_path / "train.jsonl", test=tmp_path / "test.jsonl")
    task = load_task(config)
    assert config.num_questions() == (3, 3)
    assert task.train[0].question == "train 0?\nA) Paris\nB) London\nC) Rome\nD) A triangle"
    assert [check_choice(question, "#### C").strict for question in task.test] == [True] * 3
    for shot in task.train.shots:
        letter = shot.completion.rpartition("#### ")[2]
        texts = [line.partition(") ")[2] for line in shot.question.split("\n")[1:]]
        assert check_choice(Question("q", shot.question, letter, {"choices": texts}), shot.completion).strict


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"choices": CHOICES, "answer": "C"}, 'lacks "question"'),
        ({"question": "?", "choices": ["one"], "answer": "A"}, '"choices" must be a list of 2 to 26'),
        ({"question": "?", "choices": ["one", "one"], "answer": "A"}, "a repeated text"),
        ({"question": "?", "choices": CHOICES, "answer": "E"}, r'"answer" \(\'E\'\) is not one of the 4 choices'),
        ({"question": "?", "choices": CHOICES, "answer": True}, r'"answer" \(True\) is not one'),
    ],
)
def test_multiple_choice_errors_name_the_field(tmp_path: Path, line: dict, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match=message):
        load_task(MultipleChoiceConfig("multiple_choice", train=tmp_path / "x.jsonl", test=tmp_path / "x.jsonl"))
