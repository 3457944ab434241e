"""What the quickstart's base model has read: worked solutions, many of them wrong, and short sums.

Nobody can ship a pretrained language model in ten megabytes, so the quickstart makes a small one. Like a real base
model it has read right and wrong solutions, and like a real one it is unsure because of that: a noisy corpus, on
purpose.
"""

import dataclasses
import itertools
import random
import re
from collections.abc import Iterator

from tpt_jax.tasks.gsm_symbolic import GsmSymbolicConfig, draw_problems

# "12 + 13 = 25", "$40 - 8=32", "6 boys/girl = 48": the number right of an equals sign.
RESULT = re.compile(r"(?<==)(\s*[$£€]?)(\d+)")


@dataclasses.dataclass(frozen=True)
class Text:
    """A prompt and what was written under it."""

    prompt: str
    completion: str


def worked_solutions(config: GsmSymbolicConfig, count: int, wrong_share: float, seed: int) -> Iterator[Text]:
    """Problems of the base split with the library's solutions, a share of them with a slip that reaches the answer."""
    rng = random.Random(f"{seed}/slips")
    for problem in itertools.islice(draw_problems(config, "base", seed), count):
        solution = slip(problem.solution, rng) if rng.random() < wrong_share else problem.solution
        yield Text(problem.question, solution)


def slip(solution: str, rng: random.Random) -> str:
    """The solution with its last sum's result wrong by a little, and so its answer."""
    body, _, answer = solution.rpartition("\n#### ")
    results = [match for match in RESULT.finditer(body) if match.group(2) == answer]
    wrong = str(_near(int(answer), rng))
    if results:
        start, end = results[-1].span(2)
        body = body[:start] + re.sub(rf"\b{answer}\b", wrong, body[start:end] + body[end:])
    return f"{body}\n#### {wrong}"


def _near(value: int, rng: random.Random) -> int:
    while True:
        wrong = value + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
        if wrong >= 0:
            return wrong


def drills(count: int, largest: int, seed: int) -> Iterator[Text]:
    """Short sums of up to three numbers, all right: the reader of wrong solutions knows arithmetic, and doubts it."""
    rng = random.Random(f"{seed}/drills")
    for _ in range(count):
        a, b, c = (rng.randint(1, largest) for _ in range(3))
        factor = rng.randint(1, 12) if rng.random() < 0.9 else 30
        left, result = rng.choice(
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
            left = left.replace(" ", "")
        yield Text(f"{left} =", str(result))
