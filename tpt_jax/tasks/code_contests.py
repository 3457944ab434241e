"""Programming contests: programs that read standard input and write standard output, judged by their output.

The files hold one object a line, {"id", "question", "inputs", "outputs"}, the last two lists of texts of one length; or
CodeContests' own fields (arXiv 2203.07814), {"name", "description", "public_tests": {"input", "output"},
"private_tests", "generated_tests"}, as its conversions to JSON and Parquet have them. It is published as RecordIO files
of protobufs, which are not read here. A problem that has several right outputs is not for this task: CodeContests has
no judge for it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT, InvalidRecordError
from tpt_jax.io.record_files import id_of, read_records
from tpt_jax.records import Generation, Question, Shot
from tpt_jax.tasks.task import Task, TaskConfig

NUM_TRAIN, NUM_TEST = 13_328, 165  # as published
INSTRUCTION = (
    "Think step by step, then write a Python program that reads standard input and writes to standard output, in one "
    "fenced block: a line ```python, the whole program, a line ```. Write no other fenced block."
)

# Our own, in the manner of the data set.
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
    """Where the questions are.

    Attributes:
      folder: holds train.jsonl and test.jsonl.
      max_tests: of a question, the first ones. A program runs once for each, for 4 s at most; all runs together have
        prune.seconds_per_trace (20 s, where it is not set), and end with "time limit" too. Raise both together.
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
          UserError: a file is missing, or holds something else.
        """

        def questions(split: str) -> tuple[Question, ...]:
            def question(index: int, line: Mapping[str, Any]) -> Question:
                name = id_of(line, line.get("name", f"{self.name}/{split}/{index}"))
                of_line = self.read_question(name, line)
                first = {key: texts[: self.max_tests] for key, texts in of_line.data.items()}
                return Question(of_line.id, of_line.question, "", first)

            return tuple(read_records(self.folder.expanduser() / f"{split}.jsonl", question))

        return self.task(questions("train"), questions("test"), instruction=INSTRUCTION, shots=SHOTS)

    @staticmethod
    def default_id(index: int, line: Mapping[str, Any]) -> str:
        return str(line.get("name", index))

    def num_questions(self) -> tuple[int, int]:
        return NUM_TRAIN, NUM_TEST

    @staticmethod
    def read_question(name: str, line: Mapping[str, Any]) -> Question:
        """{"question", "inputs", "outputs"}, or CodeContests' own fields."""
        line = _in_our_form(line)
        question, inputs, outputs = (line.get(key) for key in ("question", "inputs", "outputs"))
        if not isinstance(question, str) or not question.strip():
            raise InvalidRecordError('lacks a text under "question"; write {"id", "question", "inputs", "outputs"}')
        lists = [texts for texts in (inputs, outputs) if isinstance(texts, list)]
        if len(lists) < 2 or not all(isinstance(text, str) for texts in lists for text in texts):
            raise InvalidRecordError('lacks a list of texts under "inputs" or "outputs"; write one text a test in both')
        if len(lists[0]) != len(lists[1]) or not lists[0]:
            raise InvalidRecordError(
                f'has {len(lists[0])} "inputs" and {len(lists[1])} "outputs"; write one of each a test, one at least'
            )
        return Question(name, question.strip(), "", {"inputs": lists[0], "outputs": lists[1]})


def _in_our_form(line: Mapping[str, Any]) -> Mapping[str, Any]:
    if "description" not in line:
        return line
    kinds = (line.get(f"{kind}_tests") for kind in ("public", "private", "generated"))
    tests = [of_kind for of_kind in kinds if isinstance(of_kind, Mapping)]
    texts = {key: [text for of_kind in tests for text in of_kind.get(key) or ()] for key in ("input", "output")}
    return {"question": line["description"], "inputs": texts["input"], "outputs": texts["output"]}
