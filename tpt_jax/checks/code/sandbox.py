"""The sandbox: one Python program written by a model runs where it can do no harm, and its outcome is told by kind.

Around the program stand, each enough for most of what a program could try:

  bubblewrap  namespaces of its own: no network, no other process, no host name; as file system only the interpreter,
              its standard library and the system's C libraries, all read-only, and /dev/null, zero and urandom. There
              is no /proc and nothing that can be written: a verdict must not depend on which bubblewrap a host has, and
              older ones cannot bound a scratch folder. All capabilities dropped, no environment, no terminal.
  seccomp     the system calls on seccomp.py's list alone: one process with one thread, for limits are kept by process.
  rlimits     processor time, memory, output, open files (harness.py).
  wall time   kept here, by killing; whatever kills us kills bubblewrap, and bubblewrap's end is the program's end.

Without the sandbox the rlimits and the wall time are left, and a program runs with the rights of whoever runs us.

What remains: a hole in the kernel behind a call on the list; that the C libraries' folders can be read; and, where we
are killed in the milliseconds in which bubblewrap makes its namespaces, a bubblewrap that waits for ever, with no
program in it.
"""

import contextlib
import dataclasses
import functools
import math
import os
import platform
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from tpt_jax.checks.code import harness
from tpt_jax.checks.code.seccomp import MACHINES, make_filter
from tpt_jax.errors import MachineError, UserError

Kind = Literal["done", "error", "time limit", "memory limit", "output limit", "killed"]
Part = Literal["script", "program", "tests"]

# Of a machine that is busy with other things. While traces are judged, prune.seconds_per_trace ends a start before.
SECONDS_TO_START = 30.0
SECONDS_TO_END = 2.0

# No site-packages, no path of the user's, no bytecode written, and one order of sets for all: verdicts are repeatable.
PYTHON = ("-s", "-S", "-P", "-B", "-X", "utf8")
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

_CHILD = re.compile(rb'"child-pid": (\d+)\s*[,}]')  # in what bubblewrap says of itself, of which there may be half yet

INSTEAD = (
    "or set prune.run_code_without_sandbox (--run_code_without_sandbox): a model's programs then run with your rights"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a program may take.

    Attributes:
      seconds: of one run from its first line to its end, whether it computes or sleeps. Less than
        prune.seconds_per_trace, so that a slow program costs its own process and not the checker's. Where a question
        has several inputs, each is a run of so many seconds, and all of them together end with
        prune.seconds_per_trace, as "time limit" too.
      memory: bytes of address space.
      output: bytes on standard output.
    """

    seconds: float = 4.0
    memory: int = 2**30
    output: int = 2**22


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended, and what it wrote on standard output; bytes that are not UTF-8 are replaced.

    Attributes:
      kind: "done" where it ended by itself with status 0; "error" with another status, or an exception.
    """

    kind: Kind
    stdout: str


def run(program: str, stdin: str = "", limits: Limits = Limits(), *, sandboxed: bool = True) -> Outcome:
    """Runs a program as `python program.py` would.

    Both streams are files: nothing has to be read while the program runs, none of it is more than the limit, and no
    process can keep it open.
    """
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as output:
        source.write(stdin.encode("utf-8", "surrogatepass"))
        source.seek(0)
        with Process("script", limits, sandboxed=sandboxed, stdin=source, stdout=output) as process:
            process.start(program)
            kind = process.wait(time.monotonic() + limits.seconds)
        output.seek(0)
        written = output.read(limits.output)
    if len(written) == limits.output and kind != "time limit":
        kind = "output limit"
    return Outcome(kind, written.decode("utf-8", "replace"))


class Process:
    """A Python process that plays one part of harness.py; it and all that it started end with the `with` block."""

    def __init__(
        self,
        part: Part,
        limits: Limits,
        *,
        sandboxed: bool,
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        stdout: IO[bytes] | int = subprocess.DEVNULL,
        channel: socket.socket | None = None,
    ):
        """Starts the process; the program starts when it is given.

        Args:
          channel: to the process that plays the other part, where there are two.

        Raises:
          MachineError: it cannot be started.
        """
        self.status: int | None = None
        self._control, theirs = socket.socketpair()
        passed = [theirs.fileno(), *([channel.fileno()] if channel else [])]
        numbers = (math.ceil(limits.seconds), limits.memory, limits.output, passed[0], passed[-1], not sandboxed)
        command = [_interpreter(), *PYTHON, "-c", _harness(), part, *(str(int(number)) for number in numbers)]
        # A file: of writing to a pipe that nobody reads any more bubblewrap would die, and leave its child waiting.
        self._info = tempfile.TemporaryFile()  # noqa: SIM115  # until we end
        with theirs, contextlib.ExitStack() as stack:
            if sandboxed:
                filter_end = stack.enter_context(_filter())
                passed += [filter_end.fileno(), self._info.fileno()]
                options = ["--seccomp", str(filter_end.fileno()), "--info-fd", str(self._info.fileno())]
                command = [*_bubblewrap(), *options, "--", *command]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=subprocess.DEVNULL,
                    env=ENVIRONMENT,
                    cwd="/",
                    pass_fds=passed,
                    start_new_session=True,
                )
            except OSError as error:
                self._control.close()
                self._info.close()
                raise MachineError(f"a process for a model's program cannot be started ({error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._control.close()
        try:
            with self._info:
                if self._process.poll() is None:
                    self._end_inside()
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # all of its processes have ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _end_inside(self) -> None:
        """Ends the program that bubblewrap waits for, and bubblewrap by that.

        If bubblewrap were killed first, the dead program would be left to the machine's init, and a container may have
        none that reaps.
        """
        child = _CHILD.search(os.pread(self._info.fileno(), 2**12, 0))
        if child:  # there is a bubblewrap, and it has started
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child[1]), signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(SECONDS_TO_END)

    def start(self, given: Any) -> None:
        """Gives the process what to run, once it is there and bound to end when we do.

        Raises:
          MachineError: it does not start.
        """
        self._control.settimeout(SECONDS_TO_START)
        try:
            if self._control.recv(1) != b"+":
                raise MachineError("the process for a model's program did not start")
            message = harness.dump(given, _refuse)
            self._control.sendall(len(message).to_bytes(8, "big") + message)
        except OSError as error:
            raise MachineError("the process for a model's program did not start") from error

    def wait(self, deadline: float) -> Kind:
        """How it ended, by time.monotonic() at the latest; the status is in `status`, if it ended in time."""
        if sys.platform == "linux":  # elsewhere Popen.wait polls, and a process's end is noticed late
            descriptor = os.pidfd_open(self._process.pid)
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(max(deadline - time.monotonic(), 0) * 1000)
            os.close(descriptor)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.status = self._process.wait(max(deadline - time.monotonic(), 0))
        return _kind(self.status)


def _kind(status: int | None) -> Kind:
    if status is None or status in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        return "time limit"
    if status == harness.OUT_OF_MEMORY:
        return "memory limit"
    if status < 0 or status > 128:
        return "killed"
    return "error" if status else "done"


def _refuse(value: Any) -> int:
    raise TypeError(f"a process cannot be given anything of type {type(value).__name__}")


@functools.cache
def _harness() -> str:
    return Path(harness.__file__).read_text(encoding="utf-8")


@functools.cache
def _interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def _bubblewrap() -> tuple[str, ...]:
    """The command, up to the filter; for bubblewrap 0.5 and newer."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}  # those of a virtual environment are not ours
    standard = {Path(sysconfig.get_path(name, vars=base)).resolve() for name in ("stdlib", "platstdlib")}
    readable = dict.fromkeys([*(str(path.parent) for path in sorted(standard)), _interpreter()])
    arguments = ["--unshare-all", "--unshare-user", "--hostname", "sandbox", "--die-with-parent", "--new-session"]
    arguments.append("--as-pid-1")  # the program is the only process: bubblewrap has nobody to wait for but it
    arguments += ["--clearenv", "--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--chdir", "/"]
    for name, value in ENVIRONMENT.items():
        arguments += ["--setenv", name, value]
    for folder in LIBRARIES:
        if os.path.islink(folder):
            arguments += ["--symlink", os.readlink(folder), folder]
        else:
            arguments += ["--ro-bind-try", folder, folder]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for path in readable:
        arguments += ["--ro-bind", path, path]
    hidden = [path / "site-packages" for path in standard if (path / "site-packages").is_dir()]
    for path in hidden:
        arguments += ["--tmpfs", str(path), "--remount-ro", str(path)]
    for device in DEVICES:
        arguments += ["--dev-bind", device, device]
    return (shutil.which("bwrap") or "bwrap", *arguments, "--remount-ro", "/")


@contextlib.contextmanager
def _filter() -> Iterator[IO[bytes]]:
    """What the filter can be read from; each process reads its own to the end."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file:
        with os.fdopen(writer, "wb") as whole:
            whole.write(make_filter(platform.machine()))
        yield file


# Says whether the walls stand, from inside: no other process, no file of the host's, nothing to write on.
PROBE = """
import os
def refused(act, *arguments):
    try:
        act(*arguments)
    except OSError:
        return True
walls = [
    refused(os.fork),
    refused(os.kill, os.getpid(), 0),
    refused(open, "/etc/passwd"),
    refused(open, "/proc/self/status"),
    refused(open, "/file", "w"),
    refused(open, "/dev/file", "w"),
    not os.environ.keys() - {"PYTHONHASHSEED", "PWD", "LC_CTYPE"},
]
print("confined" if all(walls) else walls)
"""


@functools.cache
def require() -> None:
    """Makes sure, by running something in it, that the sandbox works on this machine; once a process.

    Raises:
      UserError: it does not; says what to install or to set.
    """
    if sys.platform != "linux":
        raise UserError(f"programs that a model wrote run in a sandbox that only Linux has; use Linux, {INSTEAD}")
    if platform.machine() not in MACHINES:
        raise UserError(
            f"programs that a model wrote run in a sandbox for {' and '.join(MACHINES)}, and this machine is "
            f"{platform.machine()}; use another, {INSTEAD}"
        )
    if shutil.which("bwrap") is None:
        raise UserError(
            "programs that a model wrote run in a sandbox made by bwrap, which is not installed; run apt-get install "
            f"bubblewrap, {INSTEAD}"
        )
    try:
        outcome = run(PROBE)
        said = outcome.stdout.strip() or outcome.kind
    except MachineError:
        said = _complaint()
    if said != "confined":
        raise UserError(
            f"programs that a model wrote run in a sandbox, which does not work here ({said}); let users make user "
            "namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu, docker run --security-opt "
            f"seccomp=unconfined --security-opt apparmor=unconfined in a container), {INSTEAD}"
        )


def _complaint() -> str:
    """What bubblewrap says when it cannot start."""
    with _filter() as filter_end:
        try:
            result = subprocess.run(
                [*_bubblewrap(), "--seccomp", str(filter_end.fileno()), "--", _interpreter(), *PYTHON, "-c", ""],
                env=ENVIRONMENT,
                pass_fds=[filter_end.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS_TO_START,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return (result.stderr.strip() or f"status {result.returncode}").splitlines()[-1]
