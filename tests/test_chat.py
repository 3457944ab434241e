"""`tpt chat`: the same answers as `tpt.sample`, growing, in terminals and pipes, and nothing that a terminal obeys."""

import io
import itertools
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import EASY_TASK, ROOT, CommandHere, process_environment, refused

import tpt_jax as tpt
from tpt_jax.config import SamplingConfig
from tpt_jax.config_parsing import settings
from tpt_jax.library.chat import Chat, load_chat_model
from tpt_jax.records import Trace
from tpt_jax.think.engine import Engine
from tpt_jax.think.requests import FixedSchedule, Request

Tpt = CommandHere
QUESTIONS = [{"id": f"sum/{n}", "question": f"{n} + {2 * n} =", "answer": 3 * n} for n in (3, 14)]
# So hot that it writes nonsense.
OPTIONS: dict[str, Any] = {"max_prompt_tokens": 64, "max_new_tokens": 16, "temperature": 3.0}

# The command with a model that answers slowly, and whatever it is asked to.
COMMAND = r"""
import sys, time
from tpt_jax.commands import chat, main
from tpt_jax.records import Trace

class Fake:
    describe = lambda self: "a stranger"
    settled = lambda self, trace: trace.completion

    def ask(self, question, name=None):
        text = ""
        for piece in ["\x1b[31m", "r\x07ed ", "\u202e\r", *(["more "] * 500 if question == "long" else ["end"])]:
            text += piece
            time.sleep(0.01)
            yield Trace("q", 0, text, finish_reason="length")
        yield Trace("q", 0, text)

chat._open_chat = lambda *_: Fake()
sys.exit(main.command())
"""


class Terminal:
    """A command in a pseudo-terminal."""

    def __init__(self, *command: object) -> None:
        self.leader, follower = pty.openpty()
        streams: dict[str, Any] = {"stdin": follower, "stdout": follower, "stderr": follower}
        env = process_environment() | {"TERM": "xterm"}
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background ignores it
        self.process = subprocess.Popen([*map(str, command)], **streams, env=env, start_new_session=True)
        signal.signal(signal.SIGINT, before)
        os.close(follower)
        self.text = ""

    def write(self, text: str) -> None:
        os.write(self.leader, text.encode())

    def read_until(self, end: str, seconds: float = 60.0) -> str:
        """What comes up to a text, that included."""
        until = time.monotonic() + seconds
        while end not in self.text and time.monotonic() < until:
            if select.select([self.leader], [], [], 0.1)[0]:
                self.text += os.read(self.leader, 4096).decode()
        found, _, self.text = self.text.partition(end)
        assert time.monotonic() < until, found
        return found + end

    def interrupt(self) -> None:
        os.killpg(self.process.pid, 2)  # what a controlling terminal sends at Ctrl-C


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "command.py").write_text(COMMAND)
    terminal = Terminal(sys.executable, tmp_path / "command.py", "chat", "--model", "x")
    yield terminal
    terminal.process.kill()
    terminal.process.wait()
    os.close(terminal.leader)


def test_a_terminal_is_safe_and_keeps_its_program(terminal: Terminal) -> None:
    assert "a stranger" in terminal.read_until("> ")
    terminal.write("hello\n")
    answer = terminal.read_until("end\r\n")
    assert r"\x1b[31mr\x07ed \u202e\rend" in answer
    terminal.read_until("> ")
    terminal.write("long\n")
    terminal.read_until("more more ")
    terminal.interrupt()
    assert terminal.read_until("> ").count("more") < 400
    terminal.write("/nonsense\n")
    assert "tpt: /nonsense: unknown" in terminal.read_until("> ")
    terminal.write("/question\n")
    assert "give --config or --task" in terminal.read_until("> ")
    terminal.write("again\n")  # the program lives
    terminal.read_until("end\r\n")
    terminal.read_until("> ")
    time.sleep(0.5)  # a signal that comes just before readline waits is lost
    terminal.interrupt()
    assert terminal.process.wait(20) == 0


@pytest.fixture(scope="module")
def model() -> Any:
    return load_chat_model("quickstart", compute_dtype="float32")


def test_answers_grow_into_those_of_sample(model: Any) -> None:
    """With the program that the command compiles for the easy task, so that both compile it once."""
    prompt = model.prompt(tpt.own_task(QUESTIONS, ["?"], checker=lambda *_: True).train)
    chat = Chat(model, prompt, settings(SamplingConfig, OPTIONS), seed=5)
    finish_reasons = set()
    for sample, question in itertools.product(range(2), QUESTIONS):
        *growing, last = chat.ask(question["question"], question["id"])
        program, weights = chat._program(1)
        request = Request(question["id"], prompt.prompt_ids(question["question"]), (sample,), (16,))
        engine = Engine(program.slots["sample"], prompt, (), 1)
        batches = engine.sample(weights, FixedSchedule([request], 1), seed=5, round_index=0, temperature=3.0)
        assert [last] == [trace for batch in batches for trace in batch]
        assert [len(each.token_ids) for each in growing] == [4 * (n + 1) for n in range(len(growing))]
        assert all(last.completion.startswith(chat.settled(each)) for each in growing)
        finish_reasons.add(last.finish_reason)
    assert finish_reasons == {"stop", "length"}


def test_what_may_become_a_stop_string_waits(model: Any) -> None:
    prompt = model.prompt(tpt.own_task(QUESTIONS, ["?"], checker=lambda *_: True, stop=("Question:", "##")).train)
    chat = Chat(model, prompt, settings(SamplingConfig, {"max_prompt_tokens": 1}))
    shown = {"7\nQues": "7\n", "7 #": "7 ", "7 Q\ufffd": "7 ", "Questions": "Questions", "7": "7"}
    assert {text: chat.settled(Trace("q", 0, text)) for text in shown} == shown


def test_piped_questions_get_answers_and_verdicts(
    tmp_path: Path, tpt_here: Tpt, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(EASY_TASK)
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("10 + 4 =\n\n/question 1\n/question\n/question file/test/0\n/quit\n?")
    )
    done = tpt_here("chat", "--config", tmp_path / "config.yaml", "--temperature", "0", "--compute_dtype", "float32")
    assert done.returncode == 0, done
    answer, *others = done.stdout.splitlines()
    assert answer == "14"
    asked = re.findall(
        r"^(.* =)\n(\d+)\n\[(\S+): (right|wrong answer).*; read '(\d+)'; reference answer '(\d+)'\]$",
        "\n".join(others),
        re.MULTILINE,
    )
    assert [each[2] for each in asked] == ["file/test/1", "file/test/2", "file/test/0"]
    for question, answer, _, verdict, read, reference in asked:
        assert eval(question.rstrip(" =")) == int(reference)
        assert (answer == read, answer == reference) == (True, verdict == "right")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--model: missing"),
        (("--model", "quickstart", "--train.rows", "2"), "--train.rows: a key of a config; give --config too"),
        (("--config", f"{ROOT}/configs/own_task.yaml", "--task", "gsm8k"), "give either --config or --task"),
        (("--model", "nowhere"), "nowhere"),
        (("--model", "quickstart", "--tensor", "9"), "1 x 1 x 9 = 9, but JAX sees 8 devices"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], words: str, tpt_here: Tpt) -> None:
    assert words in refused(tpt_here, "chat", *arguments)
