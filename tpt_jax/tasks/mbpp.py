"""MBPP, mostly basic Python programs: a sentence and three tests each (arXiv 2108.07732)."""

import ast
import builtins
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from tpt_jax.checks.code.extract import parse
from tpt_jax.errors import STRICT, InvalidRecordError, UserError
from tpt_jax.io.record_files import read_items, read_records
from tpt_jax.records import Generation, Question, Shot
from tpt_jax.tasks.download import read_builder, refuse_both
from tpt_jax.tasks.task import Task, TaskConfig

TRAIN, TEST = range(601, 975), range(11, 511)  # task_ids, as published; the others are for prompts and validation
SOURCE = "github.com/google-research/google-research (mbpp)"
INSTRUCTION = (
    "Think step by step, then write the program in one fenced block: a line ```python, the whole program, a line ```. "
    "Write no other fenced block."
)

# Our own, in the manner of the data set.
SHOTS = (
    Shot(
        "Write a function to find the sum of the squares of the odd numbers in a list.\nThe program must pass these "
        "tests:\nassert odd_squares([1, 2, 3]) == 10\nassert odd_squares([2, 4]) == 0",
        "A number is odd if dividing it by 2 leaves a remainder. I square those and add them up; an empty sum is 0, as "
        "the second test wants.\n```python\ndef odd_squares(numbers):\n"
        "    return sum(n * n for n in numbers if n % 2)\n```",
    ),
    Shot(
        "Write a function to tell how often the most frequent letter of a word occurs.\nThe program must pass these "
        'tests:\nassert most_frequent("banana") == 3\nassert most_frequent("") == 0',
        "Counter counts each letter, and the largest count is the answer. For an empty word there is no count, so max "
        "needs a default of 0.\n```python\nfrom collections import Counter\n\n\ndef most_frequent(word):\n"
        "    return max(Counter(word).values(), default=0)\n```",
    ),
    Shot(
        "Write a function to split a list into runs of equal neighbours.\nThe program must pass these tests:\n"
        "assert runs([1, 1, 2]) == [[1, 1], [2]]\nassert runs([]) == []",
        "I go through the list and keep the runs so far. An element equal to the last of the newest run joins it; any "
        "other begins a run.\n```python\ndef runs(items):\n    result = []\n    for item in items:\n"
        "        if result and result[-1][-1] == item:\n            result[-1].append(item)\n        else:\n"
        "            result.append([item])\n    return result\n```",
    ),
)


@dataclass(frozen=True, config=STRICT)
class MbppConfig(TaskConfig):
    """Where the questions are; 374 to train on and 500 to test on.

    Attributes:
      folder: holds mbpp.jsonl as Google publishes it; null: tensorflow-datasets downloads it once.
      manual_dir: the same folder, for tensorflow-datasets to make its files of instead of downloading.
    """

    name: Literal["mbpp"]
    folder: Path | None = None
    manual_dir: Path | None = None

    checker_name: ClassVar[str] = "code"
    seconds_per_trace: ClassVar[float] = 10.0
    generation: ClassVar[Generation] = Generation(max_prompt_tokens=512, max_new_tokens=768)

    def load(self) -> Task:
        """Reads both splits.

        Raises:
          UserError: the file is missing, or holds something else.
        """
        refuse_both(self.folder, self.manual_dir)
        if self.folder is None:
            lines = [line for split in ("train", "test") for line in read_builder("mbpp", split, self.manual_dir)]
            questions = dict(read_items("tensorflow-datasets tpt_mbpp", lines, lambda _, line: _numbered(line)))
        else:
            path = self.folder.expanduser() / "mbpp.jsonl"
            if not path.is_file():
                raise UserError(
                    f"{path}: no such file; get mbpp.jsonl from {SOURCE} and set task.folder to where it is"
                )
            questions = dict(read_records(path, lambda _, line: _numbered(line)))
        train, test = (tuple(questions[number] for number in ids if number in questions) for ids in (TRAIN, TEST))
        return self.task(train, test, instruction=INSTRUCTION, shots=SHOTS)

    def num_questions(self) -> tuple[int, int]:
        return len(TRAIN), len(TEST)

    @staticmethod
    def default_id(index: int, line: Mapping[str, Any]) -> str:
        return f"mbpp/{line.get('task_id', index)}"

    @staticmethod
    def read_question(name: str, line: Mapping[str, Any]) -> Question:
        """{"text", "code", "test_list", "test_setup_code"}, or the sanitized file's {"prompt", ..., "test_imports"}.

        The tests stand in the question, as in the paper: they alone say what the function is called.
        """
        text, tests = line.get("text", line.get("prompt")), line.get("test_list")
        if not isinstance(text, str) or not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
            raise InvalidRecordError('lacks "text" or "test_list"; write them as in mbpp.jsonl')
        if not tests:
            raise InvalidRecordError('has no tests in "test_list"; write assert statements')
        setup = "\n".join([*map(str, line.get("test_imports") or ()), str(line.get("test_setup_code") or "")]).strip()
        question = "\n".join([text.strip(), "The program must pass these tests:", *tests])
        entry_point = _function_of(str(line.get("code", "")), tests)
        return Question(name, question, "", {"tests": tests, "setup": setup, "entry_point": entry_point})


def _numbered(line: Mapping[str, Any]) -> tuple[int, Question]:
    number = line.get("task_id")
    if not isinstance(number, int):
        raise InvalidRecordError('lacks "task_id"; write the number that MBPP gives it')
    return number, MbppConfig.read_question(f"mbpp/{number}", line)


def _function_of(code: str, tests: list[str]) -> str:
    """What the reference program defines and the tests use: one task's function is called `sum`, as Python's own is.

    Without a reference program it is what the tests call on the left of their comparisons alone, if that is one name
    and they use no name but Python's own.
    """
    parsed = [tree for tree in map(parse, (code, *tests)) if tree is not None]
    if len(parsed) < 1 + len(tests):
        raise InvalidRecordError('its "code" or "test_list" is not Python')
    program, *trees = parsed
    defined = {getattr(node, "name", "") for node in program.body}
    used = [node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)]
    if code or not set(used) <= set(dir(builtins)):
        return next((name for name in used if name in defined), "")
    compared = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    called = {name for node in compared for name in _called(node.left)}
    called -= {name for node in compared for right in node.comparators for name in _called(right)}
    return called.pop() if len(called) == 1 else ""


def _called(tree: ast.AST) -> set[str]:
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
