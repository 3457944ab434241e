"""The tasks that ask for programs: MBPP, HumanEval and code contests."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from code_checker import check

from tpt_jax.config_parsing import parse_config
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.records import Question
from tpt_jax.tasks import (
    CodeContestsConfig,
    HumanEvalConfig,
    MbppConfig,
    TaskConfig,
    code_contests,
    humaneval,
    load_task,
    mbpp,
)


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, lines)))


def mbpp_line(number: int, **changes: Any) -> dict[str, Any]:
    code = f"def add_{number}(a):\n    return a + {number}"
    tests = [f"assert add_{number}(1) == {number + 1}", f"assert add_{number}(0) == {number}"]
    line = {"task_id": number, "text": f"Add {number}.", "code": code, "test_list": tests, "test_setup_code": ""}
    return {**line, "challenge_test_list": [], **changes}


def test_mbpp_reads_the_published_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "mbpp.jsonl", [mbpp_line(number) for number in (1, 10, 11, 510, 511, 600, 601, 974)])
    task = load_task(MbppConfig("mbpp", folder=tmp_path))
    assert [question.id for question in task.train] == ["mbpp/601", "mbpp/974"]
    assert [question.id for question in task.test] == ["mbpp/11", "mbpp/510"]
    assert "assert add_601(1) == 602" in task.train[0].question
    assert check(task.train[0], "```python\ndef add_601(a):\n    return a + 601\n```").strict
    assert not check(task.train[0], "```python\ndef add_601(a):\n    return 602\n```").correct


def test_mbpp_function_may_shadow_a_builtin() -> None:
    line = mbpp_line(126, code="def sum(a, b):\n    return a * b", test_list=["assert set([sum(2, 3)]) == set([6])"])
    question = MbppConfig.read_question("q", line)
    assert check(question, f"```python\n{line['code']}\n```").correct
    patched = "def sum(a, b):\n    return 0\ndef set(a):\n    return 1"
    assert check(question, f"```python\n{patched}\n```").reason == "failed test"


def test_mbpp_without_a_reference_program() -> None:
    line = {"text": "Add them.", "test_list": ["assert sum([1, 2]) == 3"]}
    question = MbppConfig.read_question("q", line)
    assert check(question, "```python\ndef whatever(): pass\n```").reason == "function not defined"
    assert check(question, "```python\ndef sum(a): return a[0] + a[1]\n```").correct
    ambiguous = MbppConfig.read_question("q", {**line, "test_list": ["assert len(sorted([1, 2])) == 2"]})
    assert check(ambiguous, "```python\ndef whatever(): pass\n```").reason == "tests call no function"
    with_class = MbppConfig.read_question("q", {**line, "test_list": ["assert len(s.of(2)) == 2"]})
    assert check(with_class, "```python\nclass s:\n    of = range\n```").correct


def humaneval_line(number: int) -> dict[str, Any]:
    prompt = f'from typing import List\n\n\ndef add(numbers: List[int]) -> int:\n    """ Their sum and {number}. """\n'
    test = f"\nMETADATA = {{}}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == {number + 3}\n"
    solution = f"    return sum(numbers) + {number}\n"
    line = {"task_id": f"HumanEval/{number}", "prompt": prompt, "entry_point": "add", "test": test}
    return {**line, "canonical_solution": solution}


@pytest.mark.parametrize("compressed", [True, False])
def test_humaneval_reads_the_published_file(tmp_path: Path, compressed: bool) -> None:
    lines = [humaneval_line(number) for number in range(20)]
    content = "\n".join(map(json.dumps, lines)).encode()
    (tmp_path / ("HumanEval.jsonl.gz" if compressed else "HumanEval.jsonl")).write_bytes(
        gzip.compress(content) if compressed else content
    )
    task = load_task(HumanEvalConfig("humaneval", folder=tmp_path, train_share=0.25))
    for questions in (task.train, task.test):
        assert questions.generation.max_new_tokens == 768
        assert questions.seconds_per_trace == 10.0
    assert (len(task.train), len(task.test)) == (5, 15)
    solutions = {line["task_id"]: line["canonical_solution"] for line in lines}
    assert {question.id for question in (*task.train, *task.test)} == set(solutions)
    question = task.train[0]
    assert check(question, solutions[question.id]).correct
    assert check(question, "    return 0\n").reason == "failed test"


def test_code_contests_reads_our_format(tmp_path: Path) -> None:
    line = {"question": "Double it.", "inputs": ["1", "2", "3"], "outputs": ["2", "4", "0"]}
    for split in ("train", "test"):
        write_lines(tmp_path / f"{split}.jsonl", [{"id": split, **line, "question": f"Double it, {split}."}])
    config = CodeContestsConfig("code_contests", folder=tmp_path, max_tests=2)
    completion = "```python\nprint(2 * int(input()))\n```"
    assert check(load_task(config).train[0], completion).strict  # max_tests leaves out the third
    assert check(config.read_question("q", line), completion).reason == "failed test"


def test_code_contests_reads_the_published_format(tmp_path: Path) -> None:
    tests = {"public_tests": {"input": ["1"], "output": ["2"]}, "generated_tests": {"input": ["3"], "output": ["6"]}}
    for split in ("train", "test"):
        line = {"name": f"1_A {split}", "description": f"Double, {split}.", **tests}
        write_lines(tmp_path / f"{split}.jsonl", [line])
    question = load_task(CodeContestsConfig("code_contests", folder=tmp_path)).test[0]
    assert (question.id, question.question) == ("1_A test", "Double, test.")
    assert question.data == {"inputs": ["1", "3"], "outputs": ["2", "6"]}


@pytest.mark.parametrize(
    ("config", "line", "message"),
    [
        (MbppConfig, {"text": "?"}, 'lacks "text" or "test_list"'),
        (MbppConfig, {"text": "?", "test_list": []}, "has no tests"),
        (MbppConfig, {"text": "?", "test_list": ["assert"]}, "not Python"),
        (HumanEvalConfig, {"prompt": "?", "test": "?"}, 'lacks "entry_point"'),
        (CodeContestsConfig, {"inputs": [], "outputs": []}, '"question"'),
        (CodeContestsConfig, {"question": "?", "inputs": "1", "outputs": ["1"]}, "a list of texts"),
        (CodeContestsConfig, {"question": "?", "inputs": [], "outputs": ["1"]}, 'has 0 "inputs" and 1 "outputs"'),
    ],
)
def test_invalid_lines_are_refused(config: type[TaskConfig], line: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRecordError, match=message):
        config.read_question("q", line)


@pytest.mark.parametrize("name", ["mbpp", "humaneval", "code_contests"])
def test_missing_file_is_reported(tmp_path: Path, name: str) -> None:
    task = {"name": name, "folder": str(tmp_path)}
    config = parse_config({"name": "n", "model": {"path": "p"}, "task": task})
    assert config.think.max_new_tokens == config.task.generation.max_new_tokens > 512
    with pytest.raises(UserError, match="no such file"):
        load_task(config.task)


def test_corrupt_download_is_reported(tmp_path: Path) -> None:
    valid = gzip.compress(json.dumps(humaneval_line(0)).encode())
    middle = len(valid) // 2
    flipped = valid[:middle] + bytes(~byte & 255 for byte in valid[middle : middle + 20]) + valid[middle + 20 :]
    for content in (os.urandom(99), valid[:middle], flipped):
        (tmp_path / "HumanEval.jsonl.gz").write_bytes(content)
        with pytest.raises(UserError, match="cannot be unpacked"):
            load_task(HumanEvalConfig("humaneval", folder=tmp_path))


@pytest.mark.parametrize("name", ["mbpp", "humaneval", "code_contests"])
def test_shots_solve_their_own_questions(name: str) -> None:
    """A model imitates the shots: each must pass the tests, or produce the outputs, in its question."""
    shots = {"mbpp": mbpp.SHOTS, "humaneval": humaneval.SHOTS, "code_contests": code_contests.SHOTS}[name]
    assert shots
    for shot in shots:
        if name == "mbpp":
            data: dict[str, Any] = {"tests": shot.question.partition("tests:\n")[2].splitlines()}
        elif name == "humaneval":
            example = shot.question.partition(">>> ")[2].splitlines()
            data = {"tests": [f"assert {example[0]} == {example[1].strip()}"]}
        else:
            stdin, _, stdout = shot.question.partition("Example\nInput\n")[2].partition("\nOutput\n")
            data = {"inputs": [stdin], "outputs": [stdout]}
        assert check(Question("q", shot.question, "", data), shot.completion).strict
