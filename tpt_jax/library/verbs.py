"""What the verbs that need JAX do, from a checked config on. Each returns the exit status."""

import contextlib
import dataclasses
import itertools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from tpt_jax import report
from tpt_jax.checkpoints.model import ModelFolder, export
from tpt_jax.config import MeshConfig, RunConfig, load_config
from tpt_jax.errors import UserError
from tpt_jax.evaluation import evaluate
from tpt_jax.io.paths import to_path
from tpt_jax.library.sample_file import read_prompts
from tpt_jax.loop.metrics import MetricsLog, import_wandb, round_table
from tpt_jax.loop.rounds import Loop
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.loop.stages import prompt_of, sample_and_judge, set_up
from tpt_jax.prompts import load_prompt
from tpt_jax.runtime import hosts
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
from tpt_jax.tasks import load_task
from tpt_jax.terminal import say
from tpt_jax.train.compile import compile_trainer


def run(config: RunConfig, path: str) -> int:
    """`tpt run`: all rounds that are not done yet; a table and the report after each."""
    run_dir = RunFolder.open(path, config)
    if config.wandb_project is not None and hosts.is_first():
        import_wandb(config.wandb_project)  # now, rather than after the compilation
    stdout = Console(quiet=not hosts.is_first())
    rounds: list[dict[str, Any]] = []
    with set_up(config, ("think", "evaluate")) as setup:
        trainer = compile_trainer(
            setup.model.config, setup.mesh, compute_dtype=config.model.compute_dtype, train=config.train
        )
        log = _begin(run_dir, config) if hosts.is_first() else None
        for metrics in Loop(setup, trainer, run_dir, log).run():
            rounds.append(metrics)
            stdout.print(round_table(rounds))
            if log is not None:
                report.write_report([run_dir.path], run_dir.report)
        if log is not None:
            log.close()
        hosts.barrier("the end")
    stdout.print(f"report: {run_dir.report}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _begin(run_dir: RunFolder, config: RunConfig) -> MetricsLog:
    run_dir.begin(config)
    return MetricsLog(
        run_dir.metrics_log, name=config.name, wandb_project=config.wandb_project, is_kept=run_dir.is_kept
    )


def evaluate_model(config: RunConfig, model: str, path: str | None) -> int:
    """`tpt eval`: one evaluation; its figures go to standard output as JSON."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=model))
    with contextlib.ExitStack() as stack:
        if path is None and hosts.count() > 1:
            raise UserError("--run_dir: several hosts need one that all of them share; give gs://BUCKET/...")
        run_dir = RunFolder.open(path or stack.enter_context(tempfile.TemporaryDirectory()), config, "eval")
        setup = stack.enter_context(set_up(config, ("evaluate",)))
        asked = setup.task.test[: config.evaluate.num_questions]
        if hosts.is_first():
            run_dir.begin(config)
            run_dir.write_questions(0, asked)
        sample_and_judge(setup, run_dir, 0, "evaluate", asked, lambda: setup.load(setup.model))
        if hosts.is_first():
            figures = dataclasses.asdict(evaluate(run_dir.traces(0, "evaluate"), k=config.evaluate.num_samples))
            run_dir.write_metrics(0, {"round": 0, **figures})
            print(json.dumps(figures, indent=2))
        hosts.barrier("the end")
    return 0


def show_prompts(
    count: int, config_path: Path | None, overrides: Mapping[str, str], model_path: str | None, prompts: Path | None
) -> int:
    """`tpt sample --show_prompts`: the first prompts as the model reads them, special tokens and all.

    Args:
      config_path: of a run, whose training questions are shown; else model_path and prompts say what is.

    Raises:
      UserError: too little is given.
    """
    if config_path is not None:
        config = load_config(config_path, overrides)
        model = ModelFolder.open(config.model.path, config.model.source)
        task = load_task(config.task)
        prompt, texts = prompt_of(config, model, task), {each.id: each.question for each in task.train}
    elif model_path is not None and prompts is not None:
        prompt, texts = load_prompt(ModelFolder.open(model_path).path), read_prompts(prompts)
    else:
        raise UserError("--show_prompts: needs --config FILE, or --model DIR and --prompts F.jsonl")
    end = prompt.text([prompt.end_of_turn], with_special=True)
    for name, text in itertools.islice(texts.items(), count):
        ids = prompt.prompt_ids(text)
        print(f"=== {name}: {len(ids)} tokens, after which the model is to write its answer and {end}")
        print(prompt.text(ids, with_special=True))
    return 0


def export_checkpoint(checkpoint: str, output: Path, dtype: Literal["bfloat16", "float32"]) -> int:
    """`tpt export`: a run's checkpoint as a Hugging Face folder."""
    export(ModelFolder.open(checkpoint), to_path(output), Layout(make_mesh(MeshConfig()), TRAIN_RULES), dtype)
    say(f"{output}: written; transformers.AutoModelForCausalLM.from_pretrained({str(output)!r}) loads it")
    return 0
