"""Large files of traces: memory, compressed and columnar files, progress, and a stop by SIGTERM."""

import gzip
import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpt_jax import terminal
from tpt_jax.commands.main import main
from tpt_jax.errors import UserError
from tpt_jax.io.files import read_jsonl
from tpt_jax.library import judge_file as module
from tpt_jax.library.judge_file import judge_file
from tpt_jax.library.trace_files import read_traces_to_judge
from tpt_jax.prune.apply import select
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.prune.registry import DEFAULT_STEPS
from tpt_jax.records import JudgedTrace, Question, Trace, Verdict

QUESTIONS = [{"id": "a", "question": "1 + 6?", "answer": "7"}, {"id": "b", "question": "4 + 4?", "answer": "8"}]
TRACES = [
    {"id": "a", "sample": 1, "completion": "#### 7", "finish_reason": "stop"},
    {"id": "b", "sample": 0, "completion": "#### 7\u2028\n", "finish_reason": "length"},
    {"id": "b", "sample": 2, "completion": "#### 8", "finish_reason": None},
]

VERDICTS = [
    Verdict("1", strict=True, correct=True),
    Verdict("1", strict=False, correct=True),
    Verdict(None, strict=False, correct=False, reason="no answer"),
    Verdict.unreadable(),
]


def write_lines(path: Path, items: Iterable[object]) -> Path:
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def read(folder: Path, questions: str, traces: str) -> list[tuple[dict[str, Any], Trace]]:
    paths = folder / questions, folder / traces
    return [*read_traces_to_judge("gsm8k", *paths, None, None, run_code_without_sandbox=False).lines()]


def hangs(question: Question, completion: str) -> bool:
    Path(question.answer).write_text(str(os.getpid()))
    time.sleep(60)
    return True


# Memory and selection.


def judged_here(verdicts: Iterable[Verdict]) -> Callable[..., Iterator[Verdict]]:
    """Stands in for judge_pairs, without workers."""

    def judge_pairs(pairs: Iterable[object], *_: object) -> Iterator[Verdict]:
        yield from (verdict for _, verdict in zip(pairs, verdicts, strict=False))

    return judge_pairs


def test_memory_does_not_grow_with_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "judge_pairs", judged_here(itertools.repeat(VERDICTS[0])))
    questions, peaks = write_lines(tmp_path / "questions.jsonl", QUESTIONS), []
    for num_traces in (1_000, 4_000):
        lines = ({"id": "a", "sample": sample, "completion": f"{sample} " * 1_000} for sample in range(num_traces))
        traces = write_lines(tmp_path / "traces.jsonl", lines)
        tracemalloc.start()
        judge_file("gsm8k", questions, traces, tmp_path / "out.jsonl")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert sum(line["kept"] for line in read_jsonl(tmp_path / "out.jsonl")) == 4_000
    assert (peaks[1] - peaks[0]) / 3_000 < 500  # bytes per trace; its text has 5,000


LINES = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.sampled_from("ab"),
            "sample": st.integers(0, 30),
            "completion": st.sampled_from(["x", "y", "z", "a"]),
            "finish_reason": st.sampled_from(["stop", "stop", "length"]),
            "verdict": st.integers(0, 3),
        }
    ),
    unique_by=lambda line: (line["id"], line["sample"]),
    min_size=1,
    max_size=30,
)


def chosen_by_hand(
    judged: list[JudgedTrace], max_per_question: int | None, max_traces: int | None, seed: int
) -> list[str]:
    """The names of the kept traces: one walk through the traces in the order of questions and samples."""
    kept: list[JudgedTrace] = []

    def place(each: JudgedTrace) -> tuple[bytes, int]:
        return hashlib.sha256(f"{seed}/{each.trace.id}".encode()).digest(), each.trace.sample

    for each in sorted(judged, key=place):
        same_question = [other for other in kept if other.trace.id == each.trace.id]
        is_repeated = any(other.trace.completion == each.trace.completion for other in same_question)
        has_room = max_per_question is None or len(same_question) < max_per_question
        if each.verdict.correct and each.trace.finish_reason == "stop" and has_room and not is_repeated:
            kept.append(each)
    return sorted(each.trace.name for each in kept[:max_traces])


@settings(max_examples=40)
@given(
    lines=LINES,
    max_per_question=st.sampled_from([None, 1, 2]),
    max_traces=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 9),
)
def test_a_files_traces_are_selected_as_those_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[dict[str, Any]],
    max_per_question: int | None,
    max_traces: int | None,
    seed: int,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    limits: dict[str, Any] = {"max_per_question": max_per_question, "max_traces": max_traces, "seed": seed}
    verdicts = [VERDICTS[line["verdict"]] for line in lines]
    questions, traces = write_lines(folder / "q.jsonl", QUESTIONS), write_lines(folder / "t.jsonl", lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "judge_pairs", judged_here(verdicts))
        result = judge_file("gsm8k", questions, traces, folder / "out.jsonl", **limits)
    out = list(read_jsonl(folder / "out.jsonl"))
    judged = [
        JudgedTrace(Trace(line["id"], line["sample"], line["completion"], finish_reason=line["finish_reason"]), verdict)
        for line, verdict in zip(lines, verdicts, strict=True)
    ]
    selection = select(Pipeline(DEFAULT_STEPS, **limits), judged)
    kept = sorted(f"{line['id']}/{line['sample']}" for line in out if line["kept"])
    assert kept == sorted(each.trace.name for each in selection.kept) == chosen_by_hand(judged, **limits)
    assert result.choice.num_dropped == selection.num_dropped
    expected = [
        {**line, "extracted": verdict.extracted, "reason": verdict.reason}
        for line, verdict in zip(lines, verdicts, strict=True)
    ]
    assert [{name: line[name] for name in expected[0]} for line in out] == expected


# Steps.


def test_kept_traces_are_trimmed_without_tokens_and_scores(tmp_path: Path) -> None:
    """The second would be judged otherwise without its end, and the third is not kept."""
    scores = {"logprob": -1.0, "entropy": 1.0, "token_ids": [3], "token_logprobs": [-1.0]}
    texts = {0: "#### 7 \n\nLet me know!", 1: "#### 8 \nWait, that is wrong. It is 7.", 2: "#### 9 \nBye"}
    lines = [{"id": "a", "sample": sample, "trace": text, **scores} for sample, text in texts.items()]
    questions, traces = write_lines(tmp_path / "q.jsonl", QUESTIONS), write_lines(tmp_path / "t.jsonl", lines)
    result = judge_file(
        "gsm8k", questions, traces, tmp_path / "out.jsonl", steps="correct, trim_after_answer", num_workers=1
    )
    first, *others = read_jsonl(tmp_path / "out.jsonl")
    assert first["trace"] == "#### 7"
    assert not scores.keys() & first.keys()
    assert [line["trace"] for line in others] == [texts[1], texts[2]]
    assert all(scores.keys() <= line.keys() for line in others)
    assert [line["kept"] for line in (first, *others)] == [line["correct"] for line in (first, *others)]
    assert result.num_trimmed == 1


@pytest.mark.parametrize(
    ("steps", "field", "advice"),
    [
        ("correct, lowest_surprisal", "token_ends", "sample them with think.token_scores: true"),
        ("highest_logprob", "token_ids", "take traces that tpt sampled"),
        ("trim_steps: {share: 0.5}", "token_entropies", "sample them with think.token_scores: true"),
    ],
)
def test_a_step_that_needs_what_a_trace_lacks_is_refused_before_any_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: str, field: str, advice: str
) -> None:
    """Only the last trace lacks it; an empty one has no tokens."""
    monkeypatch.setattr(module, "judge_pairs", None)
    whole = {"logprob": -1.0, "token_ids": [3], "token_logprobs": [-1.0], "token_entropies": [1.0], "token_ends": [6]}
    lines: list[dict[str, Any]] = [{"id": "a", "completion": "", "logprob": 0}]
    lines += [{"id": "a", "completion": "#### 7", **whole}] * 3
    lines[-1] = {name: value for name, value in lines[-1].items() if name != field}
    questions, traces = write_lines(tmp_path / "q.jsonl", QUESTIONS), write_lines(tmp_path / "t.jsonl", lines)
    name = steps.rpartition(", ")[2].partition(":")[0]
    with pytest.raises(UserError, match=f"^steps: {name} needs {field}, which the traces lack; {advice}$"):
        judge_file("gsm8k", questions, traces, tmp_path / "out.jsonl", steps=steps)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("token_ids", "ab", "\"token_ids\" \\('ab'\\) is not a list of numbers"),
        ("token_ends", [True], r'"token_ends" \(\[True\]\) is not a list'),
        ("logprob", "-1", "\"logprob\" \\('-1'\\) is not a number"),
        ("token_ids", [1, 2], "has token_ids, token_logprobs, token_entropies, token_ends of different lengths"),
    ],
)
def test_broken_scores_are_named(tmp_path: Path, field: str, value: object, message: str) -> None:
    write_lines(tmp_path / "q.jsonl", QUESTIONS)
    write_lines(tmp_path / "t.jsonl", [{"id": "a", "completion": "#### 7", "token_logprobs": [-1.0], field: value}])
    with pytest.raises(UserError, match=message):
        read(tmp_path, "q.jsonl", "t.jsonl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "tpt: --task: missing; give the task of these questions, or --config"),
        (("--prune.steps", "any"), "tpt: --prune.steps: a key of a config; give --config too"),
        (("--task", "gsm8k", "--steps", "corect"), "tpt: steps: unknown step 'corect'; did you mean correct?"),
        (
            ("--task", "gsm8k", "--steps", "own: {function: 'no:such'}"),
            f"tpt: step 'no:such': there is no no.py in {os.getcwd()}, where the command runs; run it in the folder "
            "that has the file",
        ),
    ],
)
def test_mistakes_in_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    paths = ("--questions", "q", "--traces", "t", "--output", f"{tmp_path}/out.jsonl")
    assert main(["prune", *paths, *arguments]) == 2
    assert capsys.readouterr().err == message + "\n"


# Formats.


def test_gzipped_files_are_read_and_their_lines_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{**question, "id": None} for question in QUESTIONS])
    write_lines(tmp_path / "traces.jsonl", [{**trace, "id": f"gsm8k/train/{trace['id'] == 'b':d}"} for trace in TRACES])
    plain = read(tmp_path, "train.jsonl", "traces.jsonl")
    assert [trace.name for _, trace in plain] == ["0/1", "1/0", "1/2"]
    for name in ("train.jsonl", "traces.jsonl"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert read(tmp_path, "train.jsonl.gz", "traces.jsonl.gz") == plain
    (tmp_path / "train.json.gz").write_bytes(gzip.compress(json.dumps(QUESTIONS, indent=1).encode()))
    write_lines(tmp_path / "broken.jsonl.gz", [*TRACES, 7])
    with pytest.raises(UserError, match=r"1 of 4 records .*broken\.jsonl\.gz:4: of type int, not an object"):
        read(tmp_path, "train.json.gz", "broken.jsonl.gz")


@pytest.mark.parametrize("change", [lambda content: content[:-12], lambda content: b"?" + content])
def test_a_damaged_gzip_file_is_a_mistake_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any
) -> None:
    questions, traces = write_lines(tmp_path / "q.jsonl", QUESTIONS), write_lines(tmp_path / "t.jsonl.gz", TRACES)
    traces.write_bytes(change(traces.read_bytes()))
    paths = ("--questions", str(questions), "--traces", str(traces), "--output", f"{tmp_path}/out.jsonl")
    assert main(["prune", "--task", "gsm8k", *paths]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{traces}: not a complete gzip file (" in line
    assert sorted(os.listdir(tmp_path)) == ["q.jsonl", "t.jsonl.gz"]


def test_parquet_without_pyarrow_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "q.jsonl", QUESTIONS)
    (tmp_path / "t.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"t\.parquet: reading Parquet needs pyarrow; pip install pyarrow"):
        read(tmp_path, "q.jsonl", "t.parquet")


def test_parquet_is_read_and_its_rows_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, items in (("q", QUESTIONS), ("t", TRACES), ("broken", [*TRACES, {**TRACES[0], "id": "c"}])):
        parquet.write_table(pyarrow.Table.from_pylist(items), tmp_path / f"{name}.parquet")
        write_lines(tmp_path / f"{name}.jsonl", items)
    assert read(tmp_path, "q.parquet", "t.parquet") == read(tmp_path, "q.jsonl", "t.jsonl")
    with pytest.raises(UserError, match=r"1 of 4 records .*broken\.parquet, row 3: no question has the id 'c'"):
        read(tmp_path, "q.parquet", "broken.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-3])
    with pytest.raises(UserError, match=r"t\.parquet: cannot be read as Parquet \(.*\); make or download it again"):
        read(tmp_path, "q.parquet", "t.parquet")


def test_after_too_many_broken_lines_no_more_are_judged(tmp_path: Path) -> None:
    write_lines(tmp_path / "q.jsonl", QUESTIONS)
    good = [{"id": "a", "completion": "x"}] * 97
    write_lines(tmp_path / "t.jsonl", [*good, 1, 2, 3, *good, 4, *good, 5])  # 1% of 296 are 2.96
    paths = tmp_path / "q.jsonl", tmp_path / "t.jsonl"
    num_read = 0

    def read_all() -> None:
        nonlocal num_read
        for _ in read_traces_to_judge("gsm8k", *paths, None, None, run_code_without_sandbox=False).lines():
            num_read += 1

    with pytest.raises(UserError, match=r"5 of 296 records .* 1%: .*:98, .*:100, .*:198, .*:296: of type int, not an"):
        read_all()
    assert num_read == 97


# Progress.


class Clock:
    """Stands in for the time module."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_time_left_is_estimated_from_the_first_unit_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lines = Clock(), []
    monkeypatch.setattr(terminal, "time", clock)
    monkeypatch.setattr(terminal, "say", lines.append)
    with terminal.progress("judge", 1_000, "traces") as advance:
        clock.now = 50.0  # the workers start
        for _ in range(300):
            advance(1)
            clock.now += 1 / 16
    assert lines == ["judge: 17 of 1000 traces, 16.0/s, 61 s left", "judge: 177 of 1000 traces, 16.0/s, 51 s left"]
    with terminal.progress("judge", 2, "traces") as advance:
        advance(1)
        advance(1)
    assert lines[2:] == ["judge: 2 of 2 traces"]


# Stopping.


def test_a_command_stopped_by_sigterm_leaves_nothing_behind(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    questions = write_lines(tmp_path / "q.jsonl", [{"id": "a", "question": "?", "answer": str(pid_file)}])
    traces = write_lines(tmp_path / "t.jsonl", [{"id": "a", "completion": "x"}] * 200)
    paths = ("--questions", str(questions), "--traces", str(traces), "--output", f"{tmp_path}/out.jsonl")
    checker = ("--checker", f"{__name__}:hangs", "--seconds_per_trace", "60", "--num_workers", "1")
    command = [sys.executable, "-m", "tpt_jax", "prune", "--task", "gsm8k", *paths, *checker]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    while not (pid_file.exists() and pid_file.read_text()):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (143, "tpt: stopped by SIGTERM\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert sorted(os.listdir(tmp_path)) == ["pid", "q.jsonl", "t.jsonl"]
