"""Checker processes, selection and `tpt prune`."""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpt_jax.checks.answers.numeric import check_numeric
from tpt_jax.checks.pool import BATCH, CheckerPool
from tpt_jax.checks.registry import get_checker
from tpt_jax.errors import MachineError, UserError
from tpt_jax.io.files import read_jsonl
from tpt_jax.library import judge_file as command
from tpt_jax.prune.selection import select
from tpt_jax.records import JudgedTrace, Question, Trace, Verdict

SHARED = Path(__file__).parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="measured data is not beside the checkout")


# Checker processes.


def hanging_checker(question: Question, completion: str) -> Verdict:
    if completion == "hang":
        while True:
            pass
    if completion == "die":
        os._exit(1)
    if completion == "raise":
        raise ValueError(completion)
    if completion == "eat":
        return check_numeric(question, "7" * 2**31)
    return check_numeric(question, completion)


def pairs(*completions: str) -> list[tuple[Question, Trace]]:
    return [(Question("q", "?", "7"), Trace("q", sample, text)) for sample, text in enumerate(completions)]


def test_a_checker_that_hangs_dies_or_eats_memory_costs_one_trace_only() -> None:
    with CheckerPool(f"{__name__}:hanging_checker", 2, seconds_per_trace=0.5) as pool:
        verdicts = list(pool.judge(pairs("7", "hang", "7", "die", "8", "raise", "7", "eat", "7")))
    assert [verdict.correct for verdict in verdicts] == [True, False, True, False, False, False, True, False, True]
    reasons = [verdict.reason for verdict in verdicts if verdict.extracted is None]
    assert reasons == ["time limit", "checker died", "checker raised ValueError", "memory limit"]


def machine_checker(question: Question, completion: str) -> Verdict:
    raise MachineError("no more processes")


def test_a_worker_that_is_ended_from_outside_costs_no_trace() -> None:
    with CheckerPool("numeric", 1, seconds_per_trace=5.0) as pool:
        pool.wait_until_ready()
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        assert [verdict.correct for verdict in pool.judge(pairs("7", "8"))] == [True, False]


def test_a_machine_that_fails_is_not_held_against_a_trace() -> None:
    with CheckerPool(f"{__name__}:machine_checker", 1, seconds_per_trace=5.0) as pool:
        with pytest.raises(MachineError, match="no more processes"):
            pool.submit_batch(pairs("7")).result()
        assert not any(process.is_alive() for process in multiprocessing.active_children())


def test_whoever_leaves_early_waits_for_nothing() -> None:
    """Ctrl-C and a failure end the checks that are under way, and those that are queued."""
    started = float("inf")
    with (
        contextlib.suppress(KeyboardInterrupt),
        CheckerPool(f"{__name__}:hanging_checker", 1, seconds_per_trace=60.0) as pool,
    ):
        pool.wait_until_ready()
        pool.submit_batch(pairs(*["hang"] * 200))
        time.sleep(0.2)
        started = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - started < 10


def slow_to_start(question: Question, completion: str) -> Verdict:
    return Verdict.wrong("")


if multiprocessing.current_process().name != "MainProcess" and "slow" in os.environ.get("START_OF_CHECKERS", ""):
    time.sleep(30)


def test_whoever_leaves_while_a_worker_starts_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("START_OF_CHECKERS", "slow")
    with contextlib.suppress(KeyboardInterrupt), CheckerPool(f"{__name__}:slow_to_start", 1, 5.0) as pool:
        future = pool.submit_batch(pairs("7"))
        while not multiprocessing.active_children():
            time.sleep(0.01)
        started = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - started < 10
    with pytest.raises(RuntimeError, match=r"the pool was left|ended with code -9"):
        future.result()


def test_hostile_traces() -> None:
    """Each is judged, at once and by itself, whatever is in it."""
    traces = (
        "#### 7\0",
        "\ud800 #### 7",
        "9**9**9 #### 7",
        "{" * 10_000 + "#### 7",
        "x" * 10_000_000 + "#### 7",
        "\x1b[2J",
    )
    with CheckerPool("numeric", 1, seconds_per_trace=5.0) as pool:
        verdicts = list(pool.judge(pairs(*traces)))
    assert [verdict.correct for verdict in verdicts] == [True] * 5 + [False]


def test_verdicts_come_in_the_order_given() -> None:
    numbers = [str(random.Random(seed).randint(0, 9)) for seed in range(1000)]
    with CheckerPool("numeric", 2, seconds_per_trace=5.0) as pool:
        futures = [pool.submit_batch(pairs(*numbers[start : start + 300])) for start in range(0, 1000, 300)]
        verdicts = [verdict for future in futures for verdict in future.result()]
        assert list(pool.judge([])) == []
    assert [verdict.extracted for verdict in verdicts] == numbers


def test_no_more_is_read_than_is_judged() -> None:
    """However many traces a file holds, a few batches of them are in memory."""
    given = 0

    def many() -> Iterator[tuple[Question, Trace]]:
        nonlocal given
        for sample in range(20 * BATCH):
            given += 1
            yield Question("q", "?", "7"), Trace("q", sample, "7")

    with CheckerPool("numeric", 1, seconds_per_trace=5.0) as pool:
        verdicts = pool.judge(many())
        assert next(verdicts).correct
        assert given <= 2 * BATCH
        assert sum(verdict.correct for verdict in verdicts) == 20 * BATCH - 1


def test_an_unknown_checker_is_named() -> None:
    with pytest.raises(UserError, match="did you mean numeric"):
        get_checker("numerik")


# Selection.

JUDGED = st.lists(
    st.builds(
        JudgedTrace,
        st.builds(
            Trace,
            id=st.sampled_from("abc"),
            sample=st.integers(0, 99),
            completion=st.sampled_from(["x", "y", "z"]),
            finish_reason=st.sampled_from(["stop", "length"]),
        ),
        st.sampled_from([Verdict("1", True, True), Verdict("1", False, True), Verdict("2", False, False)]),
    ),
    unique_by=lambda judged: (judged.trace.id, judged.trace.sample),
    max_size=40,
)


@given(JUDGED, st.integers(1, 3), st.integers(1, 5), st.integers(0, 3), st.randoms())
def test_selection(judged: list[JudgedTrace], of_each: int, in_all: int, seed: int, order: random.Random) -> None:
    selection = select(judged, max_per_question=of_each, max_traces=in_all, seed=seed, use="correct")
    kept = [trace.trace for trace in selection.kept]
    wanted = {
        (trace.trace.id, trace.trace.completion)
        for trace in judged
        if trace.verdict.correct and trace.trace.finish_reason == "stop"
    }
    texts = [(trace.id, trace.completion) for trace in kept]
    assert len(texts) == len(set(texts))
    assert set(texts) <= wanted
    by_question = {name: sum(other == name for other, _ in wanted) for name in "abc"}
    assert len(kept) == min(in_all, sum(min(of_each, count) for count in by_question.values()))
    assert len(kept) + sum(selection.num_dropped.values()) == len(judged)
    shuffled = judged[:]
    order.shuffle(shuffled)
    assert select(shuffled, max_per_question=of_each, max_traces=in_all, seed=seed, use="correct") == selection


def test_the_control_keeps_right_and_wrong_alike() -> None:
    judged = [JudgedTrace(Trace("a", sample, str(sample)), Verdict("1", False, sample > 1)) for sample in range(4)]
    assert len(select(judged, max_per_question=9, max_traces=None, seed=0, use="any").kept) == 4
    assert len(select(judged, max_per_question=9, max_traces=None, seed=0, use="correct").kept) == 2
    assert len(select(judged, max_per_question=9, max_traces=None, seed=0, use="strict").kept) == 0


# The verb.


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
    assert "it cannot read the reference answers of 1 of 3 questions, more than 1%: 5; mend them" in printed.err
    table = {cells[0]: cells[1:] for cells in map(_cells, printed.out.splitlines()) if len(cells) > 1}
    assert table["correct"] == ["50.0% (0.0% to 100.0%)"] * 2  # Pass@1 and Pass@2 of the two questions that count
    assert [cell.partition(" ")[0] for cell in table["strict"]] == ["25.0%", "50.0%"]
    for row in ("right, in another format", "wrong answer", "no answer", "several answers", "truncated", "kept"):
        assert table[row][0] == "1", row
    assert table["unreadable reference answer"][0] == table["unknown"][0] == "1"
    assert table["dropped: over max_per_question"][0] == "1"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split("[│┃]", line) if cell.strip()]


def test_what_is_evaluated_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"question": " 1  + 6 ", "answer": "7"}))
    traces = [{"id": 3, "trace": "#### 7"}, {"id": 4, "trace": "#### 8"}]
    out = prune(tmp_path, QUESTIONS, as_lines(traces), "--held_out", f"{tmp_path}/held_out.jsonl")
    assert [(line["correct"], line["kept"]) for line in out] == [(True, False), (True, True)]


def test_ones_own_checker_judges(tmp_path: Path) -> None:
    traces = as_lines([{"id": 4, "trace": "ends in 8"}, {"id": 4, "trace": "#### 8."}])
    out = prune(tmp_path, QUESTIONS, traces, "--checker", f"{__name__}:ends_in_the_answer", "--num_workers", "1")
    assert [line["correct"] for line in out] == [True, False]


def ends_in_the_answer(question: Question, completion: str) -> bool:
    return completion.endswith(question.answer)


def test_verdicts_in_numpys_values_are_written(tmp_path: Path) -> None:
    traces = as_lines([{"id": 4, "trace": "8.0"}, {"id": 4, "trace": "9"}])
    out = prune(tmp_path, QUESTIONS, traces, "--checker", f"{__name__}:says_so_in_numpy", "--num_workers", "1")
    assert [line["correct"] for line in out] == [True, False]


def asks_for_what_is_not_there(question: Question, completion: str) -> bool:
    return question.data["no such key"] == completion


def says_so_in_numpy(question: Question, completion: str) -> Any:
    right = np.isclose(float(completion), float(question.answer))
    return Verdict(completion, strict=right, correct=right)  # type: ignore[arg-type]


def says_what_it_cannot(question: Question, completion: str) -> Any:
    return Verdict(len, strict=True, correct=True)  # type: ignore[arg-type]


def says_so_in_words(question: Question, completion: str) -> Any:
    return "wrong"


@pytest.mark.parametrize(
    ("checker", "reason"),
    [
        ("asks_for_what_is_not_there", "checker raised KeyError"),
        ("says_so_in_words", "checker raised TypeError"),
        ("says_what_it_cannot", "checker raised TypeError"),
    ],
)
def test_a_checker_that_always_fails_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], checker: str, reason: str
) -> None:
    traces = as_lines([{"id": 4, "trace": "#### 8"}] * 2)
    out = prune(tmp_path, QUESTIONS, traces, "--checker", f"{__name__}:{checker}", "--num_workers", "1", status=1)
    assert [(line["correct"], line["reason"]) for line in out] == [(False, reason)] * 2
    assert f"it failed on every trace ({reason})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('no\\nGPU')", "RuntimeError: no GPU; write module:function"),
        ("import sys\nsys.exit(3)", "SystemExit: 3; write module:function"),
        ("", "AttributeError: .* has no attribute 'check'"),
        ("check = 3", "of type int; write a function of a question and a completion"),
        ("def check(question): return True", "does not take these two .*; write a function"),
    ],
)
def test_what_is_no_checker_is_refused_before_it_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    module = f"no_checker_{len(source)}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        get_checker(f"{module}:check")
    assert "\n" not in str(caught.value)


PYTHON = {"text": "Add.", "code": "def f(): pass", "test_list": ["assert f() is None"], "prompt": "def f():"}


@pytest.mark.parametrize(
    ("task", "file", "question", "name", "wanted"),
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
def test_traces_call_questions_as_a_run_does(
    tmp_path: Path, task: str, file: str, question: dict[str, Any], name: object, wanted: str | None
) -> None:
    (tmp_path / file).write_text(json.dumps(question))
    (tmp_path / "traces.jsonl").write_text(json.dumps({"id": name, "completion": "#### 7"}))
    parser = argparse.ArgumentParser()
    command.add_input_arguments(parser)
    paths = ("--questions", f"{tmp_path}/{file}", "--traces", f"{tmp_path}/traces.jsonl")
    args = parser.parse_args(["--task", task, "--checker", "numeric", *paths])
    if wanted is None:
        with pytest.raises(UserError, match=r"traces\.jsonl:1: (no question has the id|lacks an \"id\"|has an \"id\")"):
            command.read_input(args)
    else:
        ((_, trace),) = command.read_input(args).lines
        assert trace.id == wanted


def test_an_output_that_cannot_be_is_refused_before_the_traces_are_judged(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot be made .*; give a folder that can"):
        prune(tmp_path, QUESTIONS, "broken", "--output", f"{tmp_path}/file/out.jsonl")


def test_no_input_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "questions.json")
    for output in ("questions.json", "traces.jsonl", "link"):
        with pytest.raises(UserError, match=r"which is read; give another file"):
            prune(tmp_path, QUESTIONS, as_lines(TRACES), "--output", f"{tmp_path}/{output}")
    assert json.loads((tmp_path / "questions.json").read_text()) == QUESTIONS


def test_a_link_leads_to_the_output(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out.jsonl")
    traces = as_lines([{"id": 4, "trace": "#### 8"}])
    (line,) = prune(tmp_path, QUESTIONS, traces, "--output", f"{tmp_path}/link", "--num_workers", "1")
    assert line["correct"]
    assert (tmp_path / "link").is_symlink()


def test_a_folder_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--output .*: not a plain file; give the name of one"):
        prune(tmp_path, QUESTIONS, as_lines(TRACES), "--output", str(tmp_path))


@pytest.mark.parametrize(
    ("questions", "traces", "message"),
    [
        (QUESTIONS, '{"id": 9, "trace": "x"}', r"traces\.jsonl:1: no question has the id '9'"),
        (QUESTIONS, '{"id": 3}', r'traces\.jsonl:1: lacks a text under "completion"'),
        (QUESTIONS, '{"id": 3, "sample": "a", "trace": "x"}', "the sample 'a' is no whole number"),
        (QUESTIONS, '{"id": 3, "sample": -1, "trace": "x"}', "the sample -1 is no whole number from 0"),
        (QUESTIONS, '{"id": 3, "sample": true, "trace": "x"}', "the sample True is no whole number"),
        (QUESTIONS, '{"id": 3, "trace": "x", "finish_reason": "eos_token"}', "'eos_token' is neither \"stop\" nor"),
        (QUESTIONS, '{"id": [3], "trace": "x"}', 'has an "id" of type list; write a text or a whole number'),
        ([{"question": ["?"], "answer": 7}], '{"id": 0, "trace": "x"}', 'lacks a text under "question"'),
        ([{"question": "?", "answer": True}], '{"id": 0, "trace": "x"}', "has an answer of type bool"),
        ([{"question": "?", "answer": [3]}], '{"id": 0, "trace": "x"}', "has an answer of type list"),
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
        (QUESTIONS * 2, '{"id": 3, "trace": "x"}', r"json, item 4: the id '3' is that of an earlier question"),
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


def test_a_few_broken_lines_are_named_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traces = as_lines({"id": 3, "trace": f"#### {number}"} for number in range(398))
    out = prune(tmp_path, QUESTIONS, f'{traces}\n\n{{"id"\n{{"id": 99, "trace": "x"}}\n', "--num_workers", "1")
    assert len(out) == 398
    told = capsys.readouterr().err
    assert "2 of 400 records are left out" in told
    assert "traces.jsonl:400: not JSON" in told
    assert "traces.jsonl:401: no question has the id '99'" in told


@needs_shared
def test_real_gemma_traces(tmp_path: Path) -> None:
    """The public regular expression and string equality call 42% right; 63% are."""
    questions = json.loads((SHARED / "gemma2_traces" / "questions.json").read_text())
    out = prune(tmp_path, questions, (SHARED / "gemma2_traces" / "traces.jsonl").read_text())
    answers = {question["id"]: question["answer"] for question in questions}
    found = [re.search(r"####\s*(-?[\d.,]+)", line["trace"]) for line in out]
    public = [
        match is not None and match.group(1) == answers[line["id"]] for match, line in zip(found, out, strict=True)
    ]
    assert len(out) == 2500
    assert sum(public) / 2500 == pytest.approx(0.42, abs=0.005)
    assert sum(line["correct"] for line in out) / 2500 == pytest.approx(0.63, abs=0.005)
