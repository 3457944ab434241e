"""The sandbox against programs that mean harm; whether they did any is seen from outside."""

import contextlib
import os
import platform
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tpt_jax.checks.code import sandbox
from tpt_jax.checks.code.sandbox import Limits, Outcome, run
from tpt_jax.checks.code.seccomp import CALLS, IOCTL, IOCTL_COMMANDS, MACHINES, make_filter
from tpt_jax.checks.pool import CheckerPool
from tpt_jax.checks.registry import require
from tpt_jax.errors import MachineError, UserError

SECONDS = 1.5
MARK = str(2**28 - os.getpid())  # bytes of memory, by which our processes are known among everybody's
LIMITS = Limits(seconds=SECONDS, memory=int(MARK), output=2**20)
SECRET = "the-witness's-own-words"


def why_not() -> str:
    """Why this machine has no sandbox; "" where it has one."""
    try:
        sandbox.require()
    except UserError as error:
        return str(error)
    return ""


needs_sandbox = pytest.mark.skipif(bool(why_not()), reason=why_not())
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code and numbers are x86_64's")

# A program says "harm" where it got what it wanted. {file}, {folder}, {home}, {shm}, {port}, {pid} and {parent} are
# things outside that it must not reach. A refused call is an exception: the kind is "error" where no other is named.
HOSTILE = {
    # The network.
    "socket": "import socket; socket.create_connection(('127.0.0.1', {port})); print('harm')",
    "udp": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', {port})); print('harm')",
    "url": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}', timeout=1); print('harm')",
    "dns": "import socket; print('harm', socket.gethostbyname('localhost'))",
    "raw_socket": "import ctypes; s = ctypes.CDLL(None).socket(2, 1, 0); assert s >= 0; print('harm')",
    "unix_socket": "import socket; socket.socket(1, 1).connect('{folder}/socket'); print('harm')",
    "bind": "import socket; s = socket.socket(); s.bind(('', 0)); s.listen(); print('harm')",
    # The host's files.
    "read_file": "print(open('{file}').read(), 'harm')",
    "read_home": "print(open('{home}/secret').read(), 'harm')",
    "read_shm": "print(open('{shm}').read(), 'harm')",
    "list_home": "import os; print(os.listdir('{home}'), 'harm')",
    "ssh": "import os; print(os.listdir(os.path.expanduser('~/.ssh')), 'harm')",
    "passwd": "print(open('/etc/passwd').read(), 'harm')",
    "shadow": "print(open('/etc/shadow').read(), 'harm')",
    "project": "print(open('{project}').read(), 'harm')",
    "site_packages": "import numpy; print('harm')",
    "walk": """
import os
for top, folders, files in os.walk('/'):
    for name in files:
        if name in ('secret', os.path.basename('{shm}')):
            print('harm', top, name, flush=True)
""",
    "symlink": "import os; os.symlink('{file}', '/dev/link'); print(open('/dev/link').read(), 'harm')",
    "dots": "print(open('/usr/lib/../../' + '{file}').read(), 'harm')",
    "old_root": "import os; print(os.listdir('/oldroot'), os.listdir('/newroot'), 'harm')",
    "chroot_out": "import os; os.chroot('/dev'); print('harm')",
    "handle": "import ctypes; assert ctypes.CDLL(None).open_by_handle_at(0, 0, 0) >= 0; print('harm')",
    # Other processes, and what they know.
    "environ_of_1": "print(open('/proc/1/environ').read(), 'harm')",
    "own_memory": "open('/proc/self/mem', 'r+b'); print('harm')",
    "other_root": "import glob; names = glob.glob('/proc/*/root/*'); assert names; print('harm', names)",
    "descriptors": "import os; print('harm', os.listdir('/proc/self/fd'))",
    "environment": "import os; print(os.environ); assert 'WITNESS' in os.environ; print('harm')",
    "processes": "import os; names = [n for n in os.listdir('/proc') if n.isdigit()]; print('harm')",
    "kill_all": "import os; os.kill(-1, 9); print('harm')",
    "kill_parent": "import os; os.kill(os.getppid(), 9); print('harm')",
    "kill_victim": "import os; os.kill({pid}, 9); print('harm')",
    "kill_checker": "import os; os.kill({parent}, 9); print('harm')",
    "ptrace": "import ctypes; assert ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0; print('harm')",
    "signal_thread": "import ctypes; assert ctypes.CDLL(None).syscall(234, 1, 1, 9) == 0; import time; time.sleep(9)",
    "priority": "import os; os.setpriority(0, {pid}, 19); print('harm')",
    # Writing.
    "write_file": "open('{file}', 'w').write('harm'); print('harm')",
    "write_folder": "open('{folder}/new', 'w').write('harm'); print('harm')",
    "write_usr": "open('/usr/lib/harm', 'w'); print('harm')",
    "write_root": "open('/harm', 'w'); print('harm')",
    "write_etc": "open('/etc/harm', 'w'); print('harm')",
    "write_tmp": "import tempfile; tempfile.TemporaryFile(); print('harm')",
    "write_shm": "open('/dev/shm/harm', 'w'); print('harm')",
    "write_dev": "open('/dev/harm', 'w'); print('harm')",
    "write_library": "import os; open(os.__file__, 'a'); print('harm')",
    "many_files": "import os; [os.mkdir(f'/dev/{{n}}') for n in range(10**6)]; print('harm')",
    "device": "import os; os.mknod('/dev/sda', 0o60600, os.makedev(8, 0)); print('harm')",
    "chmod": "import os; os.chmod('/dev/null', 0); print('harm')",
    "huge_stdin": "import os; sum(os.write(0, b'x' * 2**20) for _ in range(9)) > 2**20 and print('harm')",
    "sparse": "import os; os.ftruncate(1, 2**40); print('harm')",
    # Processes and threads.
    "fork_bomb": "import os\nwhile True: os.fork()\n",
    "subprocess": "import subprocess; subprocess.run(['/bin/sh', '-c', 'echo harm'])\n",
    "system": "import os; os.system('echo harm') == 0 or 1 / 0",
    "multiprocessing": "from multiprocessing import *; get_context('fork').Process(None, print, '', 'harm').start()",
    "spawn": "import os; os.posix_spawn('/bin/echo', ['echo', 'harm'], {{}}); print('harm')",
    "daemon": "import os\nif os.fork() == 0:\n    os.setsid()\n    os.fork()\n    while True: pass\n",
    "thread_bomb": "import _thread, time\nwhile True: _thread.start_new_thread(time.sleep, (9,))\n",
    "exec_shell": "import os; os.execv('/bin/sh', ['sh', '-c', 'echo harm'])",
    "exec_again": """
import os, sys
os.execv(sys.executable, [sys.executable, '-S', '-c', 'import os; os.fork(); print("harm")'])
""",
    "exec_setuid": "import os; os.execv('/usr/bin/su', ['su']); print('harm')",
    "become_root": "import os; os.setuid(0); print('harm')",
    # What a program must not take.
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(1000)",
    "sleep_deaf": "import signal, time\nfor n in (1, 2, 3, 15, 24): signal.signal(n, signal.SIG_IGN)\ntime.sleep(1000)",
    "loop_deaf": "import signal\nsignal.signal(24, signal.SIG_IGN)\nwhile True: pass",
    "power": "9**9**9",
    "regex": "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
    "stdin": "import sys\nwhile True: sys.stdin.read()",
    "list": "x = []\nwhile True: x.append(bytes(10**7))",
    "text": "x = 'x' * 2**40",
    "mmap": "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 2**26))",
    "shared_memory": "from multiprocessing.shared_memory import *; SharedMemory(None, True, 2**20); print('harm')",
    "flood": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "print_flood": "while True: print('x' * 9999)",
    "error_flood": "import os\nwhile True: os.write(2, b'x' * 65536)",
    "raise_limits": "import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1)); print('harm')",
    "close_all": "import os, time; os.closerange(0, 100); time.sleep(1000)",
    "recursion": "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "c_recursion": "x = ()\nfor _ in range(10**6): x = (x,)\nimport sys; sys.setrecursionlimit(10**9); hash(x)",
    "crash": "import ctypes; ctypes.string_at(0)",
    "abort": "import os; os.abort()",
    "exit": "import os; os._exit(3)",
    "raise": "raise ValueError",
    # The terminal.
    "type_for_us": "import fcntl; fcntl.ioctl(0, 0x5412, b'x'); print('harm')",
    "terminal": "open('/dev/tty', 'w').write('harm'); print('harm')",
}
TIME, MEMORY = ("time limit",), ("memory limit", "killed")
KINDS = {
    **dict.fromkeys(("loop", "sleep", "sleep_deaf", "loop_deaf", "power", "regex", "close_all", "error_flood"), TIME),
    **dict.fromkeys(("stdin", "signal_thread"), TIME),
    "list": (*MEMORY, *TIME),  # on a busy machine its time may end first
    "text": MEMORY,
    "mmap": ("error",),  # Python calls it an OSError
    **dict.fromkeys(("flood", "print_flood"), ("output limit",)),
    **dict.fromkeys(("crash", "abort"), ("killed",)),
    "c_recursion": ("killed", *TIME),
    "recursion": ("error", "killed", "memory limit", "time limit"),  # Python 3.11 needs no C stack for it, others do
    **dict.fromkeys(("walk",), ("done", "time limit")),
}


@dataclass(frozen=True)
class World:
    """What the programs must not reach, and how they ended."""

    outcomes: dict[str, Outcome]
    connections: int
    files: dict[str, str]
    victim_lives: bool
    survivors: list[str]


@contextlib.contextmanager
def witnesses(folder: Path) -> Iterator[tuple[dict[str, object], list[Path], socket.socket]]:
    """Files, a port and a process, and what programs know them by."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.home(), prefix=".witness")))
        shm = stack.enter_context(tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="secret"))
        paths = [folder / "secret", home / "secret", Path(shm.name)]
        for path in paths:
            path.write_text(SECRET)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(f"{folder}/socket")
        local.listen()
        victim = stack.enter_context(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        known = {
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
            yield known, paths, listener
        finally:
            victim.kill()


def our_processes(mark: str) -> list[str]:
    """The command lines of the processes, anywhere on the machine, that were started with a limit of so many bytes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if mark.encode() in words:
                    found.append(f"{entry.name} {words[0].decode()}")
    return found


def survivors(mark: str) -> list[str]:
    """Those that are still there after two seconds."""
    for _ in range(40):
        if not our_processes(mark):
            return []
        time.sleep(0.05)
    return our_processes(mark)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """All of the hostile programs have run, several at a time."""
    folder = tmp_path_factory.mktemp("outside")
    with (
        pytest.MonkeyPatch.context() as patch,
        witnesses(folder) as (known, paths, listener),
        ThreadPoolExecutor(6) as threads,
    ):
        patch.setenv("WITNESS", SECRET)
        before = {str(path.parent): sorted(os.listdir(path.parent)) for path in paths[:2]}
        programs = [program.format(**known) for program in HOSTILE.values()]
        outcomes = dict(zip(HOSTILE, threads.map(lambda program: run(program, limits=LIMITS), programs), strict=True))
        listener.setblocking(False)
        connections = 0
        with contextlib.suppress(BlockingIOError):
            listener.accept()[0].close()
            connections += 1
        assert {str(path.parent): sorted(os.listdir(path.parent)) for path in paths[:2]} == before
        files = {str(path): path.read_text() for path in paths}
        victim_lives = Path(f"/proc/{known['pid']}/stat").read_text().split()[2] == "S"
        yield World(outcomes, connections, files, victim_lives, survivors(MARK))


@needs_sandbox
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_harmless_and_named(world: World, name: str) -> None:
    outcome = world.outcomes[name]
    assert "harm" not in outcome.stdout
    assert SECRET not in outcome.stdout
    assert outcome.kind in KINDS.get(name, ("error",))
    assert len(outcome.stdout) <= LIMITS.output


@needs_sandbox
def test_nothing_outside_has_changed(world: World) -> None:
    assert world.connections == 0
    assert set(world.files.values()) == {SECRET}
    assert world.victim_lives
    assert world.survivors == []
    assert not list(Path("/dev/shm").glob("harm*"))


@needs_sandbox
def test_the_witnesses_see_harm_where_it_is_done(tmp_path: Path) -> None:
    """The same programs without the sandbox: or the tests above might be blind."""
    with witnesses(tmp_path) as (known, paths, listener):
        for name in ("socket", "read_home", "write_file", "kill_victim"):
            assert "harm" in run(HOSTILE[name].format(**known), limits=LIMITS, sandboxed=False).stdout
        listener.settimeout(1)
        listener.accept()[0].close()
        assert paths[0].read_text() == "harm"


# Calls that Python has no function for, by their numbers on x86_64.
FORBIDDEN = {
    **{"clone": 56, "fork": 57, "vfork": 58, "clone3": 435, "execveat": 322, "unshare": 272, "setns": 308},
    **{"mount": 165, "umount2": 166, "pivot_root": 155, "fsopen": 430, "move_mount": 429, "open_tree": 428},
    **{"mount_setattr": 442, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312},
    **{"pidfd_open": 434, "pidfd_getfd": 438, "kill": 62, "tkill": 200, "memfd_create": 319, "memfd_secret": 447},
    **{"io_uring_setup": 425, "io_uring_enter": 426, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323},
    **{"keyctl": 250, "add_key": 248, "request_key": 249, "socket": 41, "socketpair": 53, "connect": 42, "sendmsg": 46},
    **{"shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240, "init_module": 175, "finit_module": 313},
    **{"kexec_load": 246, "reboot": 169, "open_by_handle_at": 304, "fanotify_init": 300, "inotify_init1": 294},
    **{"prctl": 157, "seccomp": 317, "personality": 135, "modify_ldt": 154, "iopl": 172, "chroot": 161},
    **{"setuid": 105, "capset": 126, "sethostname": 170, "settimeofday": 164, "swapon": 167, "openat2": 437},
    **{"mkdir": 83, "mknod": 133, "unlink": 87, "rename": 82, "symlink": 88, "link": 86, "truncate": 76},
    "x32_getpid": 0x40000000 + 39,
}


@needs_sandbox
@needs_x86
def test_forbidden_calls_are_refused_by_number() -> None:
    program = f"""
import ctypes
call = ctypes.CDLL(None, use_errno=True).syscall
print([name for name, number in {FORBIDDEN}.items() if (call(number, 0, 0, 0, 0, 0), ctypes.get_errno()) != (-1, 38)])
print(call(39))
"""
    assert run(program) == Outcome("done", "[]\n1\n")


@needs_sandbox
@needs_x86
def test_the_other_machines_calls_kill() -> None:
    """getpid by the 32-bit table: mov eax, 20; int 0x80; ret. The filter would read its number as another call's."""
    program = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write({code})
print("before", flush=True)
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print("after")
"""
    harmless = b"\xb8\x14\x00\x00\x00\xc3"  # the same without the call
    assert run(program.format(code=harmless)) == Outcome("done", "before\nafter\n")
    assert run(program.format(code=b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")) == Outcome("killed", "before\n")


@needs_sandbox
def test_what_programs_need_is_there() -> None:
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
def test_the_order_of_a_set_is_the_same_in_every_process() -> None:
    program = "print({str(n) for n in range(50)})"
    assert run(program).stdout == run(program).stdout == run(program, sandboxed=False).stdout


def test_limits_hold_without_the_sandbox_too() -> None:
    limits = Limits(seconds=0.5, output=1000)
    assert run("print(input())", "x", limits, sandboxed=False) == Outcome("done", "x\n")
    assert run("while True: pass", "", limits, sandboxed=False).kind == "time limit"
    assert run("x = 'x' * 2**40", "", limits, sandboxed=False).kind == "memory limit"
    assert run("while True: print(1)", "", limits, sandboxed=False).kind == "output limit"


@needs_sandbox
@pytest.mark.parametrize("sandboxed", [True, False])
def test_no_program_outlives_the_process_that_started_it(tmp_path: Path, sandboxed: bool) -> None:
    """Killed early and late, as a worker is whose time is up."""
    mark = str(int(MARK) - 2**22 - sandboxed)
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(1000)"
    starter = tmp_path / "starter.py"
    starter.write_text(
        "from tpt_jax.checks.code.sandbox import Limits, run\nprint('ready', flush=True)\n"
        f"run({program!r}, limits=Limits(1000, {mark}), sandboxed={sandboxed})\n"
    )
    for delay in (0.0, 0.003, 0.01, None):  # None: when the program itself is seen, and not bubblewrap alone
        with subprocess.Popen(
            [sys.executable, starter], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            while delay is None and all("bwrap" in process for process in our_processes(mark)):
                time.sleep(0.05)
            time.sleep(delay or 0.0)
            process.send_signal(signal.SIGKILL)
        assert survivors(mark) == []


# Where there is no sandbox.


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What was found out about the machine is forgotten, before and after."""
    cached = (sandbox.require, sandbox._bubblewrap)
    for function in cached:
        function.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for function in cached:
        function.cache_clear()


def test_a_missing_sandbox_is_refused_before_any_work(forgetful: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forgetful.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^.*apt-get install bubblewrap, or set prune\.run_code_without_sandbox.*$"):
        require("code")
    with pytest.raises(UserError, match="bubblewrap"):
        CheckerPool("code", 1, 5.0)
    require("code_without_sandbox")


def test_a_sandbox_that_does_not_work_is_refused(forgetful: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    forgetful.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
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
    with pytest.raises(MachineError, match="cannot be started"):
        run("print()")


@needs_sandbox
def test_what_bubblewrap_has_half_said_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = str(int(MARK) - 2**23)
    process = sandbox.Process("script", Limits(1000, int(mark)), sandboxed=True)
    with process:
        process.start("import time; time.sleep(1000)")
        monkeypatch.setattr(sandbox.os, "pread", lambda *_: b'{\n    "child-pid": 12')
    assert survivors(mark) == []


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell")
def test_a_sandbox_without_walls_is_refused(forgetful: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bwrap that runs the command as it is: files are there and walls are not."""
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != "--" ]; do shift; done\nshift\nexec "$@"\n')
    fake.chmod(0o755)
    forgetful.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="does not work here"):
        sandbox.require()


def test_other_systems_are_refused(forgetful: pytest.MonkeyPatch) -> None:
    forgetful.setattr(sandbox.platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match="this machine is riscv64"):
        sandbox.require()
    forgetful.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(UserError, match="only Linux has"):
        sandbox.require()


# The filter.


def decide(program: bytes, machine: int, number: int, argument: int = 0) -> int:
    """What the kernel would do: the few instructions of classic BPF that the filter has."""
    steps = list(struct.iter_unpack("=HBBI", program))
    loaded, place = 0, 0
    while True:
        code, jump, other, k = steps[place]
        place += 1
        if code == 0x20:
            loaded = {0: number, 4: machine, 24: argument & 0xFFFFFFFF}[k]
        elif code == 0x15:
            place += jump if loaded == k else other
        else:
            assert code == 0x06
            return k


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_lets_through_what_is_listed_and_nothing_else(machine: str) -> None:
    audit, column = MACHINES[machine]
    allow, refuse, kill = 0x7FFF0000, 0x00050026, 0x80000000
    program = make_filter(machine)
    listed = {numbers[column] for numbers in CALLS.values()}
    for number in (*range(1000), *range(0x40000000, 0x40000400), 0xFFFFFFFF):
        assert decide(program, audit, number) == (allow if number in listed else refuse)
        assert decide(program, 0x40000003, number) == kill
    for command in (*IOCTL_COMMANDS, 0x5412, 0x541C, 0):
        expected = allow if command in (0x5401, 0x5451) else refuse
        assert decide(program, audit, IOCTL[column], command) == expected


HEADERS = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h")


@pytest.mark.skipif(not all(map(os.path.isfile, HEADERS)), reason="the kernel's headers are not installed")
def test_the_numbers_are_the_kernels() -> None:
    define = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b")
    tables = [{name: int(number) for name, number in define.findall(Path(path).read_text())} for path in HEADERS]
    tables[1]["newfstatat"] = tables[1]["fstatat"]
    for name, numbers in {**CALLS, "ioctl": IOCTL}.items():
        assert numbers[0] == tables[0][name]
        assert numbers[1] == tables[1].get(name)
