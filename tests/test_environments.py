"""A machine without a home folder, /dev/shm, TPU or resources: the same results, or one line."""

import _multiprocessing
import json
import os
import shutil
import struct
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import ROOT, process_environment

from tpt_jax.config import TrackersConfig
from tpt_jax.errors import MachineError, UserError
from tpt_jax.io.downloads import read_json_object
from tpt_jax.io.files import read_jsonl
from tpt_jax.io.paths import modified_at, to_path
from tpt_jax.loop.metrics import MetricsLog
from tpt_jax.runtime import environment

TPT = f"{sys.executable} -m tpt_jax"


def tpt_in(line: str, cwd: Path, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Runs a line of shell in a changed environment; None removes a variable."""
    env = {name: value for name, value in {**process_environment(), **changes}.items() if value is not None}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env=env, cwd=cwd, timeout=240, check=False
    )


# A run where nothing is as usual.

CLOCK_THAT_RUNS_BACKWARDS = """
import itertools, time
now, calls = time.time(), itertools.count()
time.time = lambda: now - 3600 * next(calls)
"""
CHECKER = """
from tpt_jax.records import Verdict
def check(question, completion):
    is_right = question.answer in completion
    return Verdict("“ü”", strict=is_right, correct=is_right)
"""
CONFIG = {
    "name": "hard",
    "model": {"path": "quickstart", "compute_dtype": "float32"},
    "num_rounds": 1,
    "think": {"num_slots": 4},
    "prune": {"num_workers": 1},
    "evaluate": {"num_samples": 1, "num_slots": 4, "max_prompt_tokens": 64, "max_new_tokens": 8},
}


def test_an_evaluation_where_nothing_is_as_usual(tmp_path: Path) -> None:
    folder = tmp_path / "ä b'\"漢🙂$x\n`;"
    folder.mkdir()
    for name in ("train", "test"):
        shutil.copy(ROOT / f"tpt_jax/library/project_template/{name}.jsonl", folder / f"{name} ü.jsonl")
    shutil.copytree(ROOT / "tpt_jax/quickstart/model", folder / "mödel")
    (folder / "prüfer.py").write_text(CHECKER, encoding="utf-8")
    (folder / "sitecustomize.py").write_text(CLOCK_THAT_RUNS_BACKWARDS)
    files = {name: str(folder / f"{name} ü.jsonl") for name in ("train", "test")}
    config = {**CONFIG, "task": {"name": "file", **files, "checker": "prüfer:check"}}
    (folder / "config ü.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    done = tpt_in(
        f"ulimit -n 64; exec {TPT} eval --config 'config ü.yaml' --model mödel --run_dir 'rün ü' <&-",
        folder,
        HOME="/dev/null",
        TMPDIR="/nonexistent",
        TZ="Nowhere/Nothing",
        LC_ALL="C",
        PYTHONIOENCODING="ascii",
        JAX_PLATFORMS=None,
        PYTHONPATH=os.pathsep.join([str(folder), str(ROOT / "tests/without_torch"), str(ROOT)]),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith(("hard:", "sampler ready", "round 0 evaluate")) for line in lines)
    assert json.loads(done.stdout)["pass_at_1"] > 0.9  # as on any machine
    assert (folder / "rün ü/config.yaml").is_file()


# One line.


@pytest.mark.parametrize(
    ("line", "changes", "status", "expected"),
    [
        ("{}", {"JAX_PLATFORMS": "nonsense"}, 2, "tpt: JAX_PLATFORMS (nonsense): JAX has no platform 'nonsense'"),
        ("{}", {"XLA_FLAGS": "--xla_nonsense=1"}, 1, "Unknown flag in XLA_FLAGS: --xla_nonsense=1"),
        ("ulimit -v 2300000; {}", {}, 1, "tpt: the limit of memory is 2.4 GB, and JAX needs 4 GB; raise it"),
    ],
)
def test_one_line(line: str, changes: dict[str, str], status: int, expected: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "extends": f"{ROOT}/configs/own_task.yaml"}))
    done = tpt_in(line.format(f"{TPT} run --config config.yaml"), tmp_path, **changes)
    assert done.returncode == status
    (only,) = done.stderr.splitlines()
    assert expected in only
    assert not (tmp_path / "runs").exists()


# The choice of a platform.


class Config:
    """In place of JAX's, which the tests themselves use."""

    def __init__(self, platforms: str | None = None) -> None:
        self.jax_platforms = platforms
        self.jax_compilation_cache_dir: str | None = None
        self.jax_enable_compilation_cache = True

    def update(self, name: str, value: object) -> None:
        setattr(self, name, value)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Prepares JAX with that setting of JAX_PLATFORMS, on a machine that has these; returns JAX's configuration."""

    def prepare(platforms: str | None = None, *, plugins: tuple[str, ...] = (), tpu: bool = False) -> Config:
        config = Config(platforms)
        monkeypatch.setattr(environment, "jax", types.SimpleNamespace(config=config))
        monkeypatch.setattr(environment, "may_have_tpu", lambda: tpu)
        entries = [metadata.EntryPoint(name, "", "jax_plugins") for name in plugins]
        monkeypatch.setattr(metadata, "entry_points", lambda group: entries)
        environment.prepare()
        return config

    return prepare


@pytest.mark.parametrize(
    ("platforms", "plugins", "tpu", "expected"),
    [
        (None, (), False, "cpu"),
        ("", (), False, "cpu"),
        (None, (), True, None),
        (None, ("xla_cuda13",), False, "cuda,cpu"),
        (None, ("xla_cuda13",), True, None),
        (None, ("another",), False, None),
        ("cpu", (), True, "cpu"),
        ("tpu,cpu", (), True, "tpu,cpu"),
        ("cuda", ("xla_cuda13",), False, "cuda"),
        ("another", ("another",), False, "another"),
    ],
)
def test_the_platform_is_chosen_where_it_is_clear(
    platforms: str | None, plugins: tuple[str, ...], tpu: bool, expected: str | None, prepared: Callable[..., Config]
) -> None:
    assert prepared(platforms, plugins=plugins, tpu=tpu).jax_platforms == expected


@pytest.mark.parametrize(
    ("platforms", "message"),
    [
        ("cpu, gpu", r"JAX_PLATFORMS \(cpu, gpu\): JAX has no platform ' gpu'; write cpu, gpu or tpu"),
        ("tpu", "this machine shows no TPU; write cpu, or unset it"),
        ("cuda", r"JAX's GPU plugin is not installed; run: pip install 'tpt_jax\[cuda\]'"),
    ],
)
def test_a_platform_that_is_not_there_is_refused(platforms: str, message: str, prepared: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match=message):
        prepared(platforms)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, False),
        ({"dev/accel0": ""}, True),
        ({"dev/vfio/vfio": ""}, False),
        ({"dev/vfio/vfio": "", "dev/vfio/0": ""}, True),
        ({"sys/bus/pci/devices/1/vendor": "0x1ae0\n", "sys/bus/pci/devices/1/class": "0x088000\n"}, True),
        ({"sys/bus/pci/devices/1/vendor": "0x1ae0\n", "sys/bus/pci/devices/1/class": "0x020000\n"}, False),  # network
        ({"sys/bus/pci/devices/1/vendor": "0x10de\n", "sys/bus/pci/devices/1/class": "0x030200\n"}, False),  # a GPU
    ],
)
def test_signs_of_a_tpu(files: dict[str, str], expected: bool, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert environment.may_have_tpu(tmp_path) == expected


# The cache of compiled programs.


def test_the_cache_needs_a_home_folder(
    prepared: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepared().jax_compilation_cache_dir == str(tmp_path / ".cache/tpt_jax/compilations")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a read-only file system
    config = prepared()
    assert config.jax_compilation_cache_dir is None
    assert not config.jax_enable_compilation_cache
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a container's user that /etc/passwd lacks
    assert not prepared().jax_enable_compilation_cache
    fix = "set JAX_COMPILATION_CACHE_DIR to a folder for them"
    assert capsys.readouterr().err.splitlines() == [
        f"compiled programs are not kept (no permission to write); {fix}",
        f"compiled programs are not kept (no home folder); {fix}",
    ]


# Resources.


def test_too_few_threads_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    environment._check_limits.cache_clear()
    left = iter(range(3))

    def start(thread: Any) -> None:
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        thread._started.set()

    monkeypatch.setattr("threading.Thread.start", start)
    monkeypatch.setattr("threading.Thread.join", lambda thread: None)
    with pytest.raises(MachineError, match=r"only 3 of \d+ threads could be started .*raise the limit of processes"):
        environment._check_limits()


def read_scalars(folder: Path) -> Iterator[tuple[str, float, int]]:
    """Reads TensorBoard's files: each record has its length in 8 bytes, then 4, then an event, then 4."""
    from tensorboardX.proto import event_pb2

    for path in sorted(folder.iterdir()):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            event: Any = event_pb2.Event.FromString(data[start + 12 : start + 12 + length])  # pyright: ignore[reportAttributeAccessIssue]
            start += length + 16
            for value in event.summary.value:
                yield value.tag, value.simple_value, event.step


def test_curves_need_no_semaphores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")  # as /dev/shm is in some containers

    monkeypatch.setattr(_multiprocessing, "SemLock", refuse)
    log = MetricsLog(
        to_path(tmp_path / "metrics.jsonl"), name="n", trackers=TrackersConfig(), is_kept=lambda line: True
    )
    log.log(1, "train", 7, {"loss": 0.5, "grad_norm": 2.0})
    expected = [("train/round_1/loss", 0.5, 7), ("train/round_1/grad_norm", 2.0, 7)]
    assert [*read_scalars(tmp_path / "tensorboard")] == expected  # though the log is still open
    log.close()
    assert [line["loss"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [0.5]


def test_files_of_an_owner_without_a_name_are_read(tmp_path: Path) -> None:
    """As in a container, where the user that started it has a number only."""
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama"}')
    if os.getuid() != 0:
        pytest.skip("only root may give files away")
    os.chown(path, 12345, 12345)
    assert read_json_object(to_path(path)) == {"model_type": "llama"}
    assert modified_at(to_path(path)) == os.path.getmtime(path)
