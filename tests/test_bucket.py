"""A run folder in a bucket: gs:// through etils and fsspec, simulated by a folder that refuses renames."""

import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from tpt_jax import report
from tpt_jax.checkpoints.checksums import BrokenCheckpointError, verify_checksums, write_checksums
from tpt_jax.config import RunConfig, TrackersConfig
from tpt_jax.config_parsing import load_config
from tpt_jax.io import links
from tpt_jax.io.paths import copy, files_below, is_remote, to_path
from tpt_jax.library.trace_files import read_traces_to_judge
from tpt_jax.loop.metrics import MetricsLog
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.records import JudgedTrace, Question, Trace, Verdict

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


class Bucket(DirFileSystem):
    """Objects appear whole when they are closed, and cannot be renamed or appended to."""

    protocol = "gs"
    root = Path()
    cachable = False

    def __init__(self, **_: Any):
        super().__init__(path=str(self.root), fs=LocalFileSystem(auto_mkdir=True))

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return [*map(cls._strip_protocol, path)] if isinstance(path, list) else str(path).removeprefix("gs://")

    def open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        assert "a" not in mode, "nothing is appended to in a bucket"
        return super().open(path, mode, *arguments, **options)

    def mv(self, *arguments: Any, **options: Any) -> None:
        raise AssertionError("nothing is renamed in a bucket")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the objects; etils looks up a scheme's file system once."""
    Bucket.root = tmp_path_factory.mktemp("cloud")
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, Bucket, clobber=True)
    return Bucket.root


@pytest.fixture
def run(cloud: Path, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A run folder: its gs:// path, and the folder that simulates it."""
    name = f"bucket/runs/{request.node.name}"
    return f"gs://{name}", cloud / name


@pytest.fixture
def config() -> RunConfig:
    return load_config(CONFIG)


def judged(name: str, sample: int) -> JudgedTrace:
    return JudgedTrace(Trace(name, sample, "#### 4", (5, 6)), Verdict("4", strict=True, correct=True))


def test_a_run_is_written_and_resumed(run: tuple[str, Path], config: RunConfig) -> None:
    folder = RunFolder.open(run[0], config)
    assert is_remote(folder.path)
    folder.begin(config)
    folder.write_questions(0, [Question("q", "2 + 2?", "4")])
    writer = folder.trace_writer(0, "evaluate", 0)
    writer.write([judged("q", 1)])
    writer.write([judged("q", 0)])
    again = RunFolder.open(run[0], config)
    again.trace_writer(0, "evaluate", 0).write([judged("q", 3)])
    again.trace_writer(0, "evaluate", 1).write([judged("q", 2)])
    assert [trace.trace.sample for trace in again.traces(0, "evaluate")] == [1, 0, 3, 2]  # in the order of the files
    again.write_stages(0, {"train": {"seconds": 1.0}})
    assert again.stages(0) == {"train": {"seconds": 1.0}}
    parts = sorted(path.name for path in (run[1] / "rounds/000/traces").iterdir())
    assert parts == [f"evaluate-{host:03}-{part:05}.jsonl" for host, part in ((0, 0), (0, 1), (0, 2), (1, 0))]


def test_curves_are_copied_and_resumed(run: tuple[str, Path]) -> None:
    path = to_path(run[0]) / "metrics.jsonl"
    for step in range(2):
        log = MetricsLog(path, name="n", trackers=TrackersConfig(), is_kept=lambda line: line["step"] < 1)
        log.log(1, "train", step, {"loss": 1.0 - step})
        log.close()
    lines = [json.loads(line) for line in (run[1] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert list((run[1] / "tensorboard").iterdir())


def test_a_report_is_written(run: tuple[str, Path], config: RunConfig) -> None:
    folder = RunFolder.open(run[0], config)
    folder.begin(config)
    report.write_report([folder.path], folder.report)
    assert "<html" in (run[1] / "report.html").read_text()


def test_checksums_are_verified(run: tuple[str, Path]) -> None:
    folder = to_path(run[0]) / "checkpoints" / "001"
    (folder / "parameters").mkdir(parents=True)
    (folder / "parameters" / "weights").write_bytes(b"12345")
    write_checksums(folder)
    assert len(files_below(folder)) == 2
    verify_checksums(folder)
    (run[1] / "checkpoints/001/parameters/weights").write_bytes(b"1234")
    with pytest.raises(BrokenCheckpointError, match="parameters/weights has 4 of 5 bytes"):
        verify_checksums(folder)


def test_a_checkpoint_is_copied_for_another_run_and_complete_at_last(
    run: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    monkeypatch.setattr(links, "copy", lambda source, target: (copied.append(source.name), copy(source, target)))
    path = to_path(run[0])
    (path / "a/001/parameters").mkdir(parents=True)
    for name in ("config.json", "commit_success.txt", "parameters/weights"):
        (path / "a/001" / name).write_text(name)
    links.link_folder(path / "a/001", path / "b/001")
    links.link_file(path / "a/001/config.json", path / "b/training.jsonl")
    assert copied == ["config.json", "weights", "commit_success.txt", "config.json"]
    assert (run[1] / "b/001/parameters/weights").read_text() == "parameters/weights"
    assert (run[1] / "b/training.jsonl").read_text() == "config.json"


def test_gzipped_and_parquet_files_are_read(cloud: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist([{"id": "a", "completion": "x"}])
    (cloud / "bucket").mkdir(exist_ok=True)
    (cloud / "bucket" / "q.jsonl.gz").write_bytes(gzip.compress(b'{"id": "a", "question": "?", "answer": "7"}'))
    parquet.write_table(table, cloud / "bucket" / "t.parquet")
    paths = "gs://bucket/q.jsonl.gz", "gs://bucket/t.parquet"
    read = read_traces_to_judge("gsm8k", *paths, None, None, run_code_without_sandbox=False)
    assert [(question.answer, trace.completion) for question, trace in read.pairs()] == [("7", "x")]
