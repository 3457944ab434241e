"""Writes the questions of this folder: sums, differences, products and one-step word problems with small numbers.

python configs/one_step/make_questions.py

Training and test questions never share an operation with the same two numbers, in any order or wording: a hash of the
three decides which set a problem is in.
"""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import yaml

NUM_TRAIN, NUM_TEST = 480, 160
TEST_SHARE = 4  # one in so many problems is for the test set

NAMES = ("Ann", "Ben", "Eva", "Ida", "Leo", "Max", "Mia", "Sam", "Tom", "Zoe")
THINGS = ("apples", "books", "cards", "coins", "pens", "shells")


def add(draw: random.Random) -> tuple[str, int, int, str]:
    first, second = draw.randint(11, 60), draw.randint(11, 60)
    return f"What is {first} + {second}?", first, second, "+"


def subtract(draw: random.Random) -> tuple[str, int, int, str]:
    second = draw.randint(3, 40)
    first = second + draw.randint(3, 40)
    return f"What is {first} - {second}?", first, second, "-"


def multiply(draw: random.Random) -> tuple[str, int, int, str]:
    first, second = draw.randint(2, 20), draw.randint(2, 12)
    return f"What is {first} * {second}?", first, second, "*"


def tell(draw: random.Random) -> tuple[str, int, int, str]:
    """A one-step word problem."""
    name, things = draw.choice(NAMES), draw.choice(THINGS)
    first, second = draw.randint(4, 30), draw.randint(2, 12)
    match draw.choice("+-*"):
        case "+":
            return f"{name} has {first} {things} and buys {second} more. How many are there now?", first, second, "+"
        case "-":
            first += second
            return f"{name} has {first} {things} and gives away {second}. How many are left?", first, second, "-"
        case _:
            first = draw.randint(2, 12)
            return f"{name} has {first} boxes with {second} {things} each. How many are there?", first, second, "*"


KINDS: tuple[Callable[[random.Random], tuple[str, int, int, str]], ...] = (add, subtract, multiply, tell)
RESULTS: dict[str, Callable[[int, int], int]] = {
    "+": lambda first, second: first + second,
    "-": lambda first, second: first - second,
    "*": lambda first, second: first * second,
}


def is_test(first: int, second: int, operation: str) -> bool:
    numbers = (first, second) if operation == "-" else sorted((first, second))
    problem = f"{numbers[0]} {operation} {numbers[1]}"
    return hashlib.sha256(problem.encode()).digest()[0] % TEST_SHARE == 0


def questions(num_questions: int, *, test: bool, seed: int) -> list[dict[str, str]]:
    """As many of each kind, all different, in turn."""
    draw = random.Random(seed)
    drawn: dict[str, str] = {}
    while len(drawn) < num_questions:
        text, first, second, operation = KINDS[len(drawn) % len(KINDS)](draw)
        if is_test(first, second, operation) == test:
            drawn.setdefault(text, str(RESULTS[operation](first, second)))
    return [{"question": text, "answer": answer} for text, answer in drawn.items()]


if __name__ == "__main__":
    folder = Path(__file__).parent
    for name, count, test in (("train", NUM_TRAIN, False), ("test", NUM_TEST, True)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(questions(count, test=test, seed=count), width=120))
