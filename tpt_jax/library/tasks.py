"""Questions for the library's calls: a named task, or the user's own questions and checker."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import NonNegativeInt

from tpt_jax import tasks
from tpt_jax.checks.registry import require
from tpt_jax.config import PromptConfig
from tpt_jax.config_parsing import check_value, settings
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.record_files import parse_id
from tpt_jax.records import CheckerSpec, Question, QuestionSet, Shot
from tpt_jax.tasks import FileConfig, Task, task_class
from tpt_jax.tasks.decontamination import without_test_questions

Questions = QuestionSet | Sequence[Question] | Sequence[Mapping[str, Any]] | Sequence[str]


def load_task(
    name: str,
    *,
    num_shots: int = 0,
    instruction: str | None = None,
    template: str | None = None,
    stop: Sequence[str] | None = None,
    **options: Any,
) -> Task:
    """Loads the questions of a task.

    Args:
      name: as in a config's `task.name`: "gsm8k", "gsm_symbolic", "math", "reasoning_gym", "file", ...
      num_shots: how many of the task's worked examples precede every question, as `prompt.num_shots` of a config.
      instruction: placed after every question; the task's own if not given, "" for none.
      template, stop: the chat template, and the texts before which answers end, as `prompt.template` and `prompt.stop`.
      options: the other keys of the config's `task` section.

    Raises:
      UserError: an unknown name or option, or the questions cannot be loaded; says what to do.
    """
    check_value("num_shots", num_shots, NonNegativeInt)
    prompt = settings(PromptConfig, {"template": template, "stop": stop})
    task = tasks.load_task(settings(task_class(name), {"name": name, **options}, option="task."))

    def ask(questions: QuestionSet) -> QuestionSet:
        if num_shots > len(questions.shots):
            raise UserError(f"num_shots ({num_shots}): task {name} has {len(questions.shots)} worked examples")
        text = questions.instruction if instruction is None else instruction
        return dataclasses.replace(
            questions,
            instruction=text,
            shots=questions.shots[:num_shots],
            template=prompt.template,
            stop=prompt.stop,
        )

    return dataclasses.replace(task, train=ask(task.train), test=ask(task.test))


def own_task(
    train: Questions,
    test: Questions,
    *,
    name: str = "own",
    checker: CheckerSpec = "numeric",
    instruction: str = "",
    shots: Iterable[Shot] = (),
    template: str | None = None,
    stop: Sequence[str] | None = None,
) -> Task:
    """A task from Python objects; training questions that are also test questions are left out and counted.

    Args:
      train, test: Questions, or mappings with "question", "answer" and, optionally, "id" and more for the checker.
      checker: a checker's name, "module:function", or a function of a Question and a completion that returns True,
        False, None (the reference answer cannot be read) or a Verdict. It runs in worker processes.
      instruction: placed after every question.
      shots: worked examples that precede every question.
      template, stop: the chat template, and the texts before which answers end, as `prompt.template` and `prompt.stop`.

    Raises:
      UserError: a question lacks something, or the checker cannot be used.
    """
    require(checker)
    prompt = settings(PromptConfig, {"template": template, "stop": stop})

    def split(which: str, questions: Questions) -> QuestionSet:
        converted = as_question_set(questions, id_prefix=f"{name}/{which}/").questions
        return QuestionSet(
            converted,
            instruction=instruction,
            checker=checker,
            shots=tuple(shots),
            template=prompt.template,
            stop=prompt.stop,
        )

    return without_test_questions(Task(name, split("train", train), split("test", test)))


def as_question_set(questions: Questions, id_prefix: str = "") -> QuestionSet:
    """Questions as one set; texts and mappings become Questions.

    Args:
      id_prefix: the id of a question without one is this and its index.

    Raises:
      UserError: there are none, one of them is not a question, or an id appears twice.
    """
    if isinstance(questions, str):
        raise UserError(f"questions ({questions!r:.60}): a single text; write a list, [...]")
    if isinstance(questions, Mapping | Task):
        raise UserError(f"questions: a single {type(questions).__name__}; write a list [...], or task.train")
    if not questions:
        raise UserError("questions: there are none; give at least one")
    if isinstance(questions, QuestionSet):
        return questions
    converted = tuple(_as_question(f"{id_prefix}{index}", question) for index, question in enumerate(questions))
    counts = collections.Counter(question.id for question in converted)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"questions: the id {repeated[0]!r} appears {counts[repeated[0]]} times; make ids unique")
    return QuestionSet(converted)


def _as_question(name: str, question: Question | Mapping[str, Any] | str) -> Question:
    if isinstance(question, Question):
        return question
    if isinstance(question, str):
        return Question(name, question, "")
    if not isinstance(question, Mapping):
        raise UserError(f"question {name!r} ({question!r:.60}): write a text, a mapping or a tpt.Question")
    try:
        return FileConfig.read_question(parse_id(question, name), question)
    except InvalidRecordError as error:
        raise UserError(f"question {name!r}: {error}") from error
