"""A user's questions as CSV, Parquet, gzipped, or a data set on the Hub, with columns of any names."""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, fetching_from, serve
from processes import EASY_TASK

from tpt_jax.config_parsing import dump_config, load_config, parse_config
from tpt_jax.errors import MachineError, UserError
from tpt_jax.io.files import write_atomically
from tpt_jax.io.paths import to_path
from tpt_jax.io.record_formats import open_records
from tpt_jax.io.yaml_text import parse_yaml
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.loop.versions import with_version
from tpt_jax.records import Question
from tpt_jax.tasks import FileConfig, load_task

ROWS = [
    {"unique_id": "a", "problem": "3 + 4?", "solution": "7", "level": "easy"},
    {"unique_id": "b", "problem": 'Half, "of" 1?\n(one line more)', "solution": "It is\n#### 1/2", "level": "é"},
]
COLUMNS = {"id": "unique_id", "question": "problem", "answer": "solution"}
EXPECTED = (
    Question("a", "3 + 4?", "7", {"level": "easy"}),
    Question("b", 'Half, "of" 1?\n(one line more)', "1/2", {"level": "é"}),
)
CSV = (
    "unique_id,problem,solution,level\r\n"
    'a,3 + 4?,7,easy\r\n\r\nb,"Half, ""of"" 1?\n(one line more)","It is\n#### 1/2",é\r\n'
)
CARD = """---
configs:
- {config_name: main, data_files: [{split: train, path: main/train-*}, {split: test, path: main/test-*}]}
- {config_name: odd, data_files: [{split: train, path: main/test-*}]}
---
"""


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"unique_id": "t", "problem": "9 + 9?", "solution": 18}))
    return path


@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "a.csv.gz", "a.jsonl", "a.jsonl.gz", "a.json.gz", "a.parquet", "a.yaml.gz"]
)
def test_all_formats_give_the_same_questions(tmp_path: Path, held_out: Path, name: str) -> None:
    path = tmp_path / name
    if "parquet" in name:
        write_parquet(path, ROWS)
    else:
        text = "\n".join(map(json.dumps, ROWS)) if "jsonl" in name else json.dumps(ROWS)  # which is YAML too
        if "csv" in name:
            text = "\ufeff" + CSV  # as Excel writes it
        if "tsv" in name:
            text = CSV.replace(",", "\t").replace("Half\t", "Half,")
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    task = load_task(FileConfig("file", path, held_out, columns=COLUMNS))
    assert task.train.questions == EXPECTED
    assert open_records(path).count() == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no training questions"),
        (b"question,answer\n", "no training questions"),
        (b"question;answer\n1?;2\n", r"a\.csv: its columns are separated by semicolons; separate them by commas"),
        (b"question,question\n1?,2\n", r"the first line \(question,question\) must name every column, each once"),
        (b"question,\n1?,2\n", "must name every column"),
        (b"question,answer\n1?,2,3\n", r"a\.csv:2: has 3 cells under 2 column names; quote cells with commas"),
        (b"question,answer\n1?\n", "has 1 cells under 2"),
        (b"question,answer\n1?,\n", r'a\.csv:2: lacks "answer"'),
        (b'question,answer\n"1?,2\n', r"a\.csv: not CSV in UTF-8 \(unexpected end of data\); save it again as such"),
        (b"question,answer\n\xe9?,2\n", r"a\.csv: not CSV in UTF-8 \('utf-8' codec"),
    ],
)
def test_mistakes_in_csv_are_reported(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_task(FileConfig("file", tmp_path / "a.csv", tmp_path / "a.csv"))


def test_an_empty_cell_is_no_value(tmp_path: Path) -> None:
    for split, question in (("train", "1?"), ("test", "2?")):
        (tmp_path / f"{split}.csv").write_text(f"id,question,answer,level\n,{question},3,\n")
    task = load_task(FileConfig("file", tmp_path / "train.csv", tmp_path / "test.csv"))
    assert task.train.questions == (Question("file/train/0", "1?", "3"),)


def test_a_column_that_is_not_there_is_named(tmp_path: Path, held_out: Path) -> None:
    config = FileConfig("file", held_out, held_out, columns={"question": "prompt"})
    with pytest.raises(UserError, match=r"lacks 'prompt', which task\.columns names; it has unique_id, pro"):
        load_task(config)


# Data sets on the Hub.


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """`datasets` itself, with a server of ours in place of the Hub."""
    import datasets.config

    with serve() as hub:
        fetching_from(hub, tmp_path / "cache", monkeypatch)
        for name, value in {
            "HF_ENDPOINT": hub.url,
            "HF_DATASETS_CACHE": tmp_path / "cache/datasets",
            "HF_MODULES_CACHE": tmp_path / "cache/modules",
        }.items():
            monkeypatch.setattr(datasets.config, name, value)
        yield hub


def add_data(hub: FakeHub, folder: Path, rows: list[dict[str, Any]]) -> str:
    """Adds a commit of alice/data; returns it."""
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    files = {
        "README.md": folder / "README.md",
        "main/train-0.parquet": write_parquet(folder / "train", rows),
        "main/test-0.parquet": write_parquet(folder / "test", [{**rows[0], "problem": "Test?"}]),
    }
    return hub.add("alice/data", files, "dataset")


def test_a_run_keeps_the_commit_of_its_data_set(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "easy.yaml").write_text(EASY_TASK)
    columns = "{id: unique_id, question: problem, answer: solution}"
    given = load_config(
        tmp_path / "easy.yaml",
        {
            "task.train": "hf://alice/data:main/train",
            "task.test": "hf://alice/data:main/test",
            "task.columns": columns,
        },
    )
    first = add_data(hub, tmp_path / "first", ROWS)
    path = to_path(tmp_path / "run")
    config = with_version(given, path)
    assert isinstance(config.task, FileConfig)
    assert config.task.versions == {"alice/data": first}
    assert parse_config(parse_yaml(dump_config(config))) == config
    RunFolder.open(path, config).begin(config)
    write_atomically(path / "rounds/000/stages.json", "{}")

    second = add_data(hub, tmp_path / "second", ROWS[:1])
    resumed = with_version(given, path)
    assert resumed == config
    RunFolder.open(path, resumed)
    task = load_task(resumed.task)
    assert task.train.questions == EXPECTED
    assert [question.question for question in task.test] == ["Test?"]
    hub.is_gone = True
    assert load_task(resumed.task) == task
    hub.is_gone = False
    newest = with_version(given, to_path(tmp_path / "new")).task
    assert isinstance(newest, FileConfig)
    assert newest.versions == {"alice/data": second}
    assert len(load_task(newest).train) == 1


def test_mistakes_about_data_sets_are_refused_in_one_line(
    hub: FakeHub, tmp_path: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_data(hub, tmp_path / "data", ROWS)
    script = tmp_path / "data.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    hub.add("alice/script", {"script.py": script}, "dataset")
    for source, message in (
        (
            "hf://alice/data:nope/train",
            r"^hf://alice/data:nope/train: datasets cannot load it \(BuilderConfig 'nope'",
        ),
        ("hf://alice/data:main/dev", r'cannot load it \(Unknown split "dev"'),
        ("hf://alice/data/train", r"datasets cannot load it \(Config name is missing"),
        (
            "hf://alice/none/train",
            r"^alice/none: no such repository at http://\S+/datasets/alice/none; if",
        ),
        ("hf://alice/data@v2:main/train", r"^hf://alice/data@v2: \S+/datasets/alice/data has no such revision"),
        ("hf://alice/data", r"^'hf://alice/data': not a split of a data set; write hf://OWNER/NAME/SPLIT, with"),
        ("hf://alice/script/train", r"^hf://alice/script/train: datasets cannot load it \("),
    ):
        with pytest.raises(UserError, match=message):
            load_task(FileConfig("file", source, held_out, columns=COLUMNS))
    assert not (tmp_path / "ran").exists()
    assert not capsys.readouterr().err
    hub.is_gone = True
    with pytest.raises(MachineError, match=r"^hf://alice/other: http://\S+ cannot be reached"):
        load_task(FileConfig("file", "hf://alice/other/train", held_out))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"data sets by name need datasets; pip install 'tpt_jax\[datasets\]'$"):
        load_task(FileConfig("file", "hf://alice/data:main/train", held_out))
