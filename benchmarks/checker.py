"""How the numeric checker's verdicts compare with others', and how fast they come.

    python benchmarks/checker.py --questions questions.json --traces traces.jsonl
    python benchmarks/checker.py --labelled model_solutions_6b.jsonl

The first compares, on any model's traces, the two verdicts with what the public TPT scripts do: a regular expression
and string equality. The second counts disagreements with labels made by others: JSON lines of {"ground_truth",
"solution", "is_correct"}, answers after "A:", as OpenAI published for GSM8K.
"""

import argparse
import re
import time
from pathlib import Path

from tpt_jax.evaluate import mean_interval
from tpt_jax.prune.answers import check_numeric
from tpt_jax.prune.command import read_questions
from tpt_jax.prune.pool import CheckerPool
from tpt_jax.records import Question, Trace, Verdict, read_jsonl
from tpt_jax.tasks.task import read_plain_question

PUBLIC_SCRIPTS = re.compile(r"####\s*(-?[\d.,]+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--labelled", type=Path)
    args = parser.parse_args()
    if args.questions and args.traces:
        compare(args.questions, args.traces)
    if args.labelled:
        count_disagreements(args.labelled)


def compare(questions_path: Path, traces_path: Path) -> None:
    """Prints how many traces each checker calls right, and verdicts a second."""
    questions = read_questions(questions_path, read_plain_question)
    traces = [
        Trace(str(line["id"]), line["sample"], line.get("completion", line.get("trace", "")))
        for line in read_jsonl(traces_path)
    ]
    started = time.perf_counter()
    verdicts = [check_numeric(questions[trace.id], trace.completion) for trace in traces]
    alone = len(traces) / (time.perf_counter() - started)
    pairs = [(questions[trace.id], trace) for trace in traces]
    with CheckerPool("numeric", None, seconds_per_trace=5.0) as pool:
        started = time.perf_counter()
        assert list(pool.judge(pairs)) == verdicts
        pooled = len(traces) / (time.perf_counter() - started)
    public = [_public_verdict(questions[trace.id].answer, trace.completion) for trace in traces]
    print(f"{len(traces)} traces of {len(questions)} questions")
    _print_rate("public expression, string equality", traces, public)
    _print_rate("strict", traces, [verdict.strict for verdict in verdicts])
    _print_rate("correct", traces, [verdict.correct for verdict in verdicts])
    only_public = sum(theirs and not ours.correct for theirs, ours in zip(public, verdicts, strict=True))
    print(f"called right by the public expression alone: {only_public}")
    print(f"{alone:,.0f} verdicts/s on one core; {pooled:,.0f} through the pool, its start included")


def _public_verdict(answer: str, completion: str) -> bool:
    match = PUBLIC_SCRIPTS.search(completion)
    return match is not None and match.group(1) == answer


def _print_rate(label: str, traces: list[Trace], right: list[bool]) -> None:
    by_question: dict[str, list[bool]] = {}
    for trace, verdict in zip(traces, right, strict=True):
        by_question.setdefault(trace.id, []).append(verdict)
    low, high = mean_interval([sum(of_question) / len(of_question) for of_question in by_question.values()])
    print(f"{label:36} {sum(right) / len(right):6.1%}  ({low:.1%} to {high:.1%})")


def count_disagreements(path: Path) -> None:
    """Prints how often the verdict `correct` differs from the label."""
    lines = list(read_jsonl(path))

    def verdict(line: dict[str, str]) -> Verdict:
        answer = line["ground_truth"].rpartition("A:")[2]
        return check_numeric(Question("", line["question"], answer), line["solution"])

    different = [line for line in lines if verdict(line).correct != line["is_correct"]]
    print(f"{len(different)} of {len(lines)} verdicts differ from the labels")


if __name__ == "__main__":
    main()
