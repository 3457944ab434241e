"""`tpt init` and `tpt check-task`: a project of one's own, and what its checker reads."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import PROJECT, ROOT, CommandHere, refused

import tpt_jax as tpt
from tpt_jax.config_parsing import load_config
from tpt_jax.library.check_task import EMPTY, EXAMPLE, OTHER

Tpt = CommandHere
SUMS = [{"question": f"{n} + {n} =", "answer": 2 * n} for n in range(10, 14)]
TEST = [{"question": "1 + 1 =", "answer": 2}]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tpt_here: Tpt) -> Path:
    """A project that `tpt init` wrote, in which commands run."""
    monkeypatch.setenv("COLUMNS", "100")  # pytest's workers have a width of their own
    done = tpt_here("init", tmp_path / "mine")
    assert done.returncode == 0, done
    monkeypatch.syspath_prepend(tmp_path / "mine")  # as in a process of its own
    monkeypatch.delitem(sys.modules, "checker", raising=False)
    monkeypatch.chdir(tmp_path / "mine")
    return tmp_path / "mine"


def test_a_project_is_what_its_readme_says(project: Path, tpt_here: Tpt) -> None:
    assert {path.name for path in project.iterdir()} == {path.name for path in PROJECT.iterdir() if path.is_file()}
    readme = (project / "README.md").read_text()
    named = set(re.findall(r"`([\w.]+\.\w+)`", readme.split("```")[0]))
    assert named == {path.name for path in project.iterdir()} - {"README.md"}
    assert "own_task" not in "".join(path.read_text() for path in project.iterdir())
    assert load_config("config.yaml").name == "mine"
    verbs = re.findall(r"^tpt (\S+) .*?(?:#|$)", readme, re.MULTILINE)
    assert verbs == ["check-task", "sample", "run", "eval", "chat", "export"]
    assert "1237" not in tpt_here("sample", "--config", "config.yaml", "--show_prompts", "1").stdout
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_the_checker_of_a_project_reads_what_it_should(project: Path, tpt_here: Tpt) -> None:
    done = tpt_here("check-task", "--config", "config.yaml", "--num_shown", "1")
    assert done.returncode == 0, done
    assert "!!" not in done.stdout
    assert "'42, no: 43'" in done.stdout
    assert "as it is 2 (2 strict) of 2, sentence 2 (0 strict) of 2" in done.stdout
    assert "train: 48 questions, 0 with an unreadable reference answer, 0 with" in done.stdout


def test_examples_that_the_checker_judges_otherwise(project: Path, tpt_here: Tpt) -> None:
    example = {"question_id": "file/test/0", "completion": "\x1b[2J66", "correct": False}
    (project / "examples.jsonl").write_text(json.dumps(example))
    done = tpt_here("check-task", "--config", "config.yaml")
    assert (done.returncode, "\x1b" in done.stdout) == (2, False)
    assert re.search(r"yours.*'\\x1b\[2J66'.*yes.*no.*'66'.*no.*!!", done.stdout)
    assert done.stderr.endswith(
        "tpt: check-task: 1 of your examples are judged otherwise: '\\x1b[2J66' to file/test/0; "
        "change the checker, the answers or the examples\n"
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"question": "7 + 7 =", "completion": "", "correct": True}, "the task does not have ('7 + 7 =')"),
        ({"question": "22 + 20 =", "completion": "42", "correct": 1}, 'true or false under "correct"'),
    ],
)
def test_examples_that_are_none(line: dict[str, Any], words: str, project: Path, tpt_here: Tpt) -> None:
    (project / "own.jsonl").write_text(json.dumps(line))
    assert words in refused(tpt_here, "check-task", "--config", "config.yaml", "--examples", "own.jsonl")


def test_own_questions_in_place_of_those_that_init_wrote(project: Path, tpt_here: Tpt) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        lines = [{"question": f"{name}: {n} more than 3?", "answer": n + 3} for n in range(4)]
        (project / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    line = refused(tpt_here, "check-task", "--config", "config.yaml")
    assert "examples.jsonl: 3 of 3 records" in line
    assert line.endswith("does not have ('22 + 20 ='); write examples of your own questions, or delete it")
    (project / "examples.jsonl").write_text("")
    assert tpt_here("check-task", "--config", "config.yaml").returncode == 0


def test_a_checker_is_looked_for_where_the_command_runs(
    project: Path, tpt_here: Tpt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(project))])
    monkeypatch.chdir(project.parent)
    line = refused(tpt_here, "check-task", "--config", "mine/config.yaml")
    assert f"there is no checker.py in {project.parent}, where the command runs; run it in the folder that has" in line


def test_what_a_checker_imports_is_missing(project: Path, tpt_here: Tpt) -> None:
    (project / "checker.py").write_text("import checker_of_others\n")
    line = refused(tpt_here, "check-task", "--config", "config.yaml")
    assert line.endswith("checker 'checker:check': imports 'checker_of_others', which is not installed; install it")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((".",), ".: is not an empty folder; give a new one"),
        (("config.yaml",), "config.yaml: is not an empty folder"),
        (("two words",), "name ('two words'): write a letter"),
        (("x", "--name", "../y"), "name ('../y')"),
        (("x", "--name", ""), "name ('')"),
        (("gs://bucket/x",), "give a folder on a disk"),
        (("/proc/x",), "cannot be created"),
    ],
)
def test_a_folder_or_name_that_will_not_do(
    arguments: tuple[str, ...], words: str, project: Path, tpt_here: Tpt
) -> None:
    before = sorted(project.iterdir())
    assert words in refused(tpt_here, "init", *arguments)
    assert sorted(project.iterdir()) == before


def forms(checked: tpt.TaskCheck, split: str) -> dict[str, bool]:
    """Whether the checker took each form of an answer, in all questions of a split."""
    taken: dict[str, list[bool]] = {}
    for each in checked.completions:
        if each.split == split:
            taken.setdefault(each.form, []).append(each.verdict.correct)
    assert all(len(set(values)) == 1 for values in taken.values())
    return {form: values[0] for form, values in taken.items()}


def test_a_checker_that_takes_one_form_only() -> None:
    task = tpt.own_task(SUMS, TEST, checker=lambda question, text: text == f"\\boxed{{{question.answer}}}")
    checked = tpt.check_task(task, num_workers=1)
    expected = dict.fromkeys(["as it is", "sentence", "after ####", "boxed", EMPTY, OTHER], False)
    assert forms(checked, "train") == expected | {"boxed": True}
    del expected[OTHER]  # the test split has one question
    assert forms(checked, "test") == expected | {"boxed": True}
    assert checked.mistakes == ()
    assert 0 < checked.seconds_per_check < 1


def test_a_checker_that_takes_anything() -> None:
    checked = tpt.check_task(tpt.own_task(SUMS, TEST, checker=lambda question, text: True), num_workers=1)
    (line,) = checked.mistakes
    assert line == "5 wrong answers count as right: '' to own/train/0, '22' to own/train/0, '' to own/train/1, ..."


def test_questions_that_are_unreadable_repeated_or_in_both_splits() -> None:
    train = [
        *SUMS,
        {"question": "What is 2 + 3?", "answer": "5"},
        {"question": "what is 2+3", "answer": "5.0"},
        {"question": "What is 2 + 3", "answer": "6"},
        {"question": "Why?", "answer": "nobody knows"},
        {"question": "1+1 =", "answer": "3"},
    ]
    checked = tpt.check_task(tpt.own_task(train, TEST), num_workers=1)
    assert checked.num_contaminated == 1
    split = checked.splits["train"]
    assert (split.num_questions, split.unreadable) == (8, ("own/train/7",))
    assert (split.repeated, split.contradicting) == (("own/train/5", "own/train/6"), ("own/train/6",))
    assert checked.mistakes == ("1 of 8 train reference answers cannot be read: own/train/7",)


def test_programs_are_asked_about_by_examples() -> None:
    question = {"question": "Write double(n).", "tests": ["assert double(4) == 8"]}
    task = tpt.own_task(
        [question], [{**question, "question": "Write double(n) again."}], checker="code_without_sandbox"
    )
    examples = [
        {
            "question": "Write double(n).",
            "completion": f"```python\ndef double(n):\n    return {body}\n```",
            "correct": ok,
        }
        for body, ok in (("2 * n", True), ("n", False))
    ]
    checked = tpt.check_task(task, examples=examples, num_workers=1)
    assert [(each.form, each.verdict.correct) for each in checked.completions if each.split == "train"] == [
        (EMPTY, False),
        (EXAMPLE, True),
        (EXAMPLE, False),
    ]
    assert checked.mistakes == ()
    with pytest.raises(tpt.UserError, match=r"examples, item 1: .* the task does not have \('x'\)"):
        tpt.check_task(task, examples=[{"question_id": "x", "completion": "", "correct": True}])


def test_a_checker_that_fails_on_everything() -> None:
    task = tpt.own_task(SUMS, TEST, checker=lambda question, text: 1 // 0 == 1)
    with pytest.raises(tpt.UserError, match=r"failed on every trace \(checker raised ZeroDivisionError"):
        tpt.check_task(task, num_workers=1)
