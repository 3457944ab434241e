"""`tpt check-task`: what a task's checker reads in right and wrong answers, before any model is loaded."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from tpt_jax.commands.arguments import add_config_arguments, positive, read_config
from tpt_jax.errors import UserError, one_line, printable

if TYPE_CHECKING:
    from tpt_jax.library.check_task import CheckedCompletion, TaskCheck

EXAMPLES = "examples.jsonl"
MAX_SHOWN = 40  # characters of a completion or an answer
NUM_NAMED = 5  # ids in a line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--examples",
        type=Path,
        help='completions of your own, JSON lines: {"question" or "question_id", "completion", "correct": true or '
        f"false}}; {EXAMPLES} beside the config, if there is one",
    )
    parser.add_argument("--num_shown", type=positive, default=2, help="questions of each split to show")
    parser.epilog = (
        "Exit status 2 if an example of yours is judged otherwise, a wrong answer counts as right, or more than 1% of "
        f"the reference answers cannot be read. {parser.epilog}"
    )


def main(args: argparse.Namespace) -> None:
    """Prints what the checker reads.

    Raises:
      UserError: something speaks against training on the task.
    """
    import tpt_jax as tpt
    from tpt_jax import tasks
    from tpt_jax.io.tables import stdout_console

    config = read_config(args)
    task = tasks.load_task(config.task)
    beside = args.config.parent / EXAMPLES
    result = tpt.check_task(
        task,
        examples=args.examples or (beside if beside.is_file() else ()),
        num_shown=args.num_shown,
        num_workers=config.prune.num_workers,
        seconds_per_trace=config.prune.seconds_per_trace,
        run_code_without_sandbox=config.prune.run_code_without_sandbox,
    )
    instruction = task.train.instruction if config.prompt.instruction is None else config.prompt.instruction
    console = stdout_console(file_width=160)
    if instruction:
        print(f"instruction after each question: {one_line(instruction)}")
    _print_completions(console, result)
    _print_figures(result)
    if result.mistakes:
        raise UserError(f"check-task: {'; '.join(result.mistakes)}; change the checker, the answers or the examples")


def _print_completions(console: Console, result: "TaskCheck") -> None:
    """A table for each question, under its text and reference answer."""
    from tpt_jax.io.tables import print_table

    by_question: dict[tuple[str, str], list[CheckedCompletion]] = {}
    for each in result.completions:
        by_question.setdefault((each.split, each.question.id), []).append(each)
    for (split, name), completions in by_question.items():
        question = completions[0].question
        print(f"\n{split} {one_line(name)}: {one_line(question.question, 300)}")
        print(f"reference answer: {one_line(question.answer, 300) or 'none; the checker has other data'}")
        table = Table(
            "answer",
            "completion",
            "correct",
            "strict",
            "extracted",
            "expected",
            "",
            box=box.SIMPLE,
            padding=(0, 1, 0, 0),
        )
        for each in completions:
            table.add_row(*_cells(each))
        print_table(console, table)


def _cells(each: "CheckedCompletion") -> tuple[str, ...]:
    verdict = each.verdict
    expected = "" if each.expected is None else _yes_no(each.expected)
    extracted = _short(verdict.extracted) if verdict.extracted is not None else verdict.reason and f"({verdict.reason})"
    return (
        each.form,
        _short(each.completion),
        "unknown" if verdict.unknown else _yes_no(verdict.correct),
        _yes_no(verdict.strict),
        extracted,
        expected,
        "!!" if not each.is_as_expected else "ok" if each.expected is not None or verdict.correct else "",
    )


def _print_figures(result: "TaskCheck") -> None:
    asked = Counter(each.form for each in result.completions if each.expected is None)
    right = Counter(each.form for each in result.completions if each.expected is None and each.verdict.correct)
    strict = Counter(each.form for each in result.completions if each.expected is None and each.verdict.strict)
    if asked:
        forms = ", ".join(f"{form} {right[form]} ({strict[form]} strict) of {asked[form]}" for form in asked)
        print(f"\nreference answers that count as right: {forms}")
        if not right.total():
            print("!! none does: if the checker wants another form, show it one in an example of yours")
    for split, check in result.splits.items():
        counts = (
            f"{check.num_questions:,} questions",
            f"{len(check.unreadable)} with an unreadable reference answer{_names(check.unreadable)}",
            f"{len(check.repeated)} with the text of an earlier one{_names(check.repeated)}",
            f"{len(check.contradicting)} of these with another answer{_names(check.contradicting)}",
        )
        print(f"{split}: {', '.join(counts)}")
    print(f"left out of training because they are test questions too: {result.num_contaminated}")
    print(f"time per check: {1000 * result.seconds_per_check:.2f} ms")


def _names(names: tuple[str, ...]) -> str:
    from tpt_jax.terminal import listed

    return f" ({one_line(listed(names, NUM_NAMED))})" if names else ""


def _short(text: str) -> str:
    """A text on one short line, in quotes, with its line ends and other controls as escapes."""
    quoted = "'" + printable(text).replace("\n", "\\n").replace("\t", "\\t") + "'"
    return quoted if len(quoted) <= MAX_SHOWN else f"{quoted[: MAX_SHOWN - 3]}..."


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"
