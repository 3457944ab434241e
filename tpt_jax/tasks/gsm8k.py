"""GSM8K grade-school word problems (arXiv 2110.14168)."""

from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT, UserError
from tpt_jax.records import Question, read_jsonl
from tpt_jax.tasks.task import Task

CHECKER = "numeric"
INSTRUCTION = "Solve the problem step by step. End with a line that holds only the final number, as in: #### 42"


@dataclass(frozen=True, config=STRICT)
class Gsm8kConfig:
    """Where the questions are.

    Attributes:
      folder: holds train.jsonl and test.jsonl as OpenAI publishes them (github.com/openai/grade-school-math); null:
        tensorflow-datasets downloads and keeps them.
    """

    name: Literal["gsm8k"]
    folder: Path | None = None


def load(config: Gsm8kConfig) -> Task:
    """Reads both splits.

    Raises:
      UserError: a file is missing or holds no question with an answer.
    """
    read = _from_tensorflow_datasets if config.folder is None else lambda split: _from_folder(Path(config.folder), split)
    return Task(config.name, INSTRUCTION, CHECKER, train=read("train"), test=read("test"))


def _from_folder(folder: Path, split: str) -> tuple[Question, ...]:
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; get train.jsonl and test.jsonl from github.com/openai/grade-school-math "
            "and set task.folder to where they are"
        )
    return tuple(_question(index, split, line, str(path)) for index, line in enumerate(read_jsonl(path)))


def _from_tensorflow_datasets(split: str) -> tuple[Question, ...]:
    import tensorflow_datasets as tfds

    source = tfds.data_source("gsm8k", split=split)
    text = {key: value for key, value in (("question", "question"), ("answer", "answer"))}
    lines = ({key: _text(example[name]) for key, name in text.items()} for example in source)
    return tuple(_question(index, split, line, "tensorflow-datasets gsm8k") for index, line in enumerate(lines))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _question(index: int, split: str, line: dict, source: str) -> Question:
    if "question" not in line or "####" not in str(line.get("answer")):
        raise UserError(f"{source}: line {index + 1} needs a question and an answer that ends in '#### number'")
    return Question(f"gsm8k/{split}/{index}", line["question"], line["answer"].rpartition("####")[2].strip())
