"""The sandbox against hostile programs. Damage is checked from outside, not reported by the programs."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from code_checker import sandbox_error
from hostile_programs import EXPECTED_KINDS, HOSTILE

from tpt_jax.checks.code import sandbox
from tpt_jax.checks.code.sandbox import Limits, Outcome, run
from tpt_jax.checks.pool import CheckerPool
from tpt_jax.checks.registry import require
from tpt_jax.errors import MachineError, UserError

MEMORY_MARK = str(2**28 - os.getpid())  # a unique memory limit: finds our processes by their command lines
LIMITS = Limits(seconds=1.5, memory=int(MEMORY_MARK), output=2**20)
SECRET = "contents of a secret file"

needs_sandbox = pytest.mark.skipif(bool(sandbox_error()), reason=sandbox_error())


@dataclass(frozen=True)
class Aftermath:
    """How the hostile programs ended, and the state of their targets afterwards."""

    outcomes: dict[str, Outcome]
    num_connections: int
    files: dict[str, str]
    victim_is_alive: bool
    survivors: list[str]


@contextlib.contextmanager
def make_targets(folder: Path) -> Iterator[tuple[dict[str, object], list[Path], socket.socket]]:
    """Creates files, sockets and a process to attack; yields the programs' placeholders, the files and the listener."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.home(), prefix=".target")))
        shm = stack.enter_context(tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="secret"))
        paths = [folder / "secret", home / "secret", Path(shm.name)]
        for path in paths:
            path.write_text(SECRET)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix_socket = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix_socket.bind(f"{folder}/socket")
        unix_socket.listen()
        victim = stack.enter_context(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        placeholders = {
            "file": paths[0],
            "folder": folder,
            "home": home,
            "shm": shm.name,
            "port": listener.getsockname()[1],
            "pid": victim.pid,
            "parent": os.getpid(),
            "project": Path(__file__),
        }
        try:
            yield placeholders, paths, listener
        finally:
            victim.kill()


def find_processes(mark: str) -> list[str]:
    """Lists all processes on the machine that were started with this memory limit."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                if mark.encode() in arguments:
                    found.append(f"{entry.name} {arguments[0].decode()}")
    return found


def find_survivors(mark: str) -> list[str]:
    """Lists the processes that have not exited within two seconds."""
    for _ in range(40):
        if not find_processes(mark):
            return []
        time.sleep(0.05)
    return find_processes(mark)


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    """Runs all hostile programs, six at a time."""
    folder = tmp_path_factory.mktemp("outside")
    with (
        pytest.MonkeyPatch.context() as patch,
        make_targets(folder) as (placeholders, paths, listener),
        ThreadPoolExecutor(6) as threads,
    ):
        patch.setenv("WITNESS", SECRET)
        before = {str(path.parent): sorted(os.listdir(path.parent)) for path in paths[:2]}
        programs = [program.format(**placeholders) for program in HOSTILE.values()]
        outcomes = dict(zip(HOSTILE, threads.map(lambda program: run(program, limits=LIMITS), programs), strict=True))
        listener.setblocking(False)
        num_connections = 0
        with contextlib.suppress(BlockingIOError):
            listener.accept()[0].close()
            num_connections += 1
        assert {str(path.parent): sorted(os.listdir(path.parent)) for path in paths[:2]} == before
        files = {str(path): path.read_text() for path in paths}
        victim_is_alive = Path(f"/proc/{placeholders['pid']}/stat").read_text().split()[2] == "S"
        yield Aftermath(outcomes, num_connections, files, victim_is_alive, find_survivors(MEMORY_MARK))


@needs_sandbox
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program_does_no_harm(aftermath: Aftermath, name: str) -> None:
    outcome = aftermath.outcomes[name]
    assert "harm" not in outcome.stdout
    assert SECRET not in outcome.stdout
    assert outcome.kind in EXPECTED_KINDS.get(name, ("error",))
    assert len(outcome.stdout) <= LIMITS.output


@needs_sandbox
def test_targets_are_untouched(aftermath: Aftermath) -> None:
    assert aftermath.num_connections == 0
    assert set(aftermath.files.values()) == {SECRET}
    assert aftermath.victim_is_alive
    assert aftermath.survivors == []
    assert not list(Path("/dev/shm").glob("harm*"))


@needs_sandbox
def test_harm_is_visible_without_the_sandbox(tmp_path: Path) -> None:
    """The attacks work without the sandbox; otherwise the tests above would prove nothing."""
    with make_targets(tmp_path) as (placeholders, paths, listener):
        for name in ("socket", "read_home", "write_file", "kill_victim"):
            assert "harm" in run(HOSTILE[name].format(**placeholders), limits=LIMITS, sandboxed=False).stdout
        listener.settimeout(1)
        listener.accept()[0].close()
        assert paths[0].read_text() == "harm"


@needs_sandbox
def test_ordinary_programs_find_what_they_need() -> None:
    program = """
import array, bisect, collections, copy, ctypes, datetime, decimal, fractions, functools, hashlib, heapq, itertools
import json, math, operator, os, random, re, statistics, string, struct, sys, time, typing
time.sleep(0.01)
print(input(), sys.stdin.read().split(), open(os.devnull).read(), hash("x") == hash("x"), len(os.urandom(3)))
print(sorted(os.listdir("/")), sorted(os.listdir("/dev")), os.getuid(), os.getcwd(), os.uname().nodename)
print("\\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), flush=True)
sys.stdout.buffer.write(b"\\xff")
"""
    outcome = run(program, stdin="first\n1 2\n3")
    assert outcome.kind == "done"
    lines = outcome.stdout.splitlines()
    assert lines[0] == "first ['1', '2', '3']  True 3"
    assert "'proc'" not in lines[1]
    assert "['null', 'urandom', 'zero'] 65534 / sandbox" in lines[1]
    assert outcome.stdout.endswith("ÿ\n�")


@needs_sandbox
def test_set_order_is_the_same_in_every_process() -> None:
    program = "print({str(n) for n in range(50)})"
    assert run(program).stdout == run(program).stdout == run(program, sandboxed=False).stdout


def test_limits_hold_without_the_sandbox() -> None:
    limits = Limits(seconds=0.5, output=1000)
    assert run("print(input())", "x", limits, sandboxed=False) == Outcome("done", "x\n")
    assert run("while True: pass", "", limits, sandboxed=False).kind == "time limit"
    assert run("x = 'x' * 2**40", "", limits, sandboxed=False).kind == "memory limit"
    assert run("while True: print(1)", "", limits, sandboxed=False).kind == "output limit"


@needs_sandbox
@pytest.mark.parametrize("sandboxed", [True, False])
def test_program_dies_with_the_process_that_started_it(tmp_path: Path, sandboxed: bool) -> None:
    """The starter is killed early and late, like a worker that exceeds its time limit."""
    mark = str(int(MEMORY_MARK) - 2**22 - sandboxed)
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(1000)"
    starter = tmp_path / "starter.py"
    starter.write_text(
        "from tpt_jax.checks.code.sandbox import Limits, run\nprint('ready', flush=True)\n"
        f"run({program!r}, limits=Limits(1000, {mark}), sandboxed={sandboxed})\n"
    )
    for delay in (0.0, 0.003, 0.01, None):  # None: once the program itself runs, not only bubblewrap
        with subprocess.Popen(
            [sys.executable, starter], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            while delay is None and all("bwrap" in process for process in find_processes(mark)):
                time.sleep(0.05)
            time.sleep(delay or 0.0)
            process.send_signal(signal.SIGKILL)
        assert find_survivors(mark) == []


@needs_sandbox
def test_incomplete_output_of_bubblewrap_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = str(int(MEMORY_MARK) - 2**23)
    process = sandbox.Process("script", Limits(1000, int(mark)), sandboxed=True)
    with process:
        process.start("import time; time.sleep(1000)")
        monkeypatch.setattr(sandbox.os, "pread", lambda *_: b'{\n    "child-pid": 12')
    assert find_survivors(mark) == []


# Machines without a working sandbox.


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Clears what the sandbox has cached about the machine, before and after the test."""
    cached_functions = (sandbox.require, sandbox._bubblewrap_command)
    for function in cached_functions:
        function.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for function in cached_functions:
        function.cache_clear()


def test_missing_bubblewrap_is_refused_before_any_work(uncached: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uncached.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^.*apt-get install bubblewrap, or set prune\.run_code_without_sandbox.*$"):
        require("code")
    with pytest.raises(UserError, match="bubblewrap"):
        CheckerPool("code", 1, 5.0)
    require("code_without_sandbox")


def test_failing_bubblewrap_is_refused(uncached: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    uncached.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="No permissions to create new namespace") as caught:
        sandbox.require()
    assert "\n" not in str(caught.value)
    with pytest.raises(MachineError, match="did not start"):
        run("print()")
    fake.write_bytes(b"\x7fELF of another machine")
    sandbox.require.cache_clear()
    with pytest.raises(UserError, match="Exec format error"):
        sandbox.require()
    fake.unlink()
    fake.mkdir()
    with pytest.raises(MachineError, match="cannot start a process"):
        run("print()")


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell")
def test_bubblewrap_that_does_not_isolate_is_refused(uncached: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fake bwrap runs the command without any isolation, so the probe finds host files."""
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != "--" ]; do shift; done\nshift\nexec "$@"\n')
    fake.chmod(0o755)
    uncached.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="does not work here"):
        sandbox.require()


def test_unsupported_machines_are_refused(uncached: pytest.MonkeyPatch) -> None:
    uncached.setattr(sandbox.platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match="this machine is riscv64"):
        sandbox.require()
    uncached.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(UserError, match="needs Linux, and this system is darwin"):
        sandbox.require()
