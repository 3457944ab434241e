"""A user's own task from files: questions, shots and checker, and mistakes in them."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tpt_jax.checks.pool import CheckerPool
from tpt_jax.config_parsing import dump_config, parse_config
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.records import Question, Trace
from tpt_jax.tasks import FileConfig, Shot, load_task

LINES = [
    {"id": "a", "question": "3 + 4?", "answer": 7, "level": "easy", "tests": [1, 2]},
    {"question": "Half of 1?", "answer": "1 / 2 is a half\n#### 1/2"},
]


def write(folder: Path, train: Any = LINES, test: Any = None, **options: Any) -> FileConfig:
    """A config whose files hold these objects as JSON lines; a string is written unchanged."""
    test = [{"question": "9 + 9?", "answer": "18"}] if test is None else test
    for name, content in (("train", train), ("test", test)):
        text = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
        (folder / f"{name}.jsonl").write_text(text)
    return FileConfig("file", train=folder / "train.jsonl", test=folder / "test.jsonl", **options)


def test_questions_keep_every_field_of_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, instruction="Answer.")
    task = load_task(config)
    assert task.train.questions == (
        Question("a", "3 + 4?", "7", {"level": "easy", "tests": [1, 2]}),
        Question("file/train/1", "Half of 1?", "1/2"),
    )
    assert (task.test.questions, task.train.instruction, task.train.checker) == (
        (Question("file/test/0", "9 + 9?", "18"),),
        "Answer.",
        "numeric",
    )
    assert config.num_questions() == (2, 1)


def test_json_lines_json_and_yaml_give_the_same_questions(tmp_path: Path) -> None:
    expected = load_task(write(tmp_path)).train
    assert load_task(write(tmp_path, train=json.dumps(LINES))).train == expected
    (tmp_path / "train.yaml").write_text(
        textwrap.dedent(
            """
            - id: a
              question: 3 + 4?
              answer: 7
              level: easy
              tests: [1, 2]
            - question: Half of 1?
              answer: |-
                1 / 2 is a half
                #### 1/2
            """
        )
    )
    assert load_task(FileConfig("file", tmp_path / "train.yaml", tmp_path / "test.jsonl")).train == expected


@pytest.mark.parametrize("answer", ["12:30", "010", "1_000", "no", "2024-01-02", "1e3", "0x10", "7", "-2.5", "007.5"])
def test_yaml_answers_stay_the_text_that_was_written(tmp_path: Path, answer: str) -> None:
    config = write(tmp_path)
    (tmp_path / "train.yaml").write_text(f"- question: What?\n  answer: {answer}\n")
    train = load_task(FileConfig("file", tmp_path / "train.yaml", config.test)).train
    assert [question.answer for question in train] == [answer]


@pytest.mark.parametrize("lines", ["\n".join(map(json.dumps, LINES)), json.dumps(LINES)])
def test_a_byte_order_mark_is_ignored(tmp_path: Path, lines: str) -> None:
    assert load_task(write(tmp_path, train=f"\ufeff{lines}")).train == load_task(write(tmp_path)).train


def test_shots_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "shots.yml").write_text("- question: 1 + 1?\n  completion: |-\n    Two.\n    #### 2\n")
    assert load_task(write(tmp_path, shots=tmp_path / "shots.yml")).train.shots == (Shot("1 + 1?", "Two.\n#### 2"),)
    (tmp_path / "shots.yml").write_text("- question: 1 + 1?\n")
    with pytest.raises(UserError, match=r'shots\.yml, item 1: lacks text under "completion"'):
        load_task(write(tmp_path, shots=tmp_path / "shots.yml"))


def test_a_few_broken_lines_are_left_out_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"id": str(number), "question": f"{number}?", "answer": "7"}) for number in range(300)]
    lines[10], lines[20], lines[30] = '{"id": "10"', lines[19], '{"id": "30", "question": "30?"}'
    task = load_task(write(tmp_path, train="\n".join(lines)))
    assert [question.id for question in task.train] == [str(n) for n in range(300) if n not in (10, 20, 30)]
    err = capsys.readouterr().err
    assert "leaving out 3 of 300 records" in err
    for message in (
        "train.jsonl:11: not JSON",
        "train.jsonl:21: repeats the id '19'",
        'train.jsonl:31: lacks "a',
    ):
        assert message in err


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([{"answer": "7"}], r'train\.jsonl:1: lacks "question"; it has answer: name them in task\.columns'),
        ([{"question": 7, "answer": "7"}], r'train\.jsonl:1: lacks text under "question"'),
        ([{"question": "?"}], r'train\.jsonl:1: lacks "answer"'),
        ([{"question": "?", "level": "easy"}], r'lacks "answer", which the checker numeric needs'),
        ([{"question": "?", "answer": True}], r'has an "answer" of type bool; write a number or quoted text'),
        ([{"question": "?", "answer": ["7"]}], 'has an "answer" of type list'),
        ([{"id": 1.5, "question": "?", "answer": 7}], r'has an "id" of type float; write text or an integer'),
        ([*LINES, LINES[0]], r"train\.jsonl:3: repeats the id 'a'; make ids unique"),
        (
            [*LINES, {"id": "file/train/1", "question": "?", "answer": "7"}],
            r"train\.jsonl:3: repeats the id 'file/train/1'",
        ),
        ("", r"no training questions"),
        ('[{"question": "?"', r"train\.jsonl: not JSON"),
        ("[7]", r"train\.jsonl, item 1: of type int, not an object"),
        ("x\n" * 7, r"7 of 7 records cannot be used.*jsonl:5: [^;]*; write one object per line; \.\.\.$"),
    ],
)
def test_mistakes_are_reported(tmp_path: Path, train: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_task(write(tmp_path, train))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- question: [", r"train\.yaml: not YAML"),
        ("question: 1 + 1?\nanswer: 2", r"train\.yaml: of type dict, not a list"),
        ("- question: 1 + 1?\n  answer: false", r'train\.yaml, item 1: has an "answer" of type bool'),
        ("- !!python/object/apply:os.getcwd []", r"train\.yaml: not YAML"),
        ("", r"no training questions"),
    ],
)
def test_mistakes_in_yaml_are_reported(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.yaml").write_text(text)
    write(tmp_path)
    with pytest.raises(UserError, match=message):
        load_task(FileConfig("file", tmp_path / "train.yaml", tmp_path / "test.jsonl"))


def test_a_missing_file_and_an_unknown_checker_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        load_task(FileConfig("file", tmp_path / "none.jsonl", tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"'numerik': unknown; did you mean numeric\? \(your own function: module:f"):
        load_task(write(tmp_path, checker="numerik"))
    with pytest.raises(UserError, match="checker 'no_such_module:check'"):
        load_task(write(tmp_path, checker="no_such_module:check"))
    with pytest.raises(UserError, match=r"^checker 'checker\.py:check': names a file; write checker:check$"):
        load_task(write(tmp_path, checker="checker.py:check"))


def test_a_question_needs_an_answer_or_other_data() -> None:
    assert FileConfig.read_question("q", {"question": "?", "tests": "x"}) == Question("q", "?", "", {"tests": "x"})
    with pytest.raises(InvalidRecordError, match='lacks "answer"'):
        FileConfig.read_question("q", {"question": "?"})


def test_a_users_function_judges_in_worker_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is in the working directory; it sees every field of the question's line."""
    (tmp_path / "my_own_checker.py").write_text(
        textwrap.dedent(
            """
            from tpt_jax.records import Verdict

            def check(question, completion):
                words = completion.split()
                if question.data["words"] == "?":
                    return None
                if not words:
                    return Verdict.wrong("no answer")
                return len(words) == question.data["words"]
            """
        )
    )
    lines = [{"question": "Three words?", "words": 3}, {"question": "How many?", "words": "?"}]
    monkeypatch.chdir(tmp_path)
    task = load_task(write(tmp_path, lines, checker="my_own_checker:check"))
    with CheckerPool(task.train.checker, 1, seconds_per_trace=5.0) as pool:
        pairs = [(task.train[0], Trace("0", sample, text)) for sample, text in enumerate(("a b c", "a b", ""))]
        verdicts = list(pool.judge([*pairs, (task.train[1], Trace("1", 0, "a"))]))
    assert [verdict.correct for verdict in verdicts] == [True, False, False, False]
    assert [verdict.reason for verdict in verdicts] == ["", "", "no answer", "unreadable reference answer"]
    assert verdicts[3].unknown


def test_a_config_reads_the_task(tmp_path: Path) -> None:
    write(tmp_path)
    task = {"name": "file", "train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}
    config = parse_config({"name": "mine", "model": {"path": "quickstart"}, "task": task})
    assert config.task == FileConfig("file", tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    assert "checker: numeric" in dump_config(config)
    with pytest.raises(UserError, match=r"task\.chekcer: unknown key; did you mean checker"):
        parse_config({"name": "mine", "model": {"path": "quickstart"}, "task": {**task, "chekcer": "numeric"}})
