"""MBPP, mostly basic Python programs: each a sentence and three tests (arXiv 2108.07732)."""

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
from tpt_jax.tasks.download import check_one_source, read_dataset
from tpt_jax.tasks.task import Task, TaskConfig

TRAIN, TEST = range(601, 975), range(11, 511)  # task_ids, as published; the rest are for prompts and validation
SOURCE = "github.com/google-research/google-research (mbpp)"
INSTRUCTION = (
    "Think step by step, then write the program in one fenced block: a line ```python, the whole program, a line ```. "
    "Write no other fenced block."
)

# Written for this project in the style of the data set.
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
    """Where to read MBPP from: 374 training and 500 test questions.

    Attributes:
      folder: reads mbpp.jsonl, as Google publishes it, from this folder; null: tensorflow-datasets downloads it once.
      manual_dir: such a folder for tensorflow-datasets to convert, instead of downloading.
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
          UserError: the file cannot be loaded, or more than 1% of its questions are invalid.
        """
        check_one_source(self.folder, self.manual_dir)
        if self.folder is None:
            lines = [line for split in ("train", "test") for line in read_dataset("mbpp", split, self.manual_dir)]
            questions = dict(read_items("tensorflow-datasets tpt_mbpp", lines, lambda _, line: _read_numbered(line)))
        else:
            path = self.folder.expanduser() / "mbpp.jsonl"
            if not path.is_file():
                raise UserError(f"{path}: no such file; get mbpp.jsonl from {SOURCE} and set task.folder to its folder")
            questions = dict(read_records(path, lambda _, line: _read_numbered(line)))
        train, test = (tuple(questions[number] for number in ids if number in questions) for ids in (TRAIN, TEST))
        return self.task(train, test, instruction=INSTRUCTION, shots=SHOTS)

    def num_questions(self) -> tuple[int, int]:
        return len(TRAIN), len(TEST)

    @staticmethod
    def default_id(index: int, line: Mapping[str, Any]) -> str:
        return f"mbpp/{line.get('task_id', index)}"

    @staticmethod
    def read_question(name: str, line: Mapping[str, Any]) -> Question:
        """Reads {"text", "code", "test_list", "test_setup_code"}, or the sanitized {"prompt", ..., "test_imports"}.

        As in the paper, the question includes the tests: only they contain the function's name.
        """
        text, tests = line.get("text", line.get("prompt")), line.get("test_list")
        if not isinstance(text, str) or not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
            raise InvalidRecordError('lacks "text" or "test_list"; write them as in mbpp.jsonl')
        if not tests:
            raise InvalidRecordError('has no tests in "test_list"; write assert statements')
        setup = "\n".join([*map(str, line.get("test_imports") or ()), str(line.get("test_setup_code") or "")]).strip()
        question = "\n".join([text.strip(), "The program must pass these tests:", *tests])
        entry_point = _entry_point(str(line.get("code", "")), tests)
        return Question(name, question, "", {"tests": tests, "setup": setup, "entry_point": entry_point})


def _read_numbered(line: Mapping[str, Any]) -> tuple[int, Question]:
    """A question with its task_id, which decides its split."""
    number = line.get("task_id")
    if not isinstance(number, int):
        raise InvalidRecordError('lacks "task_id"; write its number in MBPP')
    return number, MbppConfig.read_question(f"mbpp/{number}", line)


def _entry_point(code: str, tests: list[str]) -> str:
    """Name of the function under test; "" if unclear.

    It is the first name in the tests that the reference program defines; one task redefines the builtin `sum`. Without
    a reference program, if the tests use only builtin names, it is the one function that they call on the left of
    comparisons and nowhere on the right.
    """
    parsed = [tree for tree in map(parse, (code, *tests)) if tree is not None]
    if len(parsed) < 1 + len(tests):
        raise InvalidRecordError('its "code" or "test_list" is not Python')
    program, *trees = parsed
    defined = {getattr(node, "name", "") for node in program.body}
    used = [node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)]
    if code or not set(used) <= set(dir(builtins)):
        return next((name for name in used if name in defined), "")
    comparisons = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    called = {name for node in comparisons for name in _called_functions(node.left)}
    called -= {name for node in comparisons for right in node.comparators for name in _called_functions(right)}
    return called.pop() if len(called) == 1 else ""


def _called_functions(tree: ast.AST) -> set[str]:
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
