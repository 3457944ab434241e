r"""Compares our answer checkers with others' on the same traces, and shows traces on which they disagree.

    pip install 'tpt_jax[bench]'
    python benchmarks/compare_checkers.py --questions questions.json --traces traces.jsonl --show 5
    python benchmarks/compare_checkers.py --labelled model_solutions_6b.jsonl
    python benchmarks/compare_checkers.py --math problems.jsonl

The first two commands check numeric answers. The second takes lines of {"ground_truth", "solution", "is_correct"} with
the answer after "A:", the format OpenAI published for GSM8K. The third checks LaTeX answers: lines of {"answer",
"completion"} and optionally "label" (true or false), a human verdict. Only answer extraction and comparison are
measured: the other tools use their own prompts, and lm-evaluation-harness stops sampling at "Question:".

  - public expression: the regular expression of the public TPT scripts, answers compared as strings;
  - lm-eval strict, lm-eval flexible: lm-evaluation-harness's gsm8k task, with its own filters, metric and settings;
  - math-verify: the library on its own, given the boxed reference answer and the full trace;
  - Minerva: the comparison of Lewkowycz et al. 2022 (arXiv 2206.14858, appendix D.1) in lm-evaluation-harness. Its own
    extraction only accepts "Final Answer: The final answer is X. I hope it is correct.", so it is given the answer that
    our math checker extracts.

The last two cannot run together: Minerva needs antlr4-python3-runtime 4.11, with which math-verify (0.9.0) cannot read
percentages. Run the script twice, the second time with Minerva:

    pip install --target antlr411 antlr4-python3-runtime==4.11.1
    PYTHONPATH=antlr411 python benchmarks/compare_checkers.py ...
"""

import argparse
import dataclasses
import importlib.resources
import itertools
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tpt_jax.checks.answers.extract import Missing, extract_answer
from tpt_jax.checks.answers.latex import LATEX_READER, check_math
from tpt_jax.checks.answers.number import check_numeric
from tpt_jax.evaluation import mean_interval
from tpt_jax.io.files import read_jsonl
from tpt_jax.library.trace_files import read_questions
from tpt_jax.records import Question
from tpt_jax.tasks.task import read_plain_question

PUBLIC_EXPRESSION = re.compile(r"####\s*(-?[\d.,]+)")
TAIL = 400  # characters of a trace that --show prints

Compare = Callable[[str, str], bool]  # (reference answer, trace) -> correct


@dataclasses.dataclass(frozen=True)
class Item:
    """A trace to judge, with a human verdict if there is one."""

    question: str
    sample: int
    answer: str
    completion: str
    label: bool | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--labelled", type=Path)
    parser.add_argument("--math", type=Path)
    parser.add_argument("--show", type=int, default=0, help="traces to show for each kind of disagreement")
    args = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    if args.questions and args.traces:
        compare(_traces(args.questions, args.traces), numeric_checkers(), args.show)
    if args.labelled:
        compare(_labelled(args.labelled), numeric_checkers(), args.show)
    if args.math:
        compare(_math_lines(args.math), math_checkers(), args.show)


def _traces(questions_path: Path, traces_path: Path) -> list[Item]:
    answers = {name: question.answer for name, question in read_questions(questions_path, read_plain_question).items()}
    return [
        Item(str(line["id"]), line["sample"], answers[str(line["id"])], line.get("completion", line.get("trace", "")))
        for line in read_jsonl(traces_path)
    ]


def _labelled(path: Path) -> list[Item]:
    return [
        Item(str(index), 0, line["ground_truth"].rpartition("A:")[2].strip(), line["solution"], line["is_correct"])
        for index, line in enumerate(read_jsonl(path))
    ]


def _math_lines(path: Path) -> list[Item]:
    return [
        Item(str(index), 0, line["answer"], line["completion"], line.get("label"))
        for index, line in enumerate(read_jsonl(path))
    ]


def numeric_checkers() -> dict[str, Compare]:
    """Numeric checkers by name, ours first."""
    return {
        "correct": lambda answer, trace: check_numeric(Question("", "", answer), trace).correct,
        "strict": lambda answer, trace: check_numeric(Question("", "", answer), trace).strict,
        "public expression": _public_expression,
        **_harness(),
        **_symbolic(),
    }


def math_checkers() -> dict[str, Compare]:
    """LaTeX checkers by name, ours first."""
    return {
        "correct": lambda answer, trace: check_math(Question("", "", answer), trace).correct,
        "strict": lambda answer, trace: check_math(Question("", "", answer), trace).strict,
        **_symbolic(),
    }


def _public_expression(answer: str, trace: str) -> bool:
    match = PUBLIC_EXPRESSION.search(trace)
    return match is not None and match.group(1) == answer


def _harness() -> dict[str, Compare]:
    """The two verdicts of lm-evaluation-harness on GSM8K."""
    import lm_eval.filters  # noqa: F401  # pyright: ignore[reportMissingImports]  registers the filters
    from lm_eval.api.metrics import exact_match_fn  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import get_filter  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks._yaml_loader import load_yaml  # pyright: ignore[reportMissingImports]

    task = load_yaml(Path(str(importlib.resources.files("lm_eval"))) / "tasks" / "gsm8k" / "gsm8k.yaml")
    non_settings = {"metric", "aggregation", "higher_is_better"}
    settings = {key: value for key, value in task["metric_list"][0].items() if key not in non_settings}

    def checker(steps: Sequence[Mapping[str, Any]]) -> Compare:
        filters = [get_filter(step["function"])(**{k: v for k, v in step.items() if k != "function"}) for step in steps]

        def judge(answer: str, trace: str) -> bool:
            answers: Any = [[trace]]
            for step in filters:
                answers = list(step.apply(answers, [{}]))
            return exact_match_fn(predictions=answers, references=[answer], **settings)["exact_match"] == 1

        return judge

    names = {"strict-match": "lm-eval strict", "flexible-extract": "lm-eval flexible"}
    return {names[filters["name"]]: checker(filters["filter"]) for filters in task["filter_list"]}


def _math_verify(answer: str, trace: str) -> bool:
    from math_verify import parse, verify

    return verify(parse(rf"\boxed{{{answer}}}"), parse(trace))


def _symbolic() -> dict[str, Compare]:
    """Minerva's comparison if the installed antlr allows it, otherwise math-verify's."""
    if not version("antlr4-python3-runtime").startswith("4.11"):
        return {"math-verify": _math_verify}
    from lm_eval.tasks.minerva_math.utils import is_equiv, normalize_final_answer  # pyright: ignore[reportMissingImports]

    def judge(answer: str, trace: str) -> bool:
        extracted = extract_answer(trace, LATEX_READER)
        return not isinstance(extracted, Missing) and is_equiv(
            normalize_final_answer(extracted.value), normalize_final_answer(answer)
        )

    return {"Minerva": judge}


def compare(items: Sequence[Item], checkers: Mapping[str, Compare], show: int) -> None:
    """Prints each checker's share of correct traces, pairwise agreement, and `show` traces per kind of disagreement."""
    verdicts: dict[str, list[bool]] = {}
    rates: dict[str, float] = {}
    for name, judge in checkers.items():
        started = time.perf_counter()
        verdicts[name] = [bool(judge(item.answer, item.completion)) for item in items]
        rates[name] = len(items) / (time.perf_counter() - started)
    ours = verdicts["correct"]
    labels = [item.label for item in items]
    table = Table("", "correct", "share", "not by ours", "only by ours", "agrees with labels", "verdicts/s")
    for name, theirs in verdicts.items():
        agreements = [verdict == label for verdict, label in zip(theirs, labels, strict=True) if label is not None]
        table.add_row(
            name,
            str(sum(theirs)),
            _share(items, theirs),
            str(sum(map(_only_first, theirs, ours))),
            str(sum(map(_only_first, ours, theirs))),
            f"{sum(agreements)} of {len(agreements)}" if agreements else "",
            f"{rates[name]:,.0f}",
        )
    console = Console()
    console.print(f"{len(items)} traces, one core", highlight=False)
    console.print(table)
    pairs = Table("agree on", *list(verdicts)[1:])
    for first, group in itertools.groupby(itertools.combinations(verdicts, 2), key=lambda pair: pair[0]):
        agreements = [sum(map(bool.__eq__, verdicts[first], verdicts[second])) for _, second in group]
        pairs.add_row(first, *[""] * (len(verdicts) - 1 - len(agreements)), *map(str, agreements))
    console.print(pairs)
    for name, theirs in list(verdicts.items())[1:]:
        _show(f"correct by {name}, not by ours", list(map(_only_first, theirs, ours)), items, show)
        _show(f"correct by ours, not by {name}", list(map(_only_first, ours, theirs)), items, show)


def _share(items: Sequence[Item], correct: Sequence[bool]) -> str:
    """Share of correct traces, with its 95% interval over questions."""
    by_question: dict[str, list[bool]] = {}
    for item, is_correct in zip(items, correct, strict=True):
        by_question.setdefault(item.question, []).append(is_correct)
    low, high = mean_interval([sum(verdicts) / len(verdicts) for verdicts in by_question.values()])
    return f"{sum(correct) / len(correct):.1%} ({low:.1%} to {high:.1%})"


def _only_first(first: bool, second: bool) -> bool:
    return first and not second


def _show(title: str, selected: Sequence[bool], items: Sequence[Item], count: int) -> None:
    """Prints the ends of traces; control characters are escaped, since a model's text must not drive a terminal."""
    for item in list(itertools.compress(items, selected))[:count]:
        print(f"\n{title}: {item.question}/{item.sample}, reference {item.answer!a}")
        for line in item.completion[-TAIL:].split("\n"):
            print(f"    {ascii(line)[1:-1]}")


if __name__ == "__main__":
    main()
