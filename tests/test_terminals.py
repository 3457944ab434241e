"""No terminal, pipe, encoding or full disk of a log ends a command; only results that nothing else holds are missed."""

import io
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, process_environment
from rich.table import Table

from tpt_jax import terminal
from tpt_jax.io import streams
from tpt_jax.io.tables import print_table, stdout_console
from tpt_jax.loop.metrics import monitor_table, round_table

ROUND = {
    "round": 1234,
    "k": 8,
    "pass_at_1": 0.12345,
    "intervals": {"pass_at_1": (0.1, 0.2)},
    "pass_at_k": 0.5,
    "maj_at_k": None,
    "strict_pass_at_1": 0.0625,
    "num_traces": 4862,
    "train_pass_at_1": 0.25,
    "train_is_estimate": True,
    "num_kept": 2000,
    "seconds": {"think": 98765.0},
    "paired": {"pass_at_1": (0.015, -0.005, 0.035)},
    "num_won": 30,
    "num_lost": 15,
    "distinct_answers": 0.5,
    "distinct_calculations": 0.25,
    "mean_token_entropy": 0.789,
    "mean_tokens": 123.0,
}

# The command with a verb that shows what a run does, and then writes a file: its work.
COMMAND = f"""
import contextlib, os, sys, time
from tpt_jax.commands import main, report
from tpt_jax.io.tables import print_table, stdout_console
from tpt_jax.loop.metrics import round_table
from tpt_jax.terminal import progress, say

def show(args):
    say("Pass@1 – ± 漢")
    with progress("judge", 3, "traces") as advance:
        advance(3)
    for _ in range(int(os.environ.get("TABLES", 1))):
        print_table(stdout_console(), round_table([{ROUND}]))
        time.sleep(float(os.environ.get("PAUSE", 0)))
    print("report:", args.run_dirs[0])
    with open(args.output, "w") as file:
        file.write("done")
        file.flush()
        for descriptor in (1, 2):  # as a library in C does
            with contextlib.suppress(OSError):
                os.write(descriptor, b"!")

report.main = show
sys.exit(main.command())
"""
SHELL = ("bash", "-o", "pipefail", "-c")


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in process_environment().items() if name not in ("COLUMNS", "LC_ALL")}
    return {"LANG": "C.UTF-8", **kept, **changes}


def show(folder: Path, wrapper: str = "{}", **changes: str) -> subprocess.CompletedProcess[bytes]:
    """Runs the command within a line of shell; checks that it did its work."""
    (folder / "command.py").write_text(COMMAND, encoding="utf-8")
    command = f"{sys.executable} {folder}/command.py report 'r\u00fcn' --output {folder}/done"
    line = [*SHELL, wrapper.format(command)]
    done = subprocess.run(line, capture_output=True, env=environment(**changes), timeout=60, check=False)
    assert (folder / "done").read_text() == "done"
    assert done.returncode == 0
    assert b"Error" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("wrapper", "changes"),
    [
        ("{} >&-", {}),
        ("{} 2>&-", {}),
        ("{} <&- >&- 2>&-", {}),
        ("{} | head -1", {"TABLES": "9"}),
        ("{} 2>&1 | true", {"TABLES": "9"}),
        ("{} > /dev/full", {}),
        ("{} > /dev/full 2>&1", {"PYTHONUNBUFFERED": "1"}),
        ("{}", {"COLUMNS": "0", "TERM": "dumb", "NO_COLOR": "1"}),
    ],
)
def test_a_command_does_its_work_whoever_watches(wrapper: str, changes: dict[str, str], tmp_path: Path) -> None:
    show(tmp_path, wrapper, **changes)


def test_characters_that_an_encoding_lacks_are_replaced(tmp_path: Path) -> None:
    done = show(tmp_path, PYTHONIOENCODING="ascii")
    assert re.search(r"\b12\.3 +\|\+- 5\.0 +\| +50\.0 +\| +- ", done.stdout.decode("ascii", "replace"))
    assert done.stderr.splitlines()[0] == b"Pass@1 - +- ?"
    assert b"r\xfcn" in show(tmp_path, PYTHONIOENCODING="latin-1").stdout
    # Here Python reads the argument's two bytes as something that is not text, and they are printed as they came.
    assert "rün".encode() in show(tmp_path, LC_ALL="C", PYTHONUTF8="0").stdout


def test_a_terminal_that_hangs_up_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(COMMAND, encoding="utf-8")
    command = [sys.executable, tmp_path / "command.py", "report", "run", "--output", tmp_path / "done"]
    leader, follower = pty.openpty()
    env = environment(TERM="xterm", TABLES="5", PAUSE="0.1")
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=env)
    os.close(follower)
    assert os.read(leader, 1)
    os.close(leader)
    assert process.wait(60) == 0
    assert (tmp_path / "done").read_text() == "done"


# Results that only standard output gets.

PRUNE = (
    f"{sys.executable} -m tpt_jax prune --task gsm8k --num_workers 1 --questions {{0}}/q.jsonl --traces {{0}}/t.jsonl "
)
PRUNE += "--output {0}/kept.jsonl"


def prune(folder: Path, wrapper: str) -> subprocess.CompletedProcess[bytes]:
    (folder / "q.jsonl").write_text('{"id": "a", "question": "3 + 4?", "answer": "#### 7"}\n')
    (folder / "t.jsonl").write_text('{"id": "a", "sample": 0, "completion": "#### 7"}\n')
    env = environment(PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]))
    line = [*SHELL, wrapper.format(PRUNE.format(folder))]
    done = subprocess.run(line, capture_output=True, env=env, timeout=60, check=False)
    assert '"correct": true' in (folder / "kept.jsonl").read_text()
    return done


@pytest.mark.parametrize(
    ("wrapper", "status", "last"),
    [
        ("{} > /dev/full", 1, b"tpt: standard output: No space left on device"),
        ("{} | true", 0, b"judge: 1 of 1 traces"),
        ("{} 2>&-", 0, None),
    ],
)
def test_results_that_a_full_disk_swallows_fail_the_command(
    wrapper: str, status: int, last: bytes | None, tmp_path: Path
) -> None:
    done = prune(tmp_path, wrapper)
    assert done.returncode == status
    assert [*done.stderr.splitlines(), None][-1 if last is None else -2] == last


def test_a_checker_may_print_though_nobody_can_read_it(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from tpt_jax.records import Verdict\n"
        "def check(question, completion):\n"
        "    print('a long line – ±' * 9999)\n"
        "    return Verdict('7', strict=True, correct=True)\n"
    )
    assert prune(tmp_path, "{} --checker own:check 2> /dev/full").returncode == 0


# Streams.


def test_streams_of_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = io.StringIO()  # as a notebook's
    monkeypatch.setattr(sys, "stdout", theirs)
    monkeypatch.setattr(sys, "stderr", theirs)
    streams.prepare()
    assert sys.stdout is sys.stderr is theirs
    streams.check_written()


def test_a_program_that_uses_the_library_keeps_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(text, "ascii", write_through=True))
    console = stdout_console()
    print_table(console, round_table([ROUND]))
    console.print("“漢”")
    assert b"|+- 5.0 |" in text.getvalue()
    assert text.getvalue().endswith(b"???\n")
    full = io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(sys, "stderr", full)
    terminal.say("progress")
    monkeypatch.setattr(sys, "stderr", None)
    terminal.say("progress")
    full.close()


def test_a_pipe_that_does_not_block_gets_everything() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = os.urandom(300_000)
    read: list[bytes] = []
    thread = threading.Thread(target=lambda: read.extend(iter(lambda: os.read(reader, 4096), b"")))
    stream = io.BufferedWriter(streams._ForgivingFile(writer, "w"))
    threading.Timer(0.1, thread.start).start()
    stream.write(data)
    stream.close()
    thread.join()
    os.close(reader)
    assert b"".join(read) == data


# Widths.


@pytest.mark.parametrize(
    ("columns", "width", "num_parts"), [(0, 40, 3), (1, 40, 3), (40, 40, 3), (55, 55, 2), (80, 80, 1)]
)
@pytest.mark.parametrize("make_table", [round_table, monitor_table])
def test_a_table_is_whole_at_any_width(
    columns: int,
    width: int,
    num_parts: int,
    make_table: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    table = make_table([ROUND, {**ROUND, "round": 5678}])
    cells = [str(cell) for column in table.columns for cell in (column.header, *column.cells)]
    print_table(stdout_console(), table)
    text = capsys.readouterr().out
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert set(" ".join(cells).split()) <= set(text.split())  # nothing is cut
    assert text.split().count("5678") == text.split().count("round") == num_parts


@pytest.mark.parametrize("columns", [40, 60])
def test_words_of_the_first_column_are_wrapped_between_words(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table("arm", "Pass@1", "to the first")
    table.add_row("train.rows=8, think.temperature=0.7 (to do)", "12.3 ± 4.5", "+1.2 ± 3.4")
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table(stdout_console(160), table)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= columns for line in lines)
    for words in ("train.rows=8,", "think.temperature=0.7", "12.3 ± 4.5", "+1.2 ± 3.4"):
        assert any(words in line for line in lines)


@pytest.mark.parametrize(("columns", "has_bar"), [(40, False), (100, True)])
def test_a_narrow_terminal_gets_numbers_rather_than_a_bar(
    columns: int, has_bar: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal.STDERR, "_force_terminal", True)
    monkeypatch.setattr(terminal.STDERR, "_width", None)  # as COLUMNS said when it was made
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    with terminal.progress("round 12 evaluate", 12345, "traces") as advance:
        advance(12344)
        advance(2)  # by a guess of what other hosts have done
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err).replace("\r", "\n")
    last = shown.strip().splitlines()[-1]
    assert re.search("12345/12345.* 0:00:00", last)
    assert ("traces" in last) == ("━" in last) == has_bar
