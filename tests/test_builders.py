"""The builders for tensorflow-datasets, with small raw files in a folder or on a local server."""

import functools
import hashlib
import http.server
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from tpt_jax.errors import UserError
from tpt_jax.tasks import Gsm8kConfig, MathConfig, MbppConfig, load_task
from tpt_jax.tasks.builders.gsm8k import TptGsm8k
from tpt_jax.tasks.download import read_dataset

SAMPLE = Path(__file__).parent / "data" / "gsm8k"
SHARED = Path(__file__).parents[2] / "shared" / "gsm8k"


def write_gsm8k(folder: Path, count: int = 30) -> list[dict[str, str]]:
    lines = [{"question": f"{number} + 4, é?", "answer": f"So.\n#### {number + 4}"} for number in range(count)]
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (folder / "test.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}))
    return lines


def write_math(folder: Path) -> None:
    for split in ("train", "test"):
        for number in (2, 12, 1):
            subject = folder / split / "algebra"
            subject.mkdir(parents=True, exist_ok=True)
            problem = {"problem": f"{split} {number}", "level": "Level 1", "type": "Algebra", "solution": r"\boxed{1}"}
            (subject / f"{number}.json").write_text(json.dumps(problem))


def write_mbpp(folder: Path) -> None:
    tasks = [
        {
            "text": f"Write task {number}.",
            "code": "def f():\r\n  return 1",
            "task_id": number,
            "test_setup_code": "",
            "test_list": [f"assert f() == {number}"] * (number % 3 + 1),
            "challenge_test_list": [],
        }
        for number in (10, 11, 510, 511, 600, 601, 974)
    ]
    (folder / "mbpp.jsonl").write_text("\n".join(map(json.dumps, tasks)))


def test_gsm8k_keeps_its_order(tmp_path: Path) -> None:
    lines = write_gsm8k(tmp_path / "raw")
    assert read_dataset("gsm8k", "train", tmp_path / "raw", tmp_path) == lines
    assert len(read_dataset("gsm8k", "test", tmp_path / "raw", tmp_path)) == 1
    assert list(tmp_path.glob("tpt_gsm8k/*/*/*-train.array_record*"))
    # If the raw files change, the prepared files of the old ones are not used.
    lines = write_gsm8k(tmp_path / "raw", count=31)
    assert read_dataset("gsm8k", "train", tmp_path / "raw", tmp_path) == lines


def test_mbpp_splits_by_task(tmp_path: Path) -> None:
    write_mbpp(tmp_path)
    read = functools.partial(read_dataset, "mbpp", manual_dir=tmp_path, data_dir=tmp_path)
    ids = {split: [line["task_id"] for line in read(split)] for split in ("prompt", "test", "validation", "train")}
    assert ids == {"prompt": [10], "test": [11, 510], "validation": [511, 600], "train": [601, 974]}
    assert read("test")[0] == {
        "text": "Write task 11.",
        "code": "def f():\r\n  return 1",
        "task_id": 11,
        "test_setup_code": "",
        "test_list": ["assert f() == 11"] * 3,
        "challenge_test_list": [],
    }


def test_math_is_in_natural_order(tmp_path: Path) -> None:
    write_math(tmp_path)
    lines = read_dataset("math", "test", tmp_path, tmp_path)
    assert [line["path"] for line in lines] == ["algebra/1.json", "algebra/2.json", "algebra/12.json"]
    assert [line["problem"] for line in lines] == ["test 1", "test 2", "test 12"]
    assert lines[0]["solution"] == r"\boxed{1}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """URL of a server for the files in tmp_path / "served"."""

    class QuietHandler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    (tmp_path / "served").mkdir()
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_math_is_downloaded_and_unpacked(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_math(tmp_path / "MATH")
    with tarfile.open(tmp_path / "served" / "MATH.tar", "w") as archive:
        archive.add(tmp_path / "MATH", "MATH")
    monkeypatch.setattr("tpt_jax.tasks.builders.math._URL", f"{server}/MATH.tar")
    assert [line["problem"] for line in read_dataset("math", "train", data_dir=tmp_path)] == [
        "train 1",
        "train 2",
        "train 12",
    ]


def test_a_failed_download_is_one_line(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: f"{server}/{name}" for name in TptGsm8k.FILES}
    monkeypatch.setattr(TptGsm8k, "FILES", files)
    with pytest.raises(UserError, match=r"failed on github.com/openai.*404.*set task\.manual_dir") as raised:
        read_dataset("gsm8k", "train", data_dir=tmp_path)
    assert "\n" not in str(raised.value)


def test_invalid_raw_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl: no such file; put train\.jsonl and test\.jsonl from github"):
        read_dataset("gsm8k", "train", tmp_path / "none", tmp_path)
    write_gsm8k(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"question": "?"}')
    with pytest.raises(UserError, match=r'test\.jsonl:1: lacks "answer"'):
        read_dataset("gsm8k", "train", tmp_path, tmp_path)
    write_math(tmp_path)
    (tmp_path / "test" / "algebra" / "2.json").write_text("{}")
    with pytest.raises(UserError, match=r"algebra/2\.json: not a MATH problem"):
        read_dataset("math", "train", tmp_path, tmp_path)


def test_another_process_may_prepare_the_files_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = write_gsm8k(tmp_path)
    prepare: Any = TptGsm8k.download_and_prepare

    def too_late(builder: TptGsm8k, **options: object) -> None:
        prepare(builder, **options)  # the other process has renamed its folder before we rename ours
        raise OSError("Destination already exists")

    monkeypatch.setattr(TptGsm8k, "download_and_prepare", too_late)
    assert read_dataset("gsm8k", "train", tmp_path, tmp_path) == lines


@pytest.mark.parametrize(
    ("config", "write"), [(Gsm8kConfig, write_gsm8k), (MathConfig, write_math), (MbppConfig, write_mbpp)]
)
def test_a_task_reads_the_same_questions_from_builder_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Any, write: Callable[[Path], object]
) -> None:
    """With the same order and ids."""
    write(tmp_path)
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path / "data"))
    (name,) = get_args(config.__annotations__["name"])
    assert load_task(config(name, manual_dir=tmp_path)) == load_task(config(name, folder=tmp_path))
    with pytest.raises(UserError, match=r"task\.folder and task\.manual_dir"):
        load_task(config(name, folder=tmp_path, manual_dir=tmp_path))


def test_published_questions_pass_through_the_builder_unchanged(tmp_path: Path) -> None:
    for split in ("train", "test"):
        lines = [json.loads(line) for line in (SAMPLE / f"{split}.jsonl").read_text().splitlines()]
        assert read_dataset("gsm8k", split, SAMPLE, tmp_path) == lines
        assert len(lines) == 20


def test_the_checksums_are_those_of_the_published_files() -> None:
    published = json.loads((SAMPLE / "published.json").read_text())
    checksums = TptGsm8k.url_infos
    assert checksums is not None
    for name, url in TptGsm8k.FILES.items():
        expected = {"size": checksums[url].size, "sha256": checksums[url].checksum}
        assert published[name] == expected
        if SHARED.is_dir():
            content = (SHARED / name).read_bytes()
            assert {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} == expected
