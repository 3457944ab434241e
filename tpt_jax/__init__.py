"""Think, Prune, Train: self-improving language models, JAX-native on TPU pods.

    import tpt_jax as tpt

    model = tpt.load_model("quickstart")
    task = tpt.load_task("gsm_symbolic", templates=[48], num_train=100, num_test=20)
    traces = tpt.sample(model, task.train, num_samples=4)
    judged = tpt.judge(traces, task)
    kept = tpt.select(judged, max_per_question=1)
    better = tpt.finetune(model, kept, rows=8, sequence_length=192, optimizer={"learning_rate": 1e-3})
    print(tpt.evaluate(better, task.test).pass_at_1)

The `tpt` command is a layer over these calls. Names are imported when they are first used: importing this package
imports neither JAX nor anything else that takes time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpt_jax.config import RunConfig
    from tpt_jax.config_parsing import load_config
    from tpt_jax.errors import UserError
    from tpt_jax.evaluation import Evaluation
    from tpt_jax.library.check_task import TaskCheck, check_task
    from tpt_jax.library.evaluation import evaluate, evaluate_checkpoint
    from tpt_jax.library.finetune_file import finetune_file
    from tpt_jax.library.init_project import init_project
    from tpt_jax.library.judge_file import judge_file
    from tpt_jax.library.judging import judge, score, select
    from tpt_jax.library.model import Model, export_checkpoint, load_model, mesh
    from tpt_jax.library.pod import joined_hosts
    from tpt_jax.library.push import push
    from tpt_jax.library.run import Run, run
    from tpt_jax.library.sample_file import sample_file
    from tpt_jax.library.sampling import sample
    from tpt_jax.library.show_prompts import show_file_prompts, show_run_prompts
    from tpt_jax.library.sweep import Sweep, sweep
    from tpt_jax.library.tasks import load_task, own_task
    from tpt_jax.library.training import finetune
    from tpt_jax.records import JudgedTrace, Question, QuestionSet, Shot, Trace, Traces, Verdict
    from tpt_jax.report import Report, write_report
    from tpt_jax.tasks import Task

__version__ = "0.1.0"

_MODULES = {
    "config": ("RunConfig",),
    "config_parsing": ("load_config",),
    "errors": ("UserError",),
    "evaluation": ("Evaluation",),
    "library.check_task": ("TaskCheck", "check_task"),
    "library.evaluation": ("evaluate", "evaluate_checkpoint"),
    "library.finetune_file": ("finetune_file",),
    "library.init_project": ("init_project",),
    "library.judge_file": ("judge_file",),
    "library.judging": ("judge", "score", "select"),
    "library.model": ("Model", "export_checkpoint", "load_model", "mesh"),
    "library.pod": ("joined_hosts",),
    "library.push": ("push",),
    "library.run": ("Run", "run"),
    "library.sample_file": ("sample_file",),
    "library.sampling": ("sample",),
    "library.show_prompts": ("show_file_prompts", "show_run_prompts"),
    "library.sweep": ("Sweep", "sweep"),
    "library.tasks": ("load_task", "own_task"),
    "library.training": ("finetune",),
    "records": ("JudgedTrace", "Question", "QuestionSet", "Shot", "Trace", "Traces", "Verdict"),
    "report": ("Report", "write_report"),
    "tasks": ("Task",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Evaluation",
    "JudgedTrace",
    "Model",
    "Question",
    "QuestionSet",
    "Report",
    "Run",
    "RunConfig",
    "Shot",
    "Sweep",
    "Task",
    "TaskCheck",
    "Trace",
    "Traces",
    "UserError",
    "Verdict",
    "check_task",
    "evaluate",
    "evaluate_checkpoint",
    "export_checkpoint",
    "finetune",
    "finetune_file",
    "init_project",
    "joined_hosts",
    "judge",
    "judge_file",
    "load_config",
    "load_model",
    "load_task",
    "mesh",
    "own_task",
    "push",
    "run",
    "sample",
    "sample_file",
    "score",
    "select",
    "show_file_prompts",
    "show_run_prompts",
    "sweep",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
