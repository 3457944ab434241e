"""`evaluate` and `evaluate_checkpoint`: Pass@k of a model on held-out questions."""

import contextlib
import dataclasses
import os
import tempfile
from typing import Any

from tpt_jax.config import EvaluateConfig, RunConfig
from tpt_jax.config_parsing import as_config
from tpt_jax.errors import UserError
from tpt_jax.evaluation import Evaluation, evaluate_traces
from tpt_jax.io.paths import to_path
from tpt_jax.library.judging import judge
from tpt_jax.library.model import Model
from tpt_jax.library.sampling import sample, sampling_settings
from tpt_jax.library.tasks import Questions, as_question_set
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.loop.sampling import Pass, sample_all
from tpt_jax.loop.setup import set_up
from tpt_jax.loop.versions import with_version
from tpt_jax.records import CheckerSpec
from tpt_jax.runtime import environment, hosts
from tpt_jax.runtime.one_at_a_time import own_folder


def evaluate(
    model: Model,
    questions: Questions,
    *,
    checker: CheckerSpec | None = None,
    k: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Evaluation:
    """Samples and judges answers to the questions, at the evaluate stage's temperature (0.7).

    Args:
      questions: a task's held-out split, or as in `sample`; plain questions need a checker that can judge them.
      checker: as in `judge`.
      k: of Pass@k; the number of samples if not given.
      options: keys of a config's `evaluate` section, as in `sample`.

    Returns:
      Rates from 0 to 1 under both verdicts, with 95% intervals over questions.

    Raises:
      UserError, FloatingPointError: as `sample` and `judge` raise them.
    """
    asked = as_question_set(questions)
    config = sampling_settings(EvaluateConfig, asked, options)
    sampling = dataclasses.asdict(config)
    del sampling["num_questions"]
    traces = sample(model, asked, seed=seed, **sampling)
    return evaluate_traces(judge(traces, checker=checker), k=config.num_samples if k is None else k)


def evaluate_checkpoint(
    config: RunConfig | str | os.PathLike[str],
    model: str | os.PathLike[str],
    run_dir: str | os.PathLike[str] | None = None,
) -> Evaluation | None:
    """Evaluates a model like a run's evaluate stage; the same as `tpt eval`.

    Args:
      run_dir: keeps the judged traces, and lets a killed call resume; a temporary folder if not given.

    Returns:
      The figures, on the first host; None on the others.

    Raises:
      UserError: something that the config names is missing or does not fit, or several hosts do not share a folder.
    """
    environment.prepare()
    config = as_config(config)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=os.fspath(model), version=None))
    with contextlib.ExitStack() as stack:
        if run_dir is None and hosts.count() > 1:
            raise UserError("--run_dir: several hosts need a folder that all of them share; give gs://BUCKET/...")
        path = to_path(run_dir or stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(own_folder(path, "--run_dir"))
        config = with_version(config, path)
        folder = RunFolder.open(path, config, "eval")
        setup = stack.enter_context(set_up(config, ("evaluate",)))
        questions = setup.task.test[: config.evaluate.num_questions]
        if hosts.is_first():
            folder.begin(config)
            folder.write_questions(0, questions)
        sample_all(Pass(setup, folder, 0, "evaluate", questions, lambda: setup.load(setup.model)))
        figures = None
        if hosts.is_first():
            figures = evaluate_traces(folder.traces(0, "evaluate"), k=config.evaluate.num_samples)
            folder.write_metrics(0, {"round": 0, **dataclasses.asdict(figures)})
        hosts.barrier("end of the evaluation")
    return figures
