"""One process at a time writes a folder: the kernel's lock, and the lease that stands in for it in a bucket."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import CommandHere

from tpt_jax.errors import UserError
from tpt_jax.io import lock
from tpt_jax.io.lock import LOCK, locked
from tpt_jax.io.paths import to_path

HOLDER = """
import sys, time
from tpt_jax.io import lock
from tpt_jax.io.paths import to_path
with lock.locked(to_path(sys.argv[1]), "folder", "give another"):
    print("held", flush=True)
    time.sleep(60)
"""
Holder = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture
def holder() -> Iterator[Holder]:
    """Starts a process that holds a lock, and waits until it does."""
    started: list[subprocess.Popen[str]] = []

    def start(file: Path) -> "subprocess.Popen[str]":
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def take(file: Path) -> None:
    with locked(to_path(file), "runs/x", "give another --run_dir"):
        pass


def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path: Path, holder: Holder) -> None:
    file = tmp_path / "run" / LOCK
    process = holder(file)
    with pytest.raises(UserError, match=rf"^runs/x: is in use by process {process.pid} on host \S+ since .* UTC; wait"):
        take(file)
    assert json.loads(file.read_text())["process"] == process.pid


def test_the_lock_of_a_dead_process_is_taken_over_at_once(tmp_path: Path, holder: Holder) -> None:
    file = tmp_path / "run" / LOCK
    process = holder(file)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert file.is_file()
    take(file)
    assert not file.exists()


def test_two_locks_in_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    with locked(to_path(tmp_path / LOCK), "", ""), pytest.raises(UserError, match="is in use by process"):
        take(tmp_path / LOCK)
    take(tmp_path / LOCK)


def test_a_folder_that_was_made_for_the_lock_goes_with_it_unless_something_came_into_it(tmp_path: Path) -> None:
    take(tmp_path / "new" / LOCK)
    assert not (tmp_path / "new").exists()
    with locked(to_path(tmp_path / "used" / LOCK), "", ""):
        (tmp_path / "used" / "config.yaml").touch()
    assert os.listdir(tmp_path / "used") == ["config.yaml"]
    (tmp_path / "there").mkdir()
    take(tmp_path / "there" / LOCK)
    assert os.listdir(tmp_path / "there") == []


def test_a_file_removed_by_its_last_holder_is_not_mistaken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, its holder removes it and a third process makes a new one."""
    file, real, calls = tmp_path / LOCK, fcntl.flock, []

    def flock(stream: int, operation: int) -> None:
        calls.append(stream)
        if len(calls) == 1:
            file.unlink()
            file.touch()
        real(stream, operation)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with locked(to_path(file), "", ""):
        assert len(calls) == 2
        with pytest.raises(UserError):
            take(file)


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that locks nothing, and a lease that expires in half a second."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "EXPIRY", 0.5)
    monkeypatch.setattr(lock, "SETTLE", 0.05)


@pytest.mark.usefixtures("short_lease")
def test_a_lease_that_is_renewed_is_held(tmp_path: Path) -> None:
    file = tmp_path / LOCK
    with locked(to_path(file), "", ""), pytest.raises(UserError, match="is in use by process"):
        take(file)
    assert not file.exists()


@pytest.mark.usefixtures("short_lease")
def test_a_lease_that_is_not_renewed_is_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / LOCK
    file.write_text(json.dumps({"host": "tpu-7", "process": 1, "since": "then", "lease": "a", "beat": 9}))
    started = time.monotonic()
    take(file)
    assert 0.5 < time.monotonic() - started < 5
    assert "held by process 1 on host tpu-7 since then; waiting up to" in capsys.readouterr().err


@pytest.mark.usefixtures("short_lease")
def test_of_several_that_see_no_lease_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, start, held = to_path(tmp_path / LOCK), threading.Barrier(4), []
    monkeypatch.setattr(lock, "SETTLE", 2.0)

    def compete(index: int) -> None:
        start.wait()
        with contextlib.suppress(UserError), locked(file, "", ""):
            held.append(index)
            time.sleep(4)

    threads = [threading.Thread(target=compete, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1


@pytest.mark.usefixtures("short_lease")
def test_a_process_whose_lease_was_taken_over_is_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    file = tmp_path / LOCK
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    other = {"host": "tpu-7", "process": 1, "since": "now", "lease": "b", "beat": 0}

    def hold() -> None:
        with locked(to_path(file), "", ""):
            file.write_text(json.dumps(other))
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        hold()
    assert "process 1 on host tpu-7 since now has taken over" in capsys.readouterr().err
    assert json.loads(file.read_text()) == other


@pytest.mark.parametrize("verb", ["run", "eval", "sweep", "sample", "sft"])
def test_every_command_that_resumes_holds_the_lock(
    verb: str, tmp_path: Path, holder: Holder, tpt_here: CommandHere
) -> None:
    config, prompts = tmp_path / "config.yaml", tmp_path / "prompts.jsonl"
    config.write_text("name: x\nmodel: {path: quickstart}\ntask: {name: gsm8k}\n")
    prompts.write_text('{"prompt": "1 + 1"}\n')
    folder = tmp_path / "folder"
    process = holder(tmp_path / "folder.lock" if verb in ("sample", "sft") else folder / LOCK)
    arguments = {
        "run": ("--config", config, "--run_dir", folder),
        "eval": ("--config", config, "--model", "quickstart", "--run_dir", folder),
        "sweep": ("--config", config, "--sweep_dir", folder),
        "sample": ("--model", "quickstart", "--prompts", prompts, "--output", folder),
        "sft": ("--config", config, "--model", "quickstart", "--traces", prompts, "--output", folder),
    }
    done = tpt_here(verb, *arguments[verb])
    assert done.returncode == 2
    assert done.stderr.startswith(f"tpt: {folder}: is in use by process {process.pid} on host ")
    assert len(done.stderr.splitlines()) == 1
