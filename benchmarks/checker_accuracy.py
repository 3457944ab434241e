"""A ledger of the answer checkers' accuracy on labelled traces of public models.

    python benchmarks/checker_accuracy.py FOLDER [--labelled model_solutions_6b.jsonl] [--show SET]

FOLDER holds, for each set, NAME.questions.jsonl and NAME.traces.jsonl in our formats, whose traces have a "label": the
verdict of the repository that published them. The start of a name says which task judges: num_ (gsm8k), math_ (math),
mc_ (multiple_choice), code_he_ (humaneval), code_mbpp_ (mbpp). Labels are sometimes wrong. label_errors.yaml names
those that were read and found so, by line, with the reason; they count as agreement here, and are counted beside it.
--show prints the disagreements that are left in a set, or with "all" in every set.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from tpt_jax.checks.pool import CheckerPool
from tpt_jax.io.files import read_jsonl
from tpt_jax.library.trace_files import read_questions
from tpt_jax.records import Question, Trace, Verdict
from tpt_jax.tasks import task_class

TASKS = {"num": "gsm8k", "math": "math", "mc": "multiple_choice", "code_he": "humaneval", "code_mbpp": "mbpp"}
LABEL_ERRORS = Path(__file__).with_name("label_errors.yaml")
TAIL = 300  # characters of a trace that --show prints


@dataclasses.dataclass(frozen=True)
class Judged:
    """A labelled trace, by its line in the file, with our verdict."""

    line: int
    question: Question
    completion: str
    label: bool
    verdict: Verdict

    @property
    def agrees(self) -> bool:
        return self.verdict.correct == self.label


def main() -> int:
    """0: done; 2: no labelled sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labelled", type=Path, help='lines of {"ground_truth", "solution", "is_correct"}')
    parser.add_argument("--show", default="", help="the set whose disagreements are printed, or all")
    args = parser.parse_args()
    names = sorted(path.name.removesuffix(".traces.jsonl") for path in args.folder.glob("*.traces.jsonl"))
    if not names:
        print(f"checker_accuracy.py: {args.folder}: holds no NAME.traces.jsonl", file=sys.stderr)
        return 2
    errors = yaml.safe_load(LABEL_ERRORS.read_text())
    table = Table("set", "traces", "unreadable reference", "agree", "label errors", "false correct", "false wrong")
    solutions = [args.labelled.stem] if args.labelled else []
    for name in (*names, *solutions):
        judged = judge_solutions(args.labelled) if name in solutions else judge_set(args.folder, name)
        known = [each for each in judged if not each.verdict.unknown]
        wrong_labels = {line for lines in errors.get(name, {}).values() for line in lines}
        left = [each for each in known if not each.agrees and each.line not in wrong_labels]
        false_correct = sum(each.verdict.correct for each in left)
        counts = (
            len(judged),
            len(judged) - len(known),
            sum(each.agrees for each in known),
            sum(not each.agrees and each.line in wrong_labels for each in known),
            false_correct,
            len(left) - false_correct,
        )
        table.add_row(name, *map(str, counts))
        if args.show in (name, "all"):
            show(name, left)
    Console(width=140).print(table)
    return 0


def judge_set(folder: Path, name: str) -> list[Judged]:
    """The labelled traces of a set, judged in worker processes as `tpt prune` does."""
    task = task_class(next(task for prefix, task in TASKS.items() if name.startswith(f"{prefix}_")))
    path = folder / f"{name}.questions.jsonl"
    questions = read_questions(path, task.read_question, lambda index, line: [task.default_id(index, line)])
    lines = [
        (number, line)
        for number, line in enumerate(read_jsonl(folder / f"{name}.traces.jsonl"), start=1)
        if str(line["id"]) in questions and line.get("label") is not None
    ]
    return _judge(
        task.checker_name,
        task.seconds_per_trace,
        [(number, questions[str(line["id"])], line["completion"], line["label"]) for number, line in lines],
    )


def judge_solutions(path: Path) -> list[Judged]:
    """The solutions that OpenAI published for GSM8K, with their labels; the reference answer follows "A:"."""
    lines = enumerate(read_jsonl(path), start=1)
    return _judge(
        "numeric",
        5.0,
        [
            (
                number,
                Question(str(number), line["question"], line["ground_truth"].rpartition("A:")[2].strip()),
                line["solution"],
                line["is_correct"],
            )
            for number, line in lines
        ],
    )


def _judge(checker: str, seconds_per_trace: float, labelled: list[tuple[int, Question, str, bool]]) -> list[Judged]:
    pairs: Iterator[tuple[Question, Trace]] = (
        (question, Trace(question.id, number, completion)) for number, question, completion, _ in labelled
    )
    with CheckerPool(checker, None, seconds_per_trace=seconds_per_trace) as pool:
        return [Judged(*each, verdict) for each, verdict in zip(labelled, pool.judge(pairs), strict=True)]


def show(name: str, left: list[Judged]) -> None:
    """Prints the ends of traces, as ASCII, since a model's text must not drive a terminal."""
    for each in left:
        kind = "false correct" if each.verdict.correct else "false wrong"
        found = json.dumps(each.verdict.extracted or each.verdict.reason)
        print(f"{name}:{each.line} {kind}: reference {each.question.answer!a}, found {found}")
        print(f"    {each.completion[-TAIL:]!a}")


if __name__ == "__main__":
    sys.exit(main())
