"""Checker processes: a hard time limit for each trace, kept by killing the process; they run beside the device."""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import queue
import resource
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from tpt_jax.checks.registry import Checker, get_checker, require
from tpt_jax.errors import MachineError
from tpt_jax.records import CHECKERS_FAULT, Question, Trace, Verdict

Pair = tuple[Question, str]  # a question and a completion
Job = tuple[list[Pair], Future[list[Verdict]]]

# A message to a worker holds so many traces and characters at most: it costs more than a numeric verdict.
MOST_TRACES = 64
MOST_CHARACTERS = 2**20
JOBS_AHEAD = 16  # for each worker; whoever submits more waits
SECONDS_BETWEEN_MESSAGES = 0.02  # a message for each quick verdict would cost more than the verdict
SECONDS_TO_START = 60.0
SECONDS_TO_EXIT = 2.0
LONGEST_MESSAGE = 300  # characters of what a checker raised
LEFT = "the pool was left"
DIED = f"{CHECKERS_FAULT} died"
MEMORY_LIMIT = 2**30  # bytes of address space that a check may take on top of what its process has at the start
BATCH = 1_024  # traces, of which judge has two under way


class CheckerPool:
    """Judges traces in worker processes.

    Workers are spawned, not forked: fork after JAX has started its threads is unsafe. A trace whose check outlasts its
    limit, or takes its worker down, is wrong with the reason in its verdict; the worker is replaced and the rest go on.
    """

    def __init__(self, checker: str, num_workers: int | None, seconds_per_trace: float):
        """Starts the workers, and does not wait for them.

        Args:
          checker: a name for get_checker.
          num_workers: None for one a processor core.

        Raises:
          UserError: there is no such checker, or it cannot work on this machine.
        """
        require(checker)
        num_workers = num_workers or os.cpu_count() or 1
        self._jobs: queue.Queue[Job | None] = queue.Queue(maxsize=JOBS_AHEAD * num_workers)
        self._managers = [_Manager(checker, seconds_per_trace, self._jobs) for _ in range(num_workers)]
        for manager in self._managers:
            manager.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the workers once what was submitted is judged; at once where the caller failed or was interrupted."""
        if kind is not None:
            with contextlib.suppress(queue.Empty):
                while (job := self._jobs.get_nowait()) is not None:
                    job[1].set_exception(RuntimeError(LEFT))
            for manager in self._managers:
                manager.stop()
        for _ in self._managers:
            self._jobs.put(None)
        for manager in self._managers:
            manager.join()

    def wait_until_ready(self) -> None:
        """Waits for the workers to start."""
        for manager in self._managers:
            manager.ready.wait()

    def submit_batch(self, pairs: Sequence[tuple[Question, Trace]]) -> Future[list[Verdict]]:
        """Judges in the background; the result is in the order given. Waits while the workers are far behind."""
        parts: list[Future[list[Verdict]]] = []
        for chunk in _chunks((question, trace.completion) for question, trace in pairs):
            parts.append(Future())
            self._jobs.put((chunk, parts[-1]))
        return _joined(parts)

    def judge(self, pairs: Iterable[tuple[Question, Trace]]) -> Iterator[Verdict]:
        """Verdicts in the order given; never more than two batches are under way."""
        waiting: deque[Future[list[Verdict]]] = deque()
        rest = iter(pairs)
        while batch := list(itertools.islice(rest, BATCH)):
            waiting.append(self.submit_batch(batch))
            if len(waiting) > 1:
                yield from waiting.popleft().result()
        for future in waiting:
            yield from future.result()


def _chunks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    chunk: list[Pair] = []
    characters = 0
    for pair in pairs:
        chunk.append(pair)
        characters += len(pair[1])
        if len(chunk) == MOST_TRACES or characters > MOST_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _joined(parts: list[Future[list[Verdict]]]) -> Future[list[Verdict]]:
    """A future of all parts' results, one after another."""
    whole: Future[list[Verdict]] = Future()
    left = len(parts)
    lock = threading.Lock()

    def on_part(_: Future[list[Verdict]]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        try:
            whole.set_result([verdict for part in parts for verdict in part.result()])
        except Exception as error:
            whole.set_exception(error)

    for part in parts:
        part.add_done_callback(on_part)
    if not parts:
        whole.set_result([])
    return whole


class _Worker:
    """One checker process and the pipe to it.

    Attributes:
      current: the place, in the chunk that it was sent, of the trace that it is judging; in shared memory.
    """

    def __init__(self, checker: str):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.current = context.RawValue("i", 0)
        self._process = context.Process(target=_serve, args=(checker, theirs, self.current), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe breaks when the process ends
        self._checker = checker
        self._is_ready = False

    def wait_until_ready(self) -> None:
        """Waits until it can judge.

        Raises:
          RuntimeError: it ends before.
          TimeoutError: it takes too long.
        """
        if self._is_ready:
            return
        if not self.pipe.poll(SECONDS_TO_START):
            raise TimeoutError(f"a process of checker {self._checker!r} did not start within {SECONDS_TO_START:.0f} s")
        try:
            self.pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(SECONDS_TO_EXIT)  # the pipe breaks a little before there is an exit code
            code = self._process.exitcode
            raise RuntimeError(f"a process of checker {self._checker!r} ended with code {code} at its start") from error
        self._is_ready = True

    def kill(self) -> None:
        """Ends the process, whoever waits for it: the pipe to it is broken then."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process and what belongs to it; for the thread that talks to it."""
        self.kill()
        self._process.join()
        self.pipe.close()


class _Manager(threading.Thread):
    """Feeds chunks to one worker, and replaces it when a trace has cost it its life.

    Attributes:
      ready: set once there is a worker, or cannot be one.
    """

    def __init__(self, checker: str, seconds: float, jobs: "queue.Queue[Job | None]"):
        super().__init__(daemon=True)
        self.ready = threading.Event()
        self._checker = checker
        self._seconds = seconds
        self._jobs = jobs
        self._worker: _Worker | None = None
        self._stopped = False

    def run(self) -> None:
        # The workers inherit it: Ctrl-C, which a terminal sends to all, is for the main process, which ends them.
        resource_tracker.ensure_running()  # or the first worker would start it, which unblocks the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with contextlib.suppress(Exception):  # whoever gives it a job is told
            self._ready_worker()
        self.ready.set()
        while (job := self._jobs.get()) is not None:
            pairs, future = job
            try:
                future.set_result(self._judge(pairs))
            except Exception as error:
                future.set_exception(error)
        self._end_worker()

    def stop(self) -> None:
        """Ends the worker, whatever it is doing."""
        self._stopped = True
        if (worker := self._worker) is not None:
            worker.kill()

    def _ready_worker(self) -> _Worker:
        """The worker, a new one where there is none."""
        worker = self._worker = self._worker or _Worker(self._checker)
        if self._stopped:  # asked for after the worker can be seen: either we see the stop, or it the worker
            raise RuntimeError(LEFT)
        try:
            worker.wait_until_ready()
        except BaseException:
            self._end_worker()
            raise
        return worker

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = None

    def _judge(self, pairs: list[Pair]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        failed: dict[int, Verdict] = {}  # by place; what the worker had judged and not yet sent is judged again
        suspects: set[int] = set()  # a worker died with them; it may have been ended from outside
        while len(verdicts) < len(pairs):
            start = len(verdicts)
            if start in failed:
                verdicts.append(failed[start])
                continue
            worker = self._ready_worker()
            stop = min((place for place in failed if place > start), default=len(pairs))
            try:
                failure = _judge_on(worker, pairs[start:stop], self._seconds, verdicts)
            except MachineError:
                self._end_worker()
                raise
            if failure is None:
                continue
            self._end_worker()
            place = start + failure.place
            if failure.reason != DIED or place in suspects:
                failed[place] = Verdict.wrong(failure.reason)
            suspects.add(place)
        return verdicts


@dataclasses.dataclass(frozen=True, slots=True)
class _Failure:
    """Why a worker has to be replaced, and the place, in its chunk, of the trace that it was judging."""

    reason: str
    place: int


def _judge_on(worker: _Worker, pairs: list[Pair], seconds: float, verdicts: list[Verdict]) -> _Failure | None:
    """Appends a worker's verdicts on the pairs, as far as it gets.

    Raises:
      MachineError: no verdict is possible on this machine. The worker has ended.
    """
    wanted = len(verdicts) + len(pairs)
    worker.current.value = 0
    try:
        worker.pipe.send(pairs)
        while len(verdicts) < wanted:
            if not worker.pipe.poll(seconds + SECONDS_BETWEEN_MESSAGES):
                place = worker.current.value
                if not worker.pipe.poll():  # after so slow a trace it sends before it goes on to the next
                    return _Failure("time limit", place)
            message = worker.pipe.recv()
            if isinstance(message, MachineError):
                raise message
            if message is None:
                return _Failure("memory limit", worker.current.value)
            verdicts.extend(message)
    except (EOFError, OSError):
        return _Failure(DIED, worker.current.value)
    return None


def _serve(checker: str, pipe: Connection, current: Any) -> None:
    """The worker: judges what comes through the pipe until it closes.

    It sends lists of verdicts; None says that it ran out of memory, a MachineError that the machine is at fault.
    """
    os.dup2(2, 1)  # what a checker prints is no result
    check = get_checker(checker)
    _limit_memory()
    with contextlib.suppress(EOFError, BrokenPipeError):  # nobody is there any more
        _serve_until_the_end(check, checker, pipe, current)


def _serve_until_the_end(check: Checker, name: str, pipe: Connection, current: Any) -> None:
    pipe.send("ready")
    told = False
    while True:
        pairs: list[Pair] = pipe.recv()
        judged: list[Verdict] = []
        sent_at = time.monotonic()
        for place, (question, completion) in enumerate(pairs):
            current.value = place
            try:
                verdict = check(question, completion)
            except MemoryError:  # whatever the checker was in the middle of: a new process goes on
                pipe.send(None)
                return
            except MachineError as error:
                pipe.send(error)
                return
            except BaseException as error:  # a checker's own mistake, or its exit, costs one trace, and is named
                if not told:
                    told = True
                    _tell(name, error)
                verdict = Verdict.wrong(f"{CHECKERS_FAULT} raised {type(error).__name__}")
            judged.append(verdict)
            if time.monotonic() - sent_at > SECONDS_BETWEEN_MESSAGES:
                pipe.send(judged)
                judged, sent_at = [], time.monotonic()
        pipe.send(judged)


def _tell(checker: str, error: BaseException) -> None:
    """Where a checker has failed, in one line; escaped, for it may quote what a model wrote."""
    *_, last = traceback.extract_tb(error.__traceback__)
    text = ascii(str(error)[:LONGEST_MESSAGE])[1:-1]
    print(f"checker {checker!r}: {type(error).__name__}: {text} ({last.filename}:{last.lineno})", file=sys.stderr)


def _limit_memory() -> None:
    """As far as the system lets us: macOS knows no such limit, and nobody may raise one that is set."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _address_space() + MEMORY_LIMIT
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _address_space() -> int:
    """Bytes that the process has now; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0
