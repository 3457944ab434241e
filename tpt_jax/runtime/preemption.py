"""Preemption: a machine about to be taken away sends SIGTERM, a closed terminal SIGHUP, and both are gone in seconds.

A single process stops at once, since every file it writes is complete or absent. While it holds state worth saving, it
polls `should_stop` between steps instead. Several hosts must stop at the same step; JAX's preemption service agrees on
it.

Python handles a signal only when the main thread is back from compiled code, which a compilation keeps for minutes. So
a thread hears of every signal, too: it ends the process if the main thread does not, or if it is asked a second time.
"""

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from tpt_jax.errors import RESUMES, Stopped
from tpt_jax.terminal import say

SECONDS_TO_NOTICE = 3.0  # for the main thread, before it counts as held up in compiled code
SECONDS_TO_REPEAT = 0.1  # a signal that was lost
SECONDS_TO_SAVE = 25.0  # a spot TPU is gone 30 seconds after the signal

Hook = Callable[[Any], Any]  # as sys.unraisablehook

# Signals are per process, and so are these.
_requested = threading.Event()
_deferred = threading.Event()  # the running code polls should_stop
_noticed = threading.Event()  # the main thread has handled the signal
_repeated = threading.Event()  # the next signal is this process's own
_steps = itertools.count()
_name = "SIGTERM"  # of the signal


def listen() -> None:
    """Treats SIGTERM and SIGHUP as a request to stop; on several hosts JAX itself listens for SIGTERM."""
    hears_hangup = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN  # as under nohup
    if jax.process_count() > 1:
        if hears_hangup:
            signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        return
    signal.signal(signal.SIGTERM, _on_signal)
    if hears_hangup:
        signal.signal(signal.SIGHUP, _on_signal)
    sys.unraisablehook = _repeat_if_lost(sys.unraisablehook)
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    signal.set_wakeup_fd(pythons.detach())
    threading.Thread(target=_watch, args=(ours,), name="preemption", daemon=True).start()


@contextlib.contextmanager
def defer() -> Iterator[None]:
    """While the body runs, a request to stop waits until the body polls `should_stop`."""
    _deferred.set()
    try:
        yield
    except Stopped:
        raise Stopped(_name) from None
    finally:
        _deferred.clear()


def should_stop() -> bool:
    """Whether to save and stop now; every host polls at every step, in the same order."""
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(next(_steps))
    return _requested.is_set()


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _name
    _name = signal.Signals(number).name
    _requested.set()
    _noticed.set()
    if not _deferred.is_set():
        raise Stopped(_name)


def _repeat_if_lost(hook: Hook) -> Hook:
    """A hook that sends the signal again if Python dropped the exception of its handler.

    It does if the handler runs inside a callback of the garbage collector, and JAX has one.
    """

    def repeat(number: signal.Signals) -> None:
        _repeated.set()
        signal.pthread_kill(threading.main_thread().ident or 0, number)

    def on_unraisable(dropped: Any) -> None:
        if isinstance(dropped.exc_value, Stopped | KeyboardInterrupt):
            number = signal.Signals[_name] if isinstance(dropped.exc_value, Stopped) else signal.SIGINT
            threading.Timer(SECONDS_TO_REPEAT, repeat, (number,)).start()
        else:
            hook(dropped)

    return on_unraisable


def _watch(signals: socket.socket) -> None:
    """Ends the process where the main thread cannot; receives the number of every signal."""
    num_requests = 0
    while number := signals.recv(1):
        if _repeated.is_set():
            _repeated.clear()
        elif number[0] in (signal.SIGTERM, signal.SIGHUP):
            num_requests += 1
            if num_requests == 1:
                threading.Thread(target=_hurry, args=(signal.Signals(number[0]).name,), daemon=True).start()
            else:
                _end(f"stopped by a second signal; {RESUMES}, as it was saved last")


def _hurry(name: str) -> None:
    """Waits for the main thread to end the process."""
    if not _deferred.is_set() and not _noticed.wait(SECONDS_TO_NOTICE):
        _end(f"stopped by {name}; {RESUMES}")
    threading.Event().wait(SECONDS_TO_SAVE)
    say(
        f"{name}: not stopped after {SECONDS_TO_SAVE:.0f} s, because a step or a checkpoint takes longer; if the "
        "process is killed now, the same command resumes from what was saved last"
    )


def _end(message: str) -> NoReturn:
    """Ends the process without a word from other threads: every file is complete or absent."""
    say(f"tpt: {message}")
    os._exit(os.EX_TEMPFAIL)
