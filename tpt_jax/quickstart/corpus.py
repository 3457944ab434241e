"""The quickstart base model's training corpus: worked solutions, many of them wrong, and arithmetic drills.

A pretrained language model does not fit in ten megabytes, so the quickstart trains a small one. Its corpus is noisy on
purpose: like a real base model, it has seen right and wrong solutions, and is unsure as a result.
"""

import dataclasses
import itertools
import random
import re
from collections.abc import Iterator

from tpt_jax.tasks.gsm_symbolic import GsmSymbolicConfig, draw_problems

# The number right of an equals sign: "12 + 13 = 25", "$40 - 8=32", "6 boys/girl = 48".
RESULT = re.compile(r"(?<==)(\s*[$£€]?)(\d+)")


@dataclasses.dataclass(frozen=True)
class Text:
    """A prompt and its completion."""

    prompt: str
    completion: str


def worked_solutions(config: GsmSymbolicConfig, count: int, wrong_share: float, seed: int) -> Iterator[Text]:
    """Problems of the base split with reference solutions, some of which are given a wrong final answer.

    Args:
      wrong_share: probability that a solution is wrong.
    """
    rng = random.Random(f"{seed}/slips")
    for problem in itertools.islice(draw_problems(config, "base", seed), count):
        solution = with_wrong_answer(problem.solution, rng) if rng.random() < wrong_share else problem.solution
        yield Text(problem.question, solution)


def with_wrong_answer(solution: str, rng: random.Random) -> str:
    """The solution with the result of its last calculation, and so its final answer, slightly off."""
    body, _, answer = solution.rpartition("\n#### ")
    matches = [match for match in RESULT.finditer(body) if match.group(2) == answer]
    wrong = str(_near(int(answer), rng))
    if matches:
        start, end = matches[-1].span(2)
        body = body[:start] + re.sub(rf"\b{answer}\b", wrong, body[start:end] + body[end:])
    return f"{body}\n#### {wrong}"


def _near(value: int, rng: random.Random) -> int:
    """A non-negative number close to the value, but not equal to it."""
    while True:
        wrong = value + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
        if wrong >= 0:
            return wrong


def drills(count: int, largest: int, seed: int) -> Iterator[Text]:
    """Correct calculations with two or three numbers up to `largest`, so that the model does learn arithmetic."""
    rng = random.Random(f"{seed}/drills")
    for _ in range(count):
        a, b, c = (rng.randint(1, largest) for _ in range(3))
        factor = rng.randint(1, 12) if rng.random() < 0.9 else 30
        expression, result = rng.choice(
            (
                (f"{a} + {b}", a + b),
                (f"{a} + {b} + {c}", a + b + c),
                (f"{a + b} - {b}", a),
                (f"{a + b + c} - {b} - {c}", a),
                (f"{a} * {factor}", a * factor),
                (f"{factor} * {a}", factor * a),
                (f"{a * factor} / {factor}", a),
                (f"{a * factor} - {b}", a * factor - b),
                (f"{a * factor} + {b}", a * factor + b),
            )
        )
        if rng.random() < 0.5:
            expression = expression.replace(" ", "")
        yield Text(f"{expression} =", str(result))
