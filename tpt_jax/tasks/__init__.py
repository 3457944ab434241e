"""Tasks: questions with checkable answers, one file per task."""

from collections.abc import Mapping

from tpt_jax.errors import UserError, suggestion
from tpt_jax.records import Shot
from tpt_jax.tasks.code_contests import CodeContestsConfig
from tpt_jax.tasks.decontamination import without_test_questions
from tpt_jax.tasks.file import FileConfig
from tpt_jax.tasks.gsm8k import Gsm8kConfig
from tpt_jax.tasks.gsm_symbolic import GsmSymbolicConfig
from tpt_jax.tasks.humaneval import HumanEvalConfig
from tpt_jax.tasks.math import MathConfig
from tpt_jax.tasks.mbpp import MbppConfig
from tpt_jax.tasks.multiple_choice import MultipleChoiceConfig
from tpt_jax.tasks.reasoning_gym import ReasoningGymConfig
from tpt_jax.tasks.task import Task, TaskConfig

AnyTaskConfig = (
    CodeContestsConfig
    | FileConfig
    | Gsm8kConfig
    | GsmSymbolicConfig
    | HumanEvalConfig
    | MathConfig
    | MbppConfig
    | MultipleChoiceConfig
    | ReasoningGymConfig
)

TASKS: Mapping[str, type[TaskConfig]] = {
    "code_contests": CodeContestsConfig,
    "file": FileConfig,
    "gsm8k": Gsm8kConfig,
    "gsm_symbolic": GsmSymbolicConfig,
    "humaneval": HumanEvalConfig,
    "math": MathConfig,
    "mbpp": MbppConfig,
    "multiple_choice": MultipleChoiceConfig,
    "reasoning_gym": ReasoningGymConfig,
}


def load_task(config: TaskConfig) -> Task:
    """Loads a task's questions, without training questions that are also test questions.

    Raises:
      UserError: they cannot be loaded; the message says what to do.
    """
    return without_test_questions(config.load())


def task_class(name: str) -> type[TaskConfig]:
    """The config class of a task.

    Raises:
      UserError: the name is unknown.
    """
    if name not in TASKS:
        raise UserError(f"task {name!r}: unknown; {suggestion(name, TASKS)}")
    return TASKS[name]


__all__ = [
    "TASKS",
    "AnyTaskConfig",
    "CodeContestsConfig",
    "FileConfig",
    "Gsm8kConfig",
    "GsmSymbolicConfig",
    "HumanEvalConfig",
    "MathConfig",
    "MbppConfig",
    "MultipleChoiceConfig",
    "ReasoningGymConfig",
    "Shot",
    "Task",
    "TaskConfig",
    "load_task",
    "task_class",
]
