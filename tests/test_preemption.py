"""Requests to stop: in compiled code, inside callbacks that drop exceptions, a second time, and from a terminal."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

Start = Callable[..., "subprocess.Popen[str]"]

# A process that listens, prints "ready", and does something until it is stopped. JAX needs a device before it listens.
PROGRAM = """
import gc, sys, time, threading
from tpt_jax.errors import Stopped
from tpt_jax.runtime import preemption
preemption.SECONDS_TO_NOTICE = 1.0
preemption.SECONDS_TO_SAVE = 1.0
preemption.listen()
def in_compiled_code():  # a call that never lets Python handle a signal
    import hashlib
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
def in_a_callback():  # of the garbage collector, whose exceptions Python drops
    def work(*_):
        end = time.monotonic() + 0.2
        while time.monotonic() < end: pass
    gc.callbacks.append(work)
    gc.disable()
    while True:
        gc.collect()  # two callbacks
        work()
def in_python():
    while True: time.sleep(0.01)
def while_deferred():  # between steps that end
    with preemption.defer():
        while not preemption.should_stop(): time.sleep(0.01)
        raise Stopped
def in_a_long_step():
    with preemption.defer():
        time.sleep(60)
        end = time.monotonic() + 60
        while time.monotonic() < end: time.sleep(0.1)
try:
    print("ready", flush=True)
    globals()[sys.argv[1]]()
except Stopped as error:
    print(error)
    sys.exit(75)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the program, and ends it after the test."""
    started: list[subprocess.Popen[str]] = []
    # Processes that nohup or a shell's background started ignore these.
    before = {each: signal.signal(each, signal.SIG_DFL) for each in (signal.SIGHUP, signal.SIGINT)}

    def start_one(what: str, *wrapper: str) -> "subprocess.Popen[str]":
        started.append(start_program(what, *wrapper))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate()
    for each, handler in before.items():
        signal.signal(each, handler)


def start_program(what: str, *wrapper: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [*wrapper, sys.executable, "-c", PROGRAM, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # until it is at it
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("what", ["in_python", "while_deferred", "in_a_callback"])
def test_a_signal_stops_what_runs_in_python(what: str, name: str, start: Start) -> None:
    process = start(what)
    process.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (os.EX_TEMPFAIL, f"stopped by {name}\n", "")


def test_ctrl_c_is_not_lost_in_a_callback(start: Start) -> None:
    process = start("in_a_callback")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_a_signal_ends_a_process_that_is_held_up_in_compiled_code(start: Start) -> None:
    process = start("in_compiled_code")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == os.EX_TEMPFAIL
    assert err == "tpt: stopped by SIGTERM; the same command resumes from here\n"


def test_a_step_that_takes_longer_than_a_machine_is_left_says_so_and_a_second_signal_ends_it(start: Start) -> None:
    process = start("in_a_long_step")
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("SIGTERM: not stopped after 1 s, because a step or a checkpoint takes")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == os.EX_TEMPFAIL
    assert err.startswith("tpt: stopped by a second signal; the same command resumes from here, as it was saved last")


def test_nohup_keeps_a_process_from_hearing_of_a_closed_terminal(start: Start) -> None:
    process = start("in_python", "sh", "-c", 'trap \'\' HUP; exec "$0" "$@"')
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "stopped by SIGTERM\n"
