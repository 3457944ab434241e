"""What flows between the stages: questions, traces, verdicts, and their JSON lines."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Self

from tpt_jax.errors import UnusableError, UserError
from tpt_jax.paths import is_remote, to_path

FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A question whose final answer is known.

    Attributes:
      answer: the reference; "" where `data` alone tells right from wrong, as unit tests do.
      data: what else the checker needs, plain values: see the checker.
    """

    id: str
    question: str
    answer: str
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """One sampled completion of a question's prompt, as the model wrote it."""

    id: str  # of the question
    sample: int  # 0 .. num_samples - 1
    completion: str  # decoded text, without the end of turn
    token_ids: tuple[int, ...] = ()  # sampled tokens, without the end of turn; () where only text is known
    logprob: float = 0.0  # sum over the sampled tokens, end of turn included, at temperature 1
    finish_reason: FinishReason = "stop"  # "length": cut at max_new_tokens, no end of turn

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.id}/{self.sample}"

    @property
    def num_sampled(self) -> int:
        """Tokens that were sampled, the end of turn included."""
        return len(self.token_ids) + (self.finish_reason == "stop")


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What the checker said of a trace: right, wrong, or unknown.

    Attributes:
      extracted: the final answer found, normalised; None where there is none.
      strict: right, and in the format that the prompt asked for.
      correct: right, format forgiven.
      reason: why not correct, where it is not plainly a wrong answer: "no answer", "time limit", ...
      unknown: neither right nor wrong, for the question's own reference cannot be read; such a trace is never trained
        on, and no rate counts it.
    """

    extracted: str | None
    strict: bool
    correct: bool
    reason: str = ""
    unknown: bool = False

    @classmethod
    def wrong(cls, reason: str, extracted: str | None = None) -> Self:
        return cls(extracted, strict=False, correct=False, reason=reason)

    @classmethod
    def not_known(cls, reason: str) -> Self:
        return cls(None, strict=False, correct=False, reason=reason, unknown=True)


@dataclasses.dataclass(frozen=True, slots=True)
class JudgedTrace:
    """A trace with its verdict; one JSON line holds the fields of both, and `kept`."""

    trace: Trace
    verdict: Verdict
    kept: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.trace), **dataclasses.asdict(self.verdict), "kept": self.kept}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        trace = Trace(**{field.name: line[field.name] for field in dataclasses.fields(Trace)})
        verdict = Verdict(**{field.name: line[field.name] for field in dataclasses.fields(Verdict)})
        trace = dataclasses.replace(trace, token_ids=tuple(trace.token_ids))
        return cls(trace, verdict, line["kept"])


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON-lines file; blank lines are skipped.

    Raises:
      UserError: the file is missing, or a line is not a JSON object (named by file and line).
    """
    path = to_path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a JSON-lines file, one object a line")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield parse_line(line)
            except UnusableError as error:
                raise UserError(f"{path}:{number}: {error}") from error


def parse_line(line: bytes) -> dict[str, Any]:
    """The object in a line.

    Raises:
      UnusableError: there is none.
    """
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UnusableError(f"not UTF-8 ({error.reason}); write the file in UTF-8") from error
    except json.JSONDecodeError as error:
        raise UnusableError(f"not JSON ({error.msg}); write one object a line") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets
        raise UnusableError(f"not JSON that can be read ({error}); write one object a line") from error
    if not isinstance(value, dict):
        raise UnusableError(f"a {type(value).__name__}, not an object; write one object a line")
    return value


def digest(path: str | os.PathLike[str]) -> str:
    """What a file's content is known by.

    Raises:
      UserError: there is no such file.
    """
    path = to_path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a JSON-lines file, one object a line")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file that is there whole or not at all, whenever the process is killed.

    Raises:
      UserError: its folder cannot be made.
    """
    path = to_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made ({error.strerror}); give a folder that can") from error
    if is_remote(path):
        path.write_text(text)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_jsonl(path: str | os.PathLike[str], lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines atomically."""
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))
