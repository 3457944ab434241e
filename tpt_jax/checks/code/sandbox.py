"""The sandbox: runs one Python program written by a model, without access to the host, and reports how it ended.

Four layers contain the program, each sufficient against most attacks:

  bubblewrap  Separate namespaces: no network, no other processes, no host name. The file system holds only the
              interpreter, its standard library and the system's C libraries, all read-only, and /dev/null, zero and
              urandom. There is no /proc and nothing is writable: older versions of bubblewrap cannot limit the size of
              a scratch folder, and a verdict must not depend on the host's version. No capabilities, no terminal, and
              no environment variables but our own.
  seccomp     Only the system calls listed in seccomp.py. The program stays a single process with a single thread, as
              rlimits apply to each process separately.
  rlimits     CPU time, memory, output, open files (harness.py).
  wall time   Enforced here by killing. If our process is killed, bubblewrap dies with it, and the program with
              bubblewrap.

Without the sandbox only the rlimits and the wall time limit remain, and a program has all rights of the current user.

Known gaps: kernel bugs behind a listed call; the C library folders are readable; and if our process is killed in the
few milliseconds while bubblewrap sets up its namespaces, a bubblewrap process without a program may wait forever.
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
Role = Literal["script", "program", "tests"]

SECONDS_TO_START = 30.0  # for a busy machine; while judging traces, the shorter prune.seconds_per_trace applies first
SECONDS_TO_EXIT = 2.0

PYTHON_OPTIONS = ("-s", "-S", "-P", "-B", "-X", "utf8")  # no site-packages, user paths or bytecode files
HASH_SEED = "PYTHONHASHSEED"  # fixed, so that sets have one order and verdicts are repeatable
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

_CHILD_PID = re.compile(rb'"child-pid": (\d+)\s*[,}]')  # in bubblewrap's --info-fd output, which may be incomplete

RUN_UNSANDBOXED = (
    "or set prune.run_code_without_sandbox (--run_code_without_sandbox): a model's programs then run with your rights"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits of one program run.

    Attributes:
      seconds: wall time. Keep it below prune.seconds_per_trace, so that a slow program is killed rather than its
        checker worker. If a question has several inputs, the limit applies to each run, and prune.seconds_per_trace to
        their total; both give the reason "time limit".
      memory: bytes of address space.
      output: bytes on standard output.
    """

    seconds: float = 4.0
    memory: int = 2**30
    output: int = 2**22


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended and what it wrote.

    Attributes:
      kind: "done" for exit status 0; "error" for another exit status or an exception.
      stdout: standard output as text; bytes that are not UTF-8 are replaced.
    """

    kind: Kind
    stdout: str


def run(
    program: str, stdin: str = "", limits: Limits = Limits(), *, sandboxed: bool = True, hash_seed: int = 0
) -> Outcome:
    """Runs a program as `python program.py` would.

    Standard input and output are files: they need no reader while the program runs, cannot exceed the output limit, and
    cannot block us because some process holds them open.
    """
    with tempfile.TemporaryFile() as stdin_file, tempfile.TemporaryFile() as stdout_file:
        stdin_file.write(stdin.encode("utf-8", "surrogatepass"))
        stdin_file.seek(0)
        with Process(
            "script", limits, sandboxed=sandboxed, hash_seed=hash_seed, stdin=stdin_file, stdout=stdout_file
        ) as process:
            process.start(program)
            kind = process.wait(time.monotonic() + limits.seconds)
        stdout_file.seek(0)
        output = stdout_file.read(limits.output)
    if len(output) == limits.output and kind != "time limit":
        kind = "output limit"
    return Outcome(kind, output.decode("utf-8", "replace"))


class Process:
    """A Python process in one of harness.py's roles; leaving the `with` block kills it and everything it started."""

    def __init__(
        self,
        role: Role,
        limits: Limits,
        *,
        sandboxed: bool,
        hash_seed: int = 0,
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        stdout: IO[bytes] | int = subprocess.DEVNULL,
        channel: socket.socket | None = None,
    ):
        """Launches the process, which waits for `start`.

        Args:
          hash_seed: decides the order of sets of strings.
          channel: connects to the process in the other role, if there are two.

        Raises:
          MachineError: the process cannot be launched.
        """
        self.status: int | None = None
        self._control, child_control = socket.socketpair()
        control_fd = child_control.fileno()
        channel_fd = channel.fileno() if channel else control_fd
        descriptors = {control_fd, channel_fd}
        numbers = (math.ceil(limits.seconds), limits.memory, limits.output, control_fd, channel_fd, not sandboxed)
        arguments = [role, *(str(int(number)) for number in numbers)]
        command = [_interpreter(), *PYTHON_OPTIONS, "-c", _harness_source(), *arguments]
        # A file, not a pipe: bubblewrap would die writing to a pipe without a reader, and leave its child waiting.
        self._info = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __exit__
        with child_control, contextlib.ExitStack() as stack:
            if sandboxed:
                filter_file = stack.enter_context(_filter_pipe())
                descriptors |= {filter_file.fileno(), self._info.fileno()}
                options = ["--seccomp", str(filter_file.fileno()), "--info-fd", str(self._info.fileno())]
                options += ["--setenv", HASH_SEED, str(hash_seed)]
                command = [*_bubblewrap_command(), *options, "--", *command]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=subprocess.DEVNULL,
                    env={HASH_SEED: str(hash_seed)},
                    cwd="/",
                    pass_fds=sorted(descriptors),
                    start_new_session=True,
                )
            except OSError as error:
                self._control.close()
                self._info.close()
                raise MachineError(f"cannot start a process for a model's program ({error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._control.close()
        try:
            with self._info:
                if self._process.poll() is None:
                    self._kill_sandboxed_child()
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the whole group has exited
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _kill_sandboxed_child(self) -> None:
        """Kills the program bubblewrap waits for, so that bubblewrap reaps it and exits.

        Killing bubblewrap first would leave the dead program to the machine's init, and in a container that init may
        not reap.
        """
        child = _CHILD_PID.search(os.pread(self._info.fileno(), 2**12, 0))
        if child:  # bubblewrap is in use and has started the program
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child[1]), signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(SECONDS_TO_EXIT)

    def start(self, payload: Any) -> None:
        """Sends the process its program or tests, once it reports that it will die with us.

        Raises:
          MachineError: the process does not start.
        """
        self._control.settimeout(SECONDS_TO_START)
        try:
            if self._control.recv(1) != b"+":
                raise MachineError("the process for a model's program did not start")
            message = harness.dump(payload, _reject_object)
            self._control.sendall(len(message).to_bytes(8, "big") + message)
        except OSError as error:
            raise MachineError("the process for a model's program did not start") from error

    def wait(self, deadline: float) -> Kind:
        """Waits for the process to exit, until the deadline on time.monotonic()'s clock; sets `status` if it does."""
        if sys.platform == "linux":  # Popen.wait polls with a delay and would notice the exit late
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


def _reject_object(value: Any) -> int:
    raise TypeError(f"cannot send a {type(value).__name__} to a process")


@functools.cache
def _harness_source() -> str:
    return Path(harness.__file__).read_text(encoding="utf-8")


@functools.cache
def _interpreter() -> str:
    """Path of the interpreter itself, not of a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def _bubblewrap_command() -> tuple[str, ...]:
    """The command line before --seccomp; needs bubblewrap 0.5 or newer."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}  # outside any virtual environment
    library_paths = {Path(sysconfig.get_path(name, vars=base)).resolve() for name in ("stdlib", "platstdlib")}
    readable = dict.fromkeys([*(str(path.parent) for path in sorted(library_paths)), _interpreter()])
    arguments = ["--unshare-all", "--unshare-user", "--hostname", "sandbox", "--die-with-parent", "--new-session"]
    arguments.append("--as-pid-1")  # the program is the only process, so bubblewrap needs no init to reap others
    arguments += ["--clearenv", "--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--chdir", "/"]
    for folder in LIBRARIES:
        if os.path.islink(folder):
            arguments += ["--symlink", os.readlink(folder), folder]
        else:
            arguments += ["--ro-bind-try", folder, folder]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for path in readable:
        arguments += ["--ro-bind", path, path]
    hidden = [path / "site-packages" for path in library_paths if (path / "site-packages").is_dir()]
    for path in hidden:
        arguments += ["--tmpfs", str(path), "--remount-ro", str(path)]
    for device in DEVICES:
        arguments += ["--dev-bind", device, device]
    return (shutil.which("bwrap") or "bwrap", *arguments, "--remount-ro", "/")


@contextlib.contextmanager
def _filter_pipe() -> Iterator[IO[bytes]]:
    """A pipe that holds the seccomp filter. bubblewrap reads it to the end, so each process needs its own."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader:
        with os.fdopen(write_end, "wb") as writer:
            writer.write(make_filter(platform.machine()))
        yield reader


# Checks the sandbox from inside: no other processes, no host files, nothing writable.
PROBE = """
import os
def refused(function, *arguments):
    try:
        function(*arguments)
    except OSError:
        return True
checks = [
    refused(os.fork),
    refused(os.kill, os.getpid(), 0),
    refused(open, "/etc/passwd"),
    refused(open, "/proc/self/status"),
    refused(open, "/file", "w"),
    refused(open, "/dev/file", "w"),
    not os.environ.keys() - {"PYTHONHASHSEED", "PWD", "LC_CTYPE"},
]
print("confined" if all(checks) else checks)
"""


@functools.cache
def require() -> None:
    """Runs a probe program to check that the sandbox works on this machine; once per process.

    Raises:
      UserError: it does not work. The message says what to install or set.
    """
    if sys.platform != "linux":
        raise UserError(
            f"the sandbox for model-written programs needs Linux, and this system is {sys.platform}; use Linux, "
            f"{RUN_UNSANDBOXED}"
        )
    if platform.machine() not in MACHINES:
        raise UserError(
            f"the sandbox for model-written programs needs {' or '.join(MACHINES)}, and this machine is "
            f"{platform.machine()}; use another machine, {RUN_UNSANDBOXED}"
        )
    if shutil.which("bwrap") is None:
        raise UserError(
            "the sandbox for model-written programs needs bwrap, which is not installed; run apt-get install "
            f"bubblewrap, {RUN_UNSANDBOXED}"
        )
    try:
        outcome = run(PROBE)
        result = outcome.stdout.strip() or outcome.kind
    except MachineError:
        result = _bubblewrap_error()
    if result != "confined":
        raise UserError(
            f"the sandbox for model-written programs does not work here ({result}); allow unprivileged user "
            "namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu, docker run --security-opt "
            f"seccomp=unconfined --security-opt apparmor=unconfined in a container), {RUN_UNSANDBOXED}"
        )


def _bubblewrap_error() -> str:
    """Runs an empty program and returns the last line bubblewrap prints, or its exit status."""
    with _filter_pipe() as filter_file:
        options = ["--seccomp", str(filter_file.fileno())]
        try:
            result = subprocess.run(
                [*_bubblewrap_command(), *options, "--", _interpreter(), *PYTHON_OPTIONS, "-c", ""],
                env={},
                pass_fds=[filter_file.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS_TO_START,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return (result.stderr.strip() or f"status {result.returncode}").splitlines()[-1]
