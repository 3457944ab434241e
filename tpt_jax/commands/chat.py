"""`tpt chat`: asks a model in a terminal, and shows its answers as they are sampled."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tpt_jax.commands.arguments import (
    accept_overrides,
    fraction,
    non_negative,
    positive,
    read_config,
    seed,
)
from tpt_jax.errors import UserError, one_line, printable

if TYPE_CHECKING:
    from tpt_jax.checks.pool import CheckerPool
    from tpt_jax.config import RunConfig
    from tpt_jax.library.chat import Chat
    from tpt_jax.records import Question, Trace
    from tpt_jax.tasks import Task

HELP = "/question [N or ID] asks a question of the task's test split (the next one), /help shows this, /quit ends"
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "max_new_tokens")  # options that replace a config's `evaluate`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a Hugging Face folder or a run's checkpoint; the config's if not given")
    parser.add_argument("--config", type=Path, help="a run's YAML file: its prompt, task and section evaluate apply")
    parser.add_argument("--task", help="instead of a config: the task whose instruction and checker apply")
    accept_overrides(parser)
    parser.add_argument("--temperature", type=non_negative, help="0 is greedy decoding")
    parser.add_argument("--top_k", type=positive, help="only sample from the k likeliest tokens")
    parser.add_argument("--top_p", type=fraction, help="only from the likeliest tokens that sum to p")
    parser.add_argument("--min_p", type=fraction, help="only from tokens at least p times as likely as the likeliest")
    parser.add_argument("--max_new_tokens", type=positive, help="an answer is cut off here")
    parser.add_argument("--seed", type=seed, help="of the random draws")
    parser.add_argument("--template", help="a Jinja chat template, or a file with one; or plain: Question: ... Answer:")
    parser.add_argument("--tensor", type=positive, help="devices over which each weight is split")
    parser.add_argument("--compute_dtype", choices=("bfloat16", "float32"))
    parser.epilog = (
        "Each question is asked by itself, with the prompt that sampling and training use: earlier ones are not part "
        f"of it. {HELP}. Ctrl-C stops an answer, and ends where a question is expected, as Ctrl-D does. If standard "
        "input is no terminal, each line is a question. With --config, any of its keys can be set."
    )


def main(args: argparse.Namespace) -> None:
    """Asks until the input ends."""
    config, task = _read_task(args)
    with contextlib.ExitStack() as stack:
        _Conversation(_open_chat(args, config, task), config, task, stack).go_on()


def _read_task(args: argparse.Namespace) -> "tuple[RunConfig | None, Task | None]":
    import tpt_jax as tpt
    from tpt_jax import tasks

    if args.config is not None and args.task is not None:
        raise UserError("--task: give either --config or --task")
    if args.config is not None:
        config = read_config(args)
        return config, tasks.load_task(config.task)
    if args.overrides:
        raise UserError(f"--{next(iter(args.overrides))}: a key of a config; give --config too")
    if args.model is None:
        raise UserError("--model: missing; give a Hugging Face folder or a run's checkpoint")
    return None, None if args.task is None else tpt.load_task(args.task)


def _open_chat(args: argparse.Namespace, config: "RunConfig | None", task: "Task | None") -> "Chat":
    from tpt_jax.config import PromptConfig, SamplingConfig
    from tpt_jax.config_parsing import settings
    from tpt_jax.library.chat import Chat, load_chat_model
    from tpt_jax.loop.setup import make_prompt
    from tpt_jax.prompts import load_prompt
    from tpt_jax.runtime import environment

    environment.prepare()
    given = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    template = {} if args.template is None else {"template": args.template}
    if config is not None:
        sampling = dataclasses.replace(config.evaluate, **given)
    else:
        lengths = {} if task is None else dataclasses.asdict(task.test.generation)
        sampling = settings(SamplingConfig, {"max_prompt_tokens": 1, "max_new_tokens": 512, **lengths, **given})
    compute_dtype = args.compute_dtype or (config.model.compute_dtype if config else None)
    name = args.model if config is None or args.model is not None else config.model.path
    model = load_chat_model(name, tensor=args.tensor, compute_dtype=compute_dtype)
    of_prompt = settings(PromptConfig, {**(dataclasses.asdict(config.prompt) if config else {}), **template})
    if task is None:
        prompt = load_prompt(model.folder.path, template=of_prompt.template, stop=of_prompt.stop)
    else:
        prompt = make_prompt(of_prompt, model.folder, task)
    chosen_seed = args.seed if args.seed is not None else config.seed if config else 0
    return Chat(model, prompt, sampling, chosen_seed)


class _Conversation:
    """Questions from standard input, answers and verdicts to standard output."""

    def __init__(
        self, chat: "Chat", config: "RunConfig | None", task: "Task | None", stack: contextlib.ExitStack
    ) -> None:
        self._chat = chat
        self._config = config
        self._task = task
        self._stack = stack
        self._pool: CheckerPool | None = None
        self._next = 0  # test question

    def go_on(self) -> None:
        """Asks each line, or does what it says."""
        from tpt_jax.terminal import say

        is_interactive = sys.stdin is not None and sys.stdin.isatty()
        if is_interactive:
            say(f"asks {self._chat.describe()}; {HELP}")
        for line in _lines(is_interactive):
            try:
                if line.startswith("/"):
                    if not self._obey(line):
                        return
                elif line:
                    self._show(self._chat.ask(line))
            except UserError as error:
                if not is_interactive:
                    raise
                say(f"tpt: {error}")
            except KeyboardInterrupt as error:
                if not is_interactive or type(error) is not KeyboardInterrupt:  # SIGTERM is a kind of it
                    raise
                print("\n[stopped]", flush=True)

    def _obey(self, line: str) -> bool:
        """Does what a line that starts with / says; returns whether to go on.

        Raises:
          UserError: it says nothing that is known.
        """
        verb, _, rest = line.partition(" ")
        if verb == "/quit":
            return False
        if verb == "/question":
            self._ask_of_task(rest.strip())
        elif verb == "/help":
            print(HELP)
        else:
            raise UserError(f"{verb}: unknown; {HELP}")
        return True

    def _ask_of_task(self, which: str) -> None:
        """Asks a question of the test split, and prints the verdict on the answer.

        Raises:
          UserError: there is no such question, or no task.
        """
        from tpt_jax.prune.summary import label

        question = self._find(which)
        print(one_line(question.question, 10_000))
        trace = self._show(self._chat.ask(question.question, question.id))
        (verdict,) = self._checkers().judge([(question, trace)])
        read = "" if verdict.extracted is None else f"; read {verdict.extracted!r}"
        reference = f"; reference answer {question.answer!r}" if question.answer else ""
        print(one_line(f"[{question.id}: {label(verdict)}{read}{reference}]"), flush=True)

    def _find(self, which: str) -> "Question":
        if self._task is None:
            raise UserError("/question: needs a task; give --config or --task")
        test = self._task.test
        by_id = {question.id: question for question in test}
        if which in by_id:
            return by_id[which]
        if not which:
            which = str(self._next % len(test))
        if not which.isdecimal() or int(which) >= len(test):
            raise UserError(f"/question {which}: there is no such test question; give 0 to {len(test) - 1}, or an id")
        self._next = int(which) + 1
        return test[int(which)]

    def _checkers(self) -> "CheckerPool":
        from tpt_jax.checks.pool import CheckerPool
        from tpt_jax.checks.registry import without_sandbox

        assert self._task is not None
        if self._pool is None:
            test, prune = self._task.test, self._config.prune if self._config else None
            checker = without_sandbox(test.checker) if prune and prune.run_code_without_sandbox else test.checker
            seconds = prune.seconds_per_trace if prune else test.seconds_per_trace
            self._pool = self._stack.enter_context(CheckerPool(checker, 1, seconds))
        return self._pool

    def _show(self, growing: "Iterator[Trace]") -> "Trace":
        """Prints an answer as it grows; returns it. Nothing that a terminal would obey is printed."""
        shown, trace = "", None
        for trace in growing:
            text = self._chat.settled(trace)
            print(printable(text[len(shown) :]), end="", flush=True)
            shown = text
        assert trace is not None
        print(printable(trace.completion[len(shown) :]), flush=True)
        if trace.finish_reason == "length":
            print("[cut off at max_new_tokens]", file=sys.stderr, flush=True)
        return trace


def _lines(is_interactive: bool) -> Iterator[str]:
    """Lines of standard input, with a prompt in a terminal, until it ends or Ctrl-C is pressed."""
    if not is_interactive:
        for line in sys.stdin or ():
            yield line.strip()
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (editing and history of what is typed)
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt as error:
            if type(error) is not KeyboardInterrupt:
                raise
            print()
            return
        yield line.strip()
