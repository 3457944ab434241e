"""What the verbs that need JAX do, from a checked config on. Each returns the exit status."""

import contextlib
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from tpt_jax import report
from tpt_jax.checkpoint import ModelFolder, export, save_checkpoint
from tpt_jax.config import MeshConfig, RunConfig
from tpt_jax.errors import UserError
from tpt_jax.evaluate import evaluate
from tpt_jax.loop import Loop
from tpt_jax.mesh import make_mesh
from tpt_jax.metrics import MetricsLog, import_wandb, round_table, say
from tpt_jax.program import compile_trainer
from tpt_jax.prompts import Example, Prompt, load_prompt
from tpt_jax.records import read_jsonl
from tpt_jax.run_dir import RunDir
from tpt_jax.sharding import TRAIN_RULES, Layout
from tpt_jax.stages import fine_tune, sample_and_judge, set_up
from tpt_jax.tasks import Task, load_task


def run(config: RunConfig, path: Path) -> int:
    """`tpt run`: all rounds that are not done yet; a table and the report after each."""
    run_dir = RunDir.open(path, config)
    if config.wandb_project is not None:
        import_wandb(config.wandb_project)  # now, rather than after the compilation
    stdout = Console()
    rounds: list[dict[str, Any]] = []
    with set_up(config, ("think", "evaluate")) as setup:
        trainer = compile_trainer(
            setup.model.config, setup.mesh, compute_dtype=config.model.compute_dtype, train=config.train
        )
        run_dir.begin(config)
        log = MetricsLog(
            run_dir.metrics_log,
            name=config.name,
            wandb_project=config.wandb_project,
            is_done=run_dir.is_done,
        )
        for metrics in Loop(setup, trainer, run_dir, log).run():
            rounds.append(metrics)
            stdout.print(round_table(rounds))
            report.write_report([path], run_dir.report)
        log.close()
    stdout.print(f"report: {run_dir.report}", highlight=False)
    return 0


def evaluate_model(config: RunConfig, model: str, path: Path | None) -> int:
    """`tpt eval`: one evaluation; its figures go to standard output as JSON."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=model))
    with contextlib.ExitStack() as stack:
        run_dir = RunDir.open(path or Path(stack.enter_context(tempfile.TemporaryDirectory())), config)
        setup = stack.enter_context(set_up(config, ("evaluate",)))
        asked = setup.task.test[: config.evaluate.num_questions]
        run_dir.begin(config)
        run_dir.write_questions(0, asked)
        sample_and_judge(setup, run_dir, 0, "evaluate", asked, lambda: setup.load(setup.model))
        figures = dataclasses.asdict(evaluate(run_dir.traces(0, "evaluate"), k=config.evaluate.num_samples))
        run_dir.write_metrics(0, {"round": 0, **figures})
    print(json.dumps(figures, indent=2))
    return 0


def train_on_file(config: RunConfig, model_path: str, traces: Path, output: Path) -> int:
    """`tpt sft`: fine-tunes a model on a file of traces and writes a checkpoint."""
    if output.exists():
        raise UserError(f"{output}: exists already; give a new folder")
    model = ModelFolder.open(model_path)
    task = load_task(config.task)
    examples = _examples(traces, task, load_prompt(model.path, task.instruction))
    mesh = make_mesh(config.mesh)
    trainer = compile_trainer(model.config, mesh, compute_dtype=config.model.compute_dtype, train=config.train)
    parameters = model.load(trainer.layout)
    trained = fine_tune(trainer, parameters, examples, config.train, seed=config.seed, label="train")
    save_checkpoint(output, trained.parameters, model)
    say(f"{output}: trained on {trained.num_examples} traces, {trained.num_too_long} were too long")
    return 0


def _examples(path: Path, task: Task, prompt: Prompt) -> list[Example]:
    """The traces of a file, but for those marked as not kept; sampled token ids are taken where the file has them."""
    texts = {question.id: question.question for question in (*task.train, *task.test)}
    examples = []
    for number, line in enumerate(read_jsonl(path), start=1):
        if not line.get("kept", True):
            continue
        completion = line.get("completion", line.get("trace"))
        question = line.get("question", texts.get(str(line.get("id"))))
        if completion is None or question is None:
            lacks = (
                'a "completion"'
                if completion is None
                else f'a "question", and no question has the id {line.get("id")!r}'
            )
            raise UserError(
                f'{path}: trace {number} lacks {lacks}; write {{"id", "completion"}} lines with ids of the task'
            )
        examples.append(prompt.example(question, line.get("token_ids") or prompt.completion_ids(completion)))
    return examples


def export_checkpoint(checkpoint: Path, output: Path, dtype: Literal["bfloat16", "float32"]) -> int:
    """`tpt export`: a run's checkpoint as a Hugging Face folder."""
    export(ModelFolder.open(checkpoint), output, Layout(make_mesh(MeshConfig()), TRAIN_RULES), dtype)
    say(f"{output}: written; transformers.AutoModelForCausalLM.from_pretrained({str(output)!r}) loads it")
    return 0
