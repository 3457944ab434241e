"""A pool of checker processes, which work while the device samples; a check that takes too long is killed."""

import contextlib
import dataclasses
import mmap
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Pipe
from types import TracebackType
from typing import IO, Any, Self

import cloudpickle

from tpt_jax.checks.registry import checker_name, require
from tpt_jax.checks.worker import BOOT, OUT_OF_MEMORY, SECONDS_BETWEEN_MESSAGES
from tpt_jax.errors import MachineError, UserError
from tpt_jax.io import streams
from tpt_jax.records import CHECKERS_FAULT, CheckerSpec, CheckFunction, Question, Trace, Verdict

Pair = tuple[Question, str, bool]  # a question, a completion, and whether the model ended it
Job = tuple[list[Pair], Future[list[Verdict]]]

# A worker judges one chunk per message: a message costs more than a numeric verdict.
MAX_CHUNK_TRACES = 64  # fits the byte in which a worker says which one it is judging
MAX_CHUNK_CHARACTERS = 2**20
JOBS_PER_WORKER = 16  # in the queue; submitting more blocks, and `judge` reads no further ahead
SECONDS_TO_START = 60.0
SECONDS_TO_EXIT = 2.0
CLOSED = "the checker pool was closed before it had judged everything"
DIED = f"{CHECKERS_FAULT} died"


class CheckerPool:
    """Judges traces in worker processes, which end with the `with` block or with this process.

    Workers are new interpreters: forking is unsafe once JAX has started threads. If a check exceeds its time or memory
    limit, or ends its worker, its trace is wrong, with the reason in the verdict; a new worker judges the rest.
    """

    def __init__(self, checker: CheckerSpec, num_workers: int | None, seconds_per_trace: float):
        """Starts the workers without waiting for them.

        Args:
          checker: as for get_checker. A function is copied to the workers in its current state, with its variables.
          num_workers: one per processor core if None.

        Raises:
          UserError: the checker is unknown, cannot work on this machine, or cannot be copied to other processes.
        """
        require(checker)
        streams.open_missing()  # a worker's pipe must not get the number of standard error
        num_workers = num_workers or os.cpu_count() or 1
        name = checker_name(checker)
        path = [entry or os.getcwd() for entry in sys.path if isinstance(entry, str)]
        start = _Start(
            name, ((path, sys.argv), (name, checker if isinstance(checker, str) else _pickle_checker(checker)))
        )
        self._jobs: queue.Queue[Job | None] = queue.Queue(maxsize=JOBS_PER_WORKER * num_workers)
        self._managers = [_Manager(start, seconds_per_trace, self._jobs) for _ in range(num_workers)]
        # Also when the interpreter exits: a worker in the middle of a check would not notice that its pipe is closed.
        weakref.finalize(self, _stop, self._managers, os.getpid())
        for manager in self._managers:
            manager.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the workers: after everything submitted is judged, or at once if the block was left by an exception."""
        if kind is not None:
            with contextlib.suppress(queue.Empty):
                while (job := self._jobs.get_nowait()) is not None:
                    job[1].set_exception(RuntimeError(CLOSED))
            _stop(self._managers, os.getpid())
        for _ in self._managers:
            self._jobs.put(None)
        for manager in self._managers:
            manager.join()

    def wait_until_ready(self) -> None:
        """Waits until every worker has loaded the checker, or has failed to."""
        for manager in self._managers:
            manager.ready.wait()

    def submit_batch(self, pairs: Sequence[tuple[Question, Trace]]) -> Future[list[Verdict]]:
        """Judges in the background, with the verdicts in the order of the pairs; blocks while the queue is full."""
        return _concatenated([self._submit(chunk) for chunk in _chunks(pairs)])

    def judge(self, pairs: Iterable[tuple[Question, Trace]]) -> Iterator[Verdict]:
        """Yields verdicts in the order of the pairs, and reads only as many pairs ahead as keep the workers busy.

        The first chunks are small, so that the first verdicts come soon even if a check takes seconds.
        """
        pending: deque[Future[list[Verdict]]] = deque()
        for chunk in _chunks(pairs, num_first=1):
            pending.append(self._submit(chunk))
            while pending and (pending[0].done() or len(pending) == self._jobs.maxsize):
                yield from pending.popleft().result()
        for future in pending:
            yield from future.result()

    def _submit(self, chunk: list[Pair]) -> Future[list[Verdict]]:
        future: Future[list[Verdict]] = Future()
        self._jobs.put((chunk, future))
        return future


def _pickle_checker(function: CheckFunction) -> bytes:
    """Pickles a checker: by value if a worker cannot import it, like a function of a script or notebook.

    Raises:
      UserError: it refers to something that cannot be copied.
    """
    fix = 'create that object inside the function, or move the function to a module and write "module:function"'
    return _pickled(function, f"checker {checker_name(function)!r}", fix)


def _pickled(value: Any, name: str, fix: str) -> bytes:
    try:
        return cloudpickle.dumps(value)
    except Exception as error:  # objects may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{name}: cannot be copied to worker processes ({reason}); {fix}") from error


def _chunks(pairs: Iterable[tuple[Question, Trace]], num_first: int = MAX_CHUNK_TRACES) -> Iterator[list[Pair]]:
    """Pairs in chunks; the first one holds `num_first`, and each one after it up to twice as many, up to the limit."""
    chunk: list[Pair] = []
    num_characters, num_traces = 0, num_first
    for question, trace in pairs:
        chunk.append((question, trace.completion, trace.finish_reason == "stop"))
        num_characters += len(trace.completion)
        if len(chunk) == num_traces or num_characters > MAX_CHUNK_CHARACTERS:
            yield chunk
            chunk, num_characters, num_traces = [], 0, min(2 * num_traces, MAX_CHUNK_TRACES)
    if chunk:
        yield chunk


def _concatenated(futures: list[Future[list[Verdict]]]) -> Future[list[Verdict]]:
    """A future of all results, concatenated."""
    result: Future[list[Verdict]] = Future()
    num_pending = len(futures)
    lock = threading.Lock()

    def on_done(_: Future[list[Verdict]]) -> None:
        nonlocal num_pending
        with lock:
            num_pending -= 1
            if num_pending:
                return
        try:
            result.set_result([verdict for future in futures for verdict in future.result()])
        except Exception as error:
            result.set_exception(error)

    for future in futures:
        future.add_done_callback(on_done)
    if not futures:
        result.set_result([])
    return result


@dataclasses.dataclass(frozen=True, slots=True)
class _Start:
    """How to start a worker: the checker's name, for messages, and the first messages to the process."""

    checker: str
    messages: Sequence[Any]


class _Worker:
    """One worker process and the pipe to it.

    Attributes:
      current: one byte shared with the process: the index, in its chunk, of the trace that it is judging.
    """

    def __init__(self, start: _Start):
        self.pipe, worker_pipe = Pipe()
        with worker_pipe, _shared_file() as file:  # closed here, or the pipe would not break when the process ends
            file.write(b"\0")
            self.current = mmap.mmap(file.fileno(), 1)
            fds = (worker_pipe.fileno(), file.fileno())
            self._process = subprocess.Popen(
                # This interpreter's options, as multiprocessing passes them; -P: no imports from the folder.
                [sys.executable, *_interpreter_options(), "-P", "-c", BOOT, *map(str, fds)],
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
            )
        self._start = start
        self._is_ready = False

    def wait_until_ready(self) -> None:
        """Waits until the worker has loaded the checker.

        Raises:
          UserError: the checker cannot be loaded in a worker.
          RuntimeError: the process ends.
          TimeoutError: it takes too long.
        """
        if self._is_ready:
            return
        name = self._start.checker
        try:
            for message in self._start.messages:
                self.pipe.send(message)
            answer = self.pipe.recv() if self.pipe.poll(SECONDS_TO_START) else None
        except (EOFError, OSError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):  # the pipe breaks a little before the process ends
                self._process.wait(SECONDS_TO_EXIT)
            code = self._process.returncode
            raise RuntimeError(f"a worker of checker {name!r} ended with code {code} at start-up") from error
        if answer is None:
            raise TimeoutError(f"a worker of checker {name!r} did not start within {SECONDS_TO_START:.0f} s")
        if isinstance(answer, UserError):
            raise answer
        self._is_ready = True

    def kill(self) -> None:
        """Kills the process; a thread waiting for an answer sees a broken pipe."""
        self._process.kill()

    def close(self) -> None:
        """Kills the process and frees what belongs to it; only for the thread that uses the pipe."""
        self.kill()
        self._process.wait()
        self.pipe.close()
        self.current.close()


def _interpreter_options() -> list[str]:
    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]


def _shared_file() -> IO[bytes]:
    """An unnamed file, on Linux in memory, since a disk may be full or read-only."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("tpt_jax_worker"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


class _Manager(threading.Thread):
    """Sends chunks to one worker, and replaces it when a trace has killed it.

    Attributes:
      ready: set once the worker has loaded the checker, or has failed to.
    """

    def __init__(self, start: _Start, seconds_per_trace: float, jobs: "queue.Queue[Job | None]"):
        super().__init__(daemon=True)
        self.ready = threading.Event()
        self._start = start
        self._seconds_per_trace = seconds_per_trace
        self._jobs = jobs
        self._worker: _Worker | None = None
        self._is_stopped = False

    def run(self) -> None:
        # Workers inherit the mask: a terminal sends Ctrl-C to all processes, but this one ends the workers.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with contextlib.suppress(Exception):  # the first job raises it again
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
        """Kills the worker and starts no other; may be called from any thread."""
        self._is_stopped = True
        if (worker := self._worker) is not None:
            worker.kill()

    def _ready_worker(self) -> _Worker:
        """The worker; starts one if there is none."""
        worker = self._worker = self._worker or _Worker(self._start)
        try:
            if (
                self._is_stopped
            ):  # read after self._worker is set, and stop() does the reverse: one of them sees the other
                raise RuntimeError(CLOSED)
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
        """Verdicts on all pairs.

        A trace that was being judged when its worker died gets a second chance in case the worker was killed from
        outside. Verdicts that a worker had not sent yet are judged again.
        """
        verdicts: list[Verdict] = []
        failed: dict[int, Verdict] = {}  # by index
        suspects: set[int] = set()  # a worker died while judging them
        while (start := len(verdicts)) < len(pairs):
            if start in failed:
                verdicts.append(failed[start])
                continue
            worker = self._ready_worker()
            stop = min((index for index in failed if index > start), default=len(pairs))
            try:
                failure = _judge_on(worker, pairs[start:stop], self._seconds_per_trace, verdicts)
            except (MachineError, UserError):
                self._end_worker()
                raise
            if failure is None:
                continue
            self._end_worker()
            index = start + failure.index
            if failure.reason != DIED or index in suspects:
                failed[index] = Verdict.wrong(failure.reason)
            suspects.add(index)
        return verdicts


def _stop(managers: list[_Manager], owner: int) -> None:
    """Kills all workers at once, but not from a process forked from their owner."""
    if os.getpid() == owner:
        for manager in managers:
            manager.stop()


@dataclasses.dataclass(frozen=True, slots=True)
class _Failure:
    """Why a worker has to be replaced, and the index, in its chunk, of the trace that it was judging."""

    reason: str
    index: int


def _judge_on(worker: _Worker, pairs: list[Pair], seconds_per_trace: float, verdicts: list[Verdict]) -> _Failure | None:
    """Appends a worker's verdicts on the pairs, as many as it sends before it fails.

    Raises:
      MachineError: this machine can no longer judge. The worker has ended.
      UserError: a question's data cannot be copied to a worker.
    """
    num_expected = len(verdicts) + len(pairs)
    message = _pickled(pairs, f"question {pairs[0][0].id!r} or one after it", "write plain values in its data")
    worker.current[0] = 0
    try:
        worker.pipe.send_bytes(message)
        while len(verdicts) < num_expected:
            if not worker.pipe.poll(seconds_per_trace + SECONDS_BETWEEN_MESSAGES):
                index = worker.current[0]
                if not worker.pipe.poll():  # a worker sends after every slow trace, before it begins the next
                    return _Failure("time limit", index)
            answer = worker.pipe.recv()
            if isinstance(answer, MachineError | UserError):
                raise answer
            if answer == OUT_OF_MEMORY:
                return _Failure("memory limit", worker.current[0])
            verdicts.extend(answer)
    except (EOFError, OSError):
        return _Failure(DIED, worker.current[0])
    return None
