"""The checker pool: limits, replaced workers, users' own functions, and workers that never outlive their pool."""

import contextlib
import enum
import functools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from tpt_jax.checks.answers.number import check_numeric
from tpt_jax.checks.pool import JOBS_PER_WORKER, MAX_CHUNK_TRACES, CheckerPool
from tpt_jax.checks.registry import checker_name, get_checker, require
from tpt_jax.errors import MachineError, UserError
from tpt_jax.records import CheckerSpec, CheckFunction, Question, Trace, Verdict


def pairs(*completions: str) -> list[tuple[Question, Trace]]:
    return [(Question("q", "?", "7"), Trace("q", sample, text)) for sample, text in enumerate(completions)]


def misbehaving_checker(question: Question, completion: str) -> Verdict:
    if completion == "hang":
        while True:
            pass
    if completion == "die":
        os._exit(1)
    if completion == "exit":
        sys.exit("enough")
    if completion == "raise":
        raise ValueError(completion)
    if completion == "eat":
        return check_numeric(question, "7" * 2**31)
    return check_numeric(question, completion)


def by_value() -> CheckFunction:
    """A function that other processes cannot import."""
    return lambda question, completion: misbehaving_checker(question, completion)


# Limits and failures.


@pytest.mark.parametrize("checker", [f"{__name__}:misbehaving_checker", by_value()], ids=["name", "function"])
def test_a_checker_that_hangs_dies_or_eats_memory_costs_one_trace(
    checker: CheckerSpec, capfd: pytest.CaptureFixture[str]
) -> None:
    completions = ("7", "hang", "7", "die", "8", "raise", "7", "exit", "7", "eat", "7")
    with CheckerPool(checker, 2, seconds_per_trace=0.5) as pool:
        verdicts = list(pool.judge(pairs(*completions)))
    assert [verdict.correct for verdict in verdicts] == [completion == "7" for completion in completions]
    reasons = {text: verdict.reason for text, verdict in zip(completions, verdicts, strict=True) if verdict.reason}
    assert reasons == {
        "hang": "time limit",
        "die": "checker died",
        "raise": "checker raised ValueError",
        "exit": "checker raised SystemExit",
        "eat": "memory limit",
    }
    assert f"checker {checker_name(checker)!r}: ValueError: raise (" in capfd.readouterr().err


def test_the_time_limit_is_that_of_one_trace() -> None:
    """Also of a trace in a chunk of 64, whose worker sends no other verdict meanwhile."""
    with CheckerPool(f"{__name__}:misbehaving_checker", 1, seconds_per_trace=0.2) as pool:
        pool.wait_until_ready()
        started = time.monotonic()
        verdicts = list(pool.judge(pairs("hang", *["7"] * 63)))
    assert [verdict.correct for verdict in verdicts] == [False] + [True] * 63
    assert time.monotonic() - started < 8  # the limit, and the start of a new worker; 64 times the limit is 12.8


def process_id(question: Question, completion: str) -> Verdict:
    return Verdict(str(os.getpid()), strict=True, correct=True)


def test_a_worker_killed_from_outside_costs_no_trace() -> None:
    with CheckerPool(process_id, 1, seconds_per_trace=5.0) as pool:
        (before,) = pool.judge(pairs("7"))
        os.kill(int(before.extracted or ""), signal.SIGKILL)
        (after,) = pool.judge(pairs("7"))
        assert (after.correct, after.reason) == (True, "")
        assert after.extracted != before.extracted


def test_a_machine_error_is_raised_and_ends_the_worker(tmp_path: Path) -> None:
    def no_verdict_possible(question: Question, completion: str) -> Verdict:
        (tmp_path / "pid").write_text(str(os.getpid()))
        raise MachineError("no more processes")

    with CheckerPool(no_verdict_possible, 1, seconds_per_trace=5.0) as pool:
        with pytest.raises(MachineError, match="no more processes"):
            pool.submit_batch(pairs("7")).result()
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


# Order and memory.


def test_hostile_traces_do_not_affect_each_other() -> None:
    traces = (
        "#### 7\0",
        "\ud800 #### 7",
        "9**9**9 #### 7",
        "{" * 10_000 + "#### 7",
        "x" * 10_000_000 + "#### 7",
        "\x1b[2J",
    )
    with CheckerPool("numeric", 1, seconds_per_trace=5.0) as pool:
        verdicts = list(pool.judge(pairs(*traces)))
    assert [verdict.correct for verdict in verdicts] == [True] * 5 + [False]


def test_verdicts_come_in_the_order_of_the_pairs() -> None:
    numbers = [str(random.Random(seed).randint(0, 9)) for seed in range(1000)]
    with CheckerPool("numeric", 2, seconds_per_trace=5.0) as pool:
        futures = [pool.submit_batch(pairs(*numbers[start : start + 300])) for start in range(0, 1000, 300)]
        verdicts = [verdict for future in futures for verdict in future.result()]
        assert list(pool.judge([])) == []
    assert [verdict.extracted for verdict in verdicts] == numbers


def test_judge_reads_no_further_ahead_than_the_queue_is_long() -> None:
    num_read, num_queued = 0, JOBS_PER_WORKER * MAX_CHUNK_TRACES

    def endless() -> Iterator[tuple[Question, Trace]]:
        nonlocal num_read
        for sample in range(20 * num_queued):
            num_read += 1
            yield Question("q", "?", "7"), Trace("q", sample, "7")

    with CheckerPool("numeric", 1, seconds_per_trace=5.0) as pool:
        verdicts = pool.judge(endless())
        assert next(verdicts).correct
        assert num_read <= num_queued
        assert sum(verdict.correct for verdict in verdicts) == 20 * num_queued - 1


# Leaving early.


def test_an_interrupt_ends_running_and_queued_checks_at_once() -> None:
    started = float("inf")
    with contextlib.suppress(KeyboardInterrupt), CheckerPool(by_value(), 1, seconds_per_trace=60.0) as pool:
        pool.wait_until_ready()
        pool.submit_batch(pairs(*["hang"] * 200))
        time.sleep(0.2)
        started = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - started < 10


class SlowToLoad:
    """Creates a file when a worker loads it, which takes the worker half a minute."""

    def __init__(self, announcement: Path):
        self.announcement = announcement

    def __call__(self, question: Question, completion: str) -> bool:
        return True

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"import pathlib, time; pathlib.Path({str(self.announcement)!r}).touch(); time.sleep(30)",)


def test_an_interrupt_does_not_wait_for_a_worker_that_is_starting(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), CheckerPool(SlowToLoad(tmp_path / "loading"), 1, 5.0) as pool:
        future = pool.submit_batch(pairs("7"))
        while not (tmp_path / "loading").exists():
            time.sleep(0.01)
        started = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - started < 10
    with pytest.raises(RuntimeError, match="pool was closed"):
        future.result()


def test_a_pool_that_is_dropped_ends_its_workers() -> None:
    pool = CheckerPool(by_value(), 1, seconds_per_trace=60.0)
    pool.wait_until_ready()
    future = pool.submit_batch(pairs("hang"))
    time.sleep(0.2)
    del pool
    with pytest.raises(RuntimeError, match="pool was closed"):
        future.result(timeout=10)


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "raise RuntimeError('a mistake')",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "pool.submit_batch([(question, Trace('q', 1, 'hang'))]); time.sleep(0.2)",
    ],
    ids=["end", "exception", "SIGKILL", "end while checking"],
)
def test_workers_end_with_their_process(ending: str) -> None:
    """Workers hold their process's standard error open, so reading it to the end also waits for them."""
    script = f"""
import time
from tpt_jax.checks.pool import CheckerPool
from tpt_jax.records import Question, Trace

def judge(question, completion):
    while completion == "hang":
        pass
    return True

question = Question("q", "?", "7")
pool = CheckerPool(judge, 1, 60.0)
print(next(pool.judge([(question, Trace("q", 0, ""))])).correct, flush=True)
{ending}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == "True\n"


# Users' own functions.

SCRIPT = """
import dataclasses, enum, os, signal, sys
sys.path.insert(0, "modules")
import limits
from tpt_jax.checks.pool import CheckerPool
from tpt_jax.records import Question, Trace, Verdict

class Level(enum.Enum):
    EASY = 1
    HARD = 2

class Answer(str):
    pass

OFFSET = 1

@dataclasses.dataclass
class Judge:
    level: Level

    def __call__(self, question, completion):
        print("judging", completion)
        if question.data["level"] is not self.level:
            return None
        return Verdict(Answer(completion), strict=False, correct=int(completion) == int(question.answer) + OFFSET)

def is_clean(question, completion):
    return (
        int(completion) < limits.LIMIT
        and "jax" not in sys.modules
        and sys.stdin.read() == ""
        and os.environ.get("PYTHONPATH") == question.data["PYTHONPATH"]
        and signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    )

def judge(checker, **data):
    pairs = [(Question("q", "?", "7", data), Trace("q", number, str(number))) for number in range(10)]
    with CheckerPool(checker, 1, 5.0) as pool:  # two workers' lines could mix
        return list(pool.judge(pairs))

print([verdict.extracted for verdict in judge(Judge(Level.EASY), level=Level.EASY) if verdict.correct])
print({verdict.reason for verdict in judge(Judge(Level.HARD), level=Level.EASY)})
print([verdict.correct for verdict in judge(lambda question, completion: completion == question.answer)].index(True))
print(sum(verdict.correct for verdict in judge(is_clean, PYTHONPATH=os.environ.get("PYTHONPATH"))))
"""


@pytest.mark.parametrize("from_stdin", [False, True], ids=["file", "stdin"])
def test_a_plain_script_judges_with_its_own_functions(tmp_path: Path, from_stdin: bool) -> None:
    """Without `if __name__ == "__main__"`, and with its own classes, constants and modules."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "limits.py").write_text("LIMIT = 6")
    command = [sys.executable, "-" if from_stdin else "script.py"]
    text = SCRIPT if from_stdin else None
    done = subprocess.run(command, input=text, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["['8']", "{'unreadable reference answer'}", "7", "6"], done.stderr
    assert sorted(done.stderr.splitlines()) == sorted(2 * [f"judging {number}" for number in range(10)])


def test_a_function_that_cannot_be_copied_is_refused() -> None:
    lock = threading.Lock()

    def locked(question: Question, completion: str) -> bool:
        with lock:
            return True

    with pytest.raises(UserError, match=r"checker 'locked': cannot be copied .*lock.*; create that object") as caught:
        CheckerPool(locked, 1, 5.0)
    assert "\n" not in str(caught.value)


def test_a_function_that_a_worker_cannot_import_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_here")
    exec("def judge(question, completion): return True", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with (
        CheckerPool(module.judge, 1, 5.0) as pool,
        pytest.raises(UserError, match=r"checker 'judge': cannot be loaded .*No module named 'only_here'") as caught,
    ):
        next(pool.judge(pairs("7")))
    assert "\n" not in str(caught.value)


class Level(enum.Enum):
    EASY = 1


def test_data_that_cannot_be_copied_is_refused_and_the_pool_keeps_working() -> None:
    question = Question("a", "?", "7", {"lock": threading.Lock()})
    with CheckerPool(lambda question, completion: question.data["level"] is Level.EASY, 1, 5.0) as pool:
        with pytest.raises(UserError, match=r"question 'a' .*cannot be copied .*; write plain values"):
            next(pool.judge([(question, Trace("a", 0, ""))]))
        (verdict,) = pool.judge([(Question("a", "?", "7", {"level": Level.EASY}), Trace("a", 0, ""))])
        assert verdict.correct


# The registry.


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('no\\nGPU')", "RuntimeError: no GPU; write module:function"),
        ("import sys\nsys.exit(3)", "SystemExit: 3; write module:function"),
        ("", "AttributeError: .* has no attribute 'check'"),
        ("check = 3", "of type int; write a function of a question and a completion"),
        ("def check(question): return True", "does not take these two .*; write a function"),
    ],
)
def test_an_object_that_is_no_checker_is_refused_before_it_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    module = f"no_checker_{len(source)}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        get_checker(f"{module}:check")
    assert "\n" not in str(caught.value)


def test_an_unknown_name_and_a_wrong_signature_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean numeric"):
        get_checker("numerik")
    with pytest.raises(UserError, match="checker '<lambda>': does not take these two"):
        require(lambda question: True)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="checker 'int': of type int"):
        require(3)  # type: ignore[arg-type]


def test_names_for_messages() -> None:
    specs = ("math", "module:function", process_id, SlowToLoad(Path()), functools.partial(process_id))
    assert [*map(checker_name, specs)] == ["math", "module:function", "process_id", "SlowToLoad", "partial"]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (True, Verdict(None, strict=True, correct=True)),
        (False, Verdict(None, strict=False, correct=False)),
        (None, Verdict(None, strict=False, correct=False, reason="unreadable reference answer", unknown=True)),
        (Verdict("1", strict=False, correct=True, reason="so"), Verdict("1", strict=False, correct=True, reason="so")),
    ],
)
def test_what_a_function_may_return(returned: Verdict | bool | None, expected: Verdict) -> None:
    assert get_checker(lambda question, completion: returned)(Question("q", "?", "7"), "") == expected
