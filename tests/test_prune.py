"""`tpt prune`, also with the user's own checker."""

import argparse
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tpt_jax.commands import prune as command
from tpt_jax.errors import UserError
from tpt_jax.io.files import read_jsonl
from tpt_jax.library.trace_files import read_traces_to_judge
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.prune.summary import failed_on_all, print_summary
from tpt_jax.records import JudgedTrace, Question, Trace, Verdict

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared"

CORRECT = Verdict("1", strict=True, correct=True)
WRONG = Verdict("2", strict=False, correct=False)


def trace(name: str, sample: int, text: str, verdict: Verdict) -> JudgedTrace:
    return JudgedTrace(Trace(name, sample, text), verdict)


# The command.


def prune(folder: Path, questions: object, traces: str, *more: str, status: int = 0) -> list[dict]:
    (folder / "questions.json").write_text(json.dumps(questions))
    (folder / "traces.jsonl").write_text(traces)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    paths = (
        "--questions",
        f"{folder}/questions.json",
        "--traces",
        f"{folder}/traces.jsonl",
        "--output",
        f"{folder}/out.jsonl",
    )
    assert command.main(parser.parse_args(["--task", "gsm8k", *paths, *more])) == status
    return list(read_jsonl(folder / "out.jsonl"))


QUESTIONS = [
    {"id": 3, "question": "1 + 6?", "answer": "1 + 6 = 7\n#### 7"},
    {"id": 4, "question": "4 + 4?", "answer": "8"},
    {"id": 5, "question": "What is the meaning of it all?", "answer": "unclear"},
]
TRACES = [
    {"id": 3, "sample": 0, "trace": "#### 7", "finish_reason": None},
    {"id": 3, "sample": 1, "trace": "so $7"},
    {"id": 4, "trace": "9"},
    {"id": 4, "trace": "no idea"},
    {"id": 4, "trace": "#### 8 or 9", "finish_reason": "length"},
    {"id": 5, "trace": "#### 42"},
]


def as_lines(items: Iterable[object]) -> str:
    return "\n".join(map(json.dumps, items))


def test_prune_adds_verdicts_to_the_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = prune(tmp_path, QUESTIONS, as_lines(TRACES), "--max_per_question", "1", "--num_workers", "1", status=1)
    verdicts = [(line["correct"], line["strict"], line["unknown"]) for line in out]
    assert verdicts == [(True, True, False), (True, False, False), *[(False, False, False)] * 3, (False, False, True)]
    assert sum(line["kept"] for line in out) == 1
    assert out[2]["trace"] == "9"
    assert [line["sample"] for line in out if "sample" in line] == [0, 1]
    printed = capsys.readouterr()
    assert "it cannot read the reference answers of 1 of 3 questions, more than 1%: 5; fix them" in printed.err
    table = {cells[0]: cells[1:] for cells in map(_cells, printed.out.splitlines()) if len(cells) > 1}
    assert table["correct"] == ["50.0% (0.0% to 100.0%)"] * 2  # Pass@1 and Pass@2 of the two readable questions
    assert [cell.partition(" ")[0] for cell in table["strict"]] == ["25.0%", "50.0%"]
    for row in ("right, in another format", "wrong answer", "no answer", "several answers", "truncated", "kept"):
        assert table[row][0] == "1", row
    assert table["unreadable reference answer"][0] == table["unknown"][0] == "1"
    assert table["dropped: over max_per_question"][0] == "1"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split("[│┃]", line) if cell.strip()]


def test_traces_of_held_out_questions_are_not_kept(tmp_path: Path) -> None:
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"question": " 1  + 6 ", "answer": "7"}))
    traces = [{"id": 3, "trace": "#### 7"}, {"id": 4, "trace": "#### 8"}]
    out = prune(tmp_path, QUESTIONS, as_lines(traces), "--held_out", f"{tmp_path}/held_out.jsonl")
    assert [(line["correct"], line["kept"]) for line in out] == [(True, False), (True, True)]


def test_a_users_function_judges(tmp_path: Path) -> None:
    traces = as_lines([{"id": 4, "trace": "ends in 8"}, {"id": 4, "trace": "#### 8."}])
    out = prune(tmp_path, QUESTIONS, traces, "--checker", f"{__name__}:ends_in_the_answer", "--num_workers", "1")
    assert [line["correct"] for line in out] == [True, False]


def ends_in_the_answer(question: Question, completion: str) -> bool:
    return completion.endswith(question.answer)


def test_numpy_verdicts_are_written_as_json(tmp_path: Path) -> None:
    traces = as_lines([{"id": 4, "trace": "8.0"}, {"id": 4, "trace": "9"}])
    out = prune(tmp_path, QUESTIONS, traces, "--checker", f"{__name__}:returns_numpy_values", "--num_workers", "1")
    assert [line["correct"] for line in out] == [True, False]


def looks_up_a_missing_key(question: Question, completion: str) -> bool:
    return question.data["no such key"] == completion


def returns_numpy_values(question: Question, completion: str) -> Any:
    correct = np.isclose(float(completion), float(question.answer))
    return Verdict(completion, strict=correct, correct=correct)  # type: ignore[arg-type]


def returns_a_function_as_the_answer(question: Question, completion: str) -> Any:
    return Verdict(len, strict=True, correct=True)  # type: ignore[arg-type]


def returns_a_word(question: Question, completion: str) -> Any:
    return "wrong"


@pytest.mark.parametrize(
    ("checker", "reason"),
    [
        ("looks_up_a_missing_key", "checker raised KeyError"),
        ("returns_a_word", "checker raised TypeError"),
        ("returns_a_function_as_the_answer", "checker raised TypeError"),
    ],
)
def test_a_checker_that_fails_on_every_trace_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], checker: str, reason: str
) -> None:
    traces = as_lines([{"id": 4, "trace": "#### 8"}] * 2)
    out = prune(tmp_path, QUESTIONS, traces, "--checker", f"{__name__}:{checker}", "--num_workers", "1", status=1)
    assert [(line["correct"], line["reason"]) for line in out] == [(False, reason)] * 2
    assert f"it failed on every trace ({reason})" in capsys.readouterr().err


def test_a_checker_that_fails_on_some_traces_is_not_said_to_fail_on_all() -> None:
    failed, died = Verdict.wrong("checker raised KeyError"), Verdict.wrong("checker died")
    message = failed_on_all([trace("a", 0, "x", failed), trace("a", 1, "y", died)])
    assert message == "it failed on every trace (checker died, checker raised KeyError)"
    for other in (CORRECT, WRONG, Verdict.wrong("time limit")):
        assert failed_on_all([trace("a", 0, "x", failed), trace("a", 1, "y", other)]) is None
    assert failed_on_all([]) is None


PYTHON = {"text": "Add.", "code": "def f(): pass", "test_list": ["assert f() is None"], "prompt": "def f():"}


@pytest.mark.parametrize(
    ("task", "file", "question", "name", "expected"),
    [
        ("gsm8k", "train.jsonl", {"question": "?", "answer": "7"}, "gsm8k/train/0", "0"),
        ("gsm8k", "train.jsonl", {"question": "?", "answer": "7"}, 0.0, "0"),
        ("gsm8k", "train.jsonl", {"question": "?", "answer": "7", "id": None}, "0", "0"),
        ("gsm8k", "train.jsonl", {"question": "?", "answer": "7", "id": 2.0}, 2, "2"),
        ("gsm8k", "test.jsonl", {"question": "?", "answer": "7"}, "gsm8k/train/0", None),
        ("gsm8k", "train.jsonl", {"question": "?", "answer": "7", "id": "a"}, "gsm8k/train/0", None),
        ("mbpp", "mbpp.jsonl", {**PYTHON, "task_id": 601}, "mbpp/601", "mbpp/601"),
        (
            "humaneval",
            "x",
            {**PYTHON, "test": "", "entry_point": "f", "task_id": "HumanEval/0"},
            "HumanEval/0",
            "HumanEval/0",
        ),
        ("mbpp", "mbpp.jsonl", {**PYTHON, "task_id": 601}, 601, "mbpp/601"),
        ("gsm8k", "train.jsonl", {"question": "?", "answer": "7"}, None, None),
        ("gsm8k", "train.jsonl", {"question": "?", "answer": "7", "id": "True"}, True, None),
    ],
)
def test_traces_may_refer_to_questions_by_their_ids_in_a_run(
    tmp_path: Path, task: str, file: str, question: dict[str, Any], name: object, expected: str | None
) -> None:
    (tmp_path / file).write_text(json.dumps(question))
    (tmp_path / "traces.jsonl").write_text(json.dumps({"id": name, "completion": "#### 7"}))

    def read() -> list[str]:
        questions, traces = tmp_path / file, tmp_path / "traces.jsonl"
        read = read_traces_to_judge(task, questions, traces, "numeric", None, run_code_without_sandbox=False)
        return [trace.id for _, trace in read.lines()]

    if expected is None:
        with pytest.raises(UserError, match=r"traces\.jsonl:1: (no question has the id|lacks an \"id\"|has an \"id\")"):
            read()
    else:
        assert read() == [expected]


def test_an_output_that_cannot_be_written_is_refused_before_traces_are_judged(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot be created .*; give another folder"):
        prune(tmp_path, QUESTIONS, "broken", "--output", f"{tmp_path}/file/out.jsonl")


def test_inputs_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "questions.json")
    for output in ("questions.json", "traces.jsonl", "link"):
        with pytest.raises(UserError, match=r"would overwrite the input .*; give another file"):
            prune(tmp_path, QUESTIONS, as_lines(TRACES), "--output", f"{tmp_path}/{output}")
    assert json.loads((tmp_path / "questions.json").read_text()) == QUESTIONS


def test_an_output_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out.jsonl")
    traces = as_lines([{"id": 4, "trace": "#### 8"}])
    (line,) = prune(tmp_path, QUESTIONS, traces, "--output", f"{tmp_path}/link", "--num_workers", "1")
    assert line["correct"]
    assert (tmp_path / "link").is_symlink()


def test_a_folder_is_refused_as_output(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--output .*: not a plain file; give a file name"):
        prune(tmp_path, QUESTIONS, as_lines(TRACES), "--output", str(tmp_path))


@pytest.mark.parametrize(
    ("questions", "traces", "message"),
    [
        (QUESTIONS, '{"id": 9, "trace": "x"}', r"traces\.jsonl:1: no question has the id '9'"),
        (QUESTIONS, '{"id": 3}', r'traces\.jsonl:1: lacks text under "completion"'),
        (QUESTIONS, '{"id": 3, "sample": "a", "trace": "x"}', r"\('a'\) is not an integer from 0"),
        (QUESTIONS, '{"id": 3, "sample": -1, "trace": "x"}', r'"sample" \(-1\) is not an integer from 0'),
        (QUESTIONS, '{"id": 3, "sample": true, "trace": "x"}', r'"sample" \(True\) is not an integer from 0'),
        (QUESTIONS, '{"id": 3, "trace": "x", "finish_reason": "eos_token"}', r"'eos_token'\) is neither \"stop\" nor"),
        (QUESTIONS, '{"id": [3], "trace": "x"}', 'has an "id" of type list; write text or an integer'),
        ([{"question": ["?"], "answer": 7}], '{"id": 0, "trace": "x"}', 'lacks text under "question"'),
        ([{"question": "?", "answer": True}], '{"id": 0, "trace": "x"}', 'has an "answer" of type bool'),
        ([{"question": "?", "answer": [3]}], '{"id": 0, "trace": "x"}', 'has an "answer" of type list'),
        (QUESTIONS, '{"id": 3, "trace": "x"}\n{"id": 3, "sample": 0, "trace": "y"}', r":2: sample 0 of question '3' a"),
        (QUESTIONS, '{"id": 3, "trace"', r"traces\.jsonl:1: not JSON"),
        (QUESTIONS, "[" * 100_000, r"traces\.jsonl: not JSON"),
        (QUESTIONS, '{"a":' * 100_000, r"traces\.jsonl:1: not JSON"),
        (
            QUESTIONS,
            "7\n" * 9,
            r"9 of 9 records cannot be used, more than 1%: .*:1, .*:5: of type int, not an object.*; \.\.\.",
        ),
        (QUESTIONS, "", "holds no traces"),
        (QUESTIONS * 2, '{"id": 3, "trace": "x"}', r"json, item 4: the id '3' belongs to an earlier question"),
        ([{"id": 3, "question": "?"}], '{"id": 3, "trace": "x"}', r'json, item 1: lacks "answer"'),
        ([], '{"id": 3, "trace": "x"}', "holds no questions"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    tmp_path: Path, questions: object, traces: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prune(tmp_path, questions, traces)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_few_broken_lines_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traces = as_lines({"id": 3, "trace": f"#### {number}"} for number in range(398))
    out = prune(tmp_path, QUESTIONS, f'{traces}\n\n{{"id"\n{{"id": 99, "trace": "x"}}\n', "--num_workers", "1")
    assert len(out) == 398
    err = capsys.readouterr().err
    assert "leaving out 2 of 400 records" in err
    assert "traces.jsonl:400: not JSON" in err
    assert "traces.jsonl:401: no question has the id '99'" in err


PUBLIC_CHECKER = re.compile(r"####\s*(-?[\d.,]+)")  # the public scripts' checker, with string equality


def test_sample_traces_are_judged_as_a_reader_labelled_them(tmp_path: Path) -> None:
    """Traces in the manner of Gemma 2; see data/README.md."""
    questions, traces, output = DATA / "gsm8k" / "test.jsonl", DATA / "traces.jsonl", tmp_path / "out.jsonl"
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    paths = ["--questions", str(questions), "--traces", str(traces), "--output", str(output)]
    assert command.main(parser.parse_args(["--task", "gsm8k", *paths, "--max_per_question", "1"])) == 0
    lines = list(read_jsonl(output))
    assert [line["correct"] for line in lines] == [line["label"] for line in lines]
    assert (len(lines), sum(line["label"] for line in lines)) == (40, 22)
    with_a_correct_one = {line["id"] for line in lines if line["label"]}
    assert sorted(line["id"] for line in lines if line["kept"]) == sorted(with_a_correct_one)
    answers = [line["answer"].rpartition("#### ")[2] for line in read_jsonl(questions)]
    matches = [(PUBLIC_CHECKER.search(line["trace"]), answers[int(line["id"].rpartition("/")[2])]) for line in lines]
    assert sum(match is not None and match[1] == answer for match, answer in matches) == 9


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared/ folder is not next to the checkout")
def test_real_gemma_traces(tmp_path: Path) -> None:
    """The public regular expression and string equality call 42% right; 63% are."""
    questions = json.loads((SHARED / "gemma2_traces" / "questions.json").read_text())
    lines = prune(tmp_path, questions, (SHARED / "gemma2_traces" / "traces.jsonl").read_text())
    answers = {question["id"]: question["answer"] for question in questions}
    matches = [(PUBLIC_CHECKER.search(line["trace"]), answers[line["id"]]) for line in lines]
    assert len(lines) == 2500
    public = sum(match is not None and match[1] == answer for match, answer in matches)
    assert public / 2500 == pytest.approx(0.42, abs=0.005)
    assert sum(line["correct"] for line in lines) / 2500 == pytest.approx(0.63, abs=0.005)


def test_rates_of_questions_that_were_asked_until_right_are_those_of_first_samples() -> None:
    """Two of three are right at once, one after three more samples; over all samples that looks like 75%."""
    verdicts = {"a": [True], "b": [True], "c": [False, False, False, True]}
    pipeline = Pipeline(())
    candidates = [
        pipeline.candidate(Trace(name, sample, str(sample)), Verdict("1", right, right))
        for name, rights in verdicts.items()
        for sample, right in enumerate(rights)
    ]
    console = Console(width=100, file=io.StringIO())
    print_summary(console, candidates, pipeline.choose(candidates))
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert re.search(r"correct, first samples +│ 66\.7%", text)
    assert "only their first samples give a fair rate" in text
