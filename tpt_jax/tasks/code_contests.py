"""Programming contests: programs from standard input to standard output, judged by their output.

Each line of the files is {"id", "question", "inputs", "outputs"}, where inputs and outputs are lists of texts of equal
length; or it has CodeContests' own fields (arXiv 2203.07814), {"name", "description", "public_tests": {"input",
"output"}, "private_tests", "generated_tests"}, as in conversions to JSON and Parquet. CodeContests itself is published
as RecordIO files of protobufs, which are not read here. Leave out problems with several right outputs: CodeContests has
no judge for them.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT, InvalidRecordError
from tpt_jax.io.record_files import parse_id, read_records
from tpt_jax.records import Generation, Question, Shot
from tpt_jax.tasks.task import Task, TaskConfig

NUM_TRAIN, NUM_TEST = 13_328, 165  # as published
INSTRUCTION = (
    "Think step by step, then write a Python program that reads standard input and writes to standard output, in one "
    "fenced block: a line ```python, the whole program, a line ```. Write no other fenced block."
)

# Written for this project in the style of the data set.
SHOTS = (
    Shot(
        "A shelf holds n books in a row; book i is h_i centimetres high. How many books are higher than every book to "
        "their left?\n\nInput\nThe first line holds n (1 <= n <= 100000), the second the n heights.\n\nOutput\nPrint "
        "the number of such books.\n\nExample\nInput\n5\n20 25 25 18 30\nOutput\n3",
        "I go from left to right and keep the greatest height so far. A book counts if it is strictly higher, and then "
        "its height is the greatest. In the example 20, 25 and 30 count. That is one step a book, so it is quick "
        "enough.\n```python\nimport sys\n\nheights = map(int, sys.stdin.read().split()[1:])\nhighest = count = 0\n"
        "for height in heights:\n    if height > highest:\n        highest = height\n        count += 1\nprint(count)\n"
        "```",
    ),
    Shot(
        "Mira climbs a stair of n steps, one or two at a time. In how many ways can she climb it? Print the number "
        "modulo 1000000007.\n\nInput\nOne line holds n (1 <= n <= 1000000).\n\nOutput\nPrint the number.\n\nExample\n"
        "Input\n4\nOutput\n5",
        "The last stride comes from one or from two steps below, so ways(n) = ways(n - 1) + ways(n - 2), with ways(0) "
        "and ways(1) both 1: 1, 1, 2, 3, 5. Two numbers are enough to go on.\n```python\nn = int(input())\n"
        "last, ways = 1, 1\n"
        "for _ in range(n - 1):\n    last, ways = ways, (last + ways) % 1000000007\nprint(ways)\n```",
    ),
)


@dataclass(frozen=True, config=STRICT)
class CodeContestsConfig(TaskConfig):
    """Where to read the questions from, and how many tests to run.

    Attributes:
      folder: holds train.jsonl and test.jsonl.
      max_tests: number of tests per question, the first ones. A program runs once per test, for at most 4 s; all runs
        together may take prune.seconds_per_trace (20 s by default), or end with "time limit" too. Raise both together.
    """

    name: Literal["code_contests"]
    folder: Path
    max_tests: PositiveInt = 10

    checker_name: ClassVar[str] = "code"
    seconds_per_trace: ClassVar[float] = 20.0
    generation: ClassVar[Generation] = Generation(max_prompt_tokens=1536, max_new_tokens=1536)

    def load(self) -> Task:
        """Reads both splits.

        Raises:
          UserError: a file is missing, or more than 1% of its questions are invalid.
        """
        return self.task(self._read("train"), self._read("test"), instruction=INSTRUCTION, shots=SHOTS)

    def _read(self, split: str) -> tuple[Question, ...]:
        def read(index: int, line: Mapping[str, Any]) -> Question:
            name = parse_id(line, line.get("name", f"{self.name}/{split}/{index}"))
            question = self.read_question(name, line)
            tests = {key: texts[: self.max_tests] for key, texts in question.data.items()}
            return dataclasses.replace(question, data=tests)

        return tuple(read_records(self.folder.expanduser() / f"{split}.jsonl", read))

    @staticmethod
    def default_id(index: int, line: Mapping[str, Any]) -> str:
        return str(line.get("name", index))

    def num_questions(self) -> tuple[int, int]:
        return NUM_TRAIN, NUM_TEST

    @staticmethod
    def read_question(name: str, line: Mapping[str, Any]) -> Question:
        """Reads {"question", "inputs", "outputs"}, or CodeContests' own fields."""
        line = _convert(line)
        question, inputs, outputs = (line.get(key) for key in ("question", "inputs", "outputs"))
        if not isinstance(question, str) or not question.strip():
            raise InvalidRecordError('lacks text under "question"; write {"id", "question", "inputs", "outputs"}')
        lists = [texts for texts in (inputs, outputs) if isinstance(texts, list)]
        if len(lists) < 2 or not all(isinstance(text, str) for texts in lists for text in texts):
            raise InvalidRecordError('lacks a list of texts under "inputs" or "outputs"; write one per test in both')
        if len(lists[0]) != len(lists[1]) or not lists[0]:
            raise InvalidRecordError(
                f'has {len(lists[0])} "inputs" and {len(lists[1])} "outputs"; write one of each per test, at least one'
            )
        return Question(name, question.strip(), "", {"inputs": lists[0], "outputs": lists[1]})


def _convert(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """A line with CodeContests' own fields as {"question", "inputs", "outputs"}; any other line unchanged."""
    if "description" not in line:
        return line
    groups = [line.get(f"{kind}_tests") for kind in ("public", "private", "generated")]
    tests = [group for group in groups if isinstance(group, Mapping)]
    texts = {key: [text for group in tests for text in group.get(key) or ()] for key in ("input", "output")}
    return {"question": line["description"], "inputs": texts["input"], "outputs": texts["output"]}
