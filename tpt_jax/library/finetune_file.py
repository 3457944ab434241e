"""`tpt sft`: fine-tunes a model on a file of traces, without the loop. Killed, the same command goes on."""

import collections
import json
from collections.abc import Mapping
from typing import Any

from tpt_jax.checkpoints.model import CheckpointWriter, ModelFolder, is_complete
from tpt_jax.config import RunConfig, dump_config
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.files import digest, write_atomically
from tpt_jax.io.paths import AnyPath, Path, to_path
from tpt_jax.io.record_files import finish_reason_of, id_of, read_records, sample_of
from tpt_jax.loop.metrics import MetricsLog, import_wandb
from tpt_jax.loop.run_folder import saved_steps
from tpt_jax.loop.stages import fine_tune, prompt_of
from tpt_jax.prompts import Example, Prompt
from tpt_jax.runtime import hosts
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.tasks import Task, load_task
from tpt_jax.tasks.decontamination import normalised, texts_of
from tpt_jax.tasks.task import text_of
from tpt_jax.terminal import say
from tpt_jax.train.compile import compile_trainer
from tpt_jax.train.data import split_by_length
from tpt_jax.train.fit import StepRecord

SETTINGS = "settings.json"  # what a training was begun with


def train_on_file(config: RunConfig, model_path: str, traces: Path, output_path: str) -> int:
    """Writes a checkpoint with the training's curves beside it; until it is done all lies in OUTPUT.partial.

    Raises:
      UserError: there is an output already, one that was begun otherwise, or a file that holds no traces.
      FloatingPointError: the loss or the gradient is not finite.
    """
    output = to_path(output_path)
    if is_complete(output):
        raise UserError(f"{output}: exists already; give a new folder")
    if config.wandb_project is not None and hosts.is_first():
        import_wandb(config.wandb_project)
    model = ModelFolder.open(model_path)
    task = load_task(config.task)
    examples = read_examples(traces, task, prompt_of(config, model, task), model.config.vocab_size)
    longest = config.train.sequence_length
    if not split_by_length(examples, longest)[0]:
        raise UserError(
            f"{traces}: holds no trace to train on; {len(examples)} are longer than train.sequence_length ({longest}): "
            "give a file with traces, or a larger train.sequence_length"
        )
    partial = output.with_name(f"{output.name}.partial")
    settings = {"config": dump_config(config), "model": model_path, "traces": digest(traces)}
    _refuse_others(partial, settings)
    hosts.barrier("the training's folder was looked at")
    if hosts.is_first():
        write_atomically(partial / SETTINGS, json.dumps(settings, indent=2) + "\n")
    trainer = compile_trainer(
        model.config, make_mesh(config.mesh), compute_dtype=config.model.compute_dtype, train=config.train
    )
    saves, curves = partial / "training", partial / "metrics.jsonl"
    steps_done = saved_steps(saves)
    log = None
    if hosts.is_first():
        log = MetricsLog(
            curves,
            name=config.name,
            wandb_project=config.wandb_project,
            is_kept=lambda line: line["step"] < steps_done,
        )

    def on_step(record: StepRecord) -> None:
        if log is not None:
            log.log(0, "train", record.step, record.curves)

    trained = fine_tune(
        trainer,
        lambda: model.load(trainer.layout),
        examples,
        config.train,
        seed=config.seed,
        label="train",
        saves=saves,
        on_step=on_step,
    )
    if log is not None:
        log.close()
    facts = {"num_examples": trained.num_examples, "num_too_long": trained.num_too_long, "tokens": trained.tokens}
    writer = CheckpointWriter()
    writer.save(output, trained.parameters, model, facts, beside=(curves, partial / "tensorboard"))
    writer.close()
    if hosts.is_first():
        partial.rmtree()
    hosts.barrier("the end")
    say(f"{output}: trained on {trained.num_examples} traces; {trained.num_too_long} were too long")
    return 0


def read_examples(path: AnyPath, task: Task, prompt: Prompt, vocab_size: int) -> list[Example]:
    """The traces of a file, but for those marked as not kept, cut before their end, or of a test question.

    Sampled token ids are taken where the file has them.

    Raises:
      UserError: more than 1% of the lines have no completion, or no question of their own or of the task.
    """
    texts: collections.defaultdict[str, set[str]] = collections.defaultdict(set)
    for question in (*task.train, *task.test):
        texts[question.id].add(question.question)
    tested = texts_of(task.test)
    left_out: collections.Counter[str] = collections.Counter()

    def read(index: int, line: dict[str, Any]) -> Example | None:
        if not _is_kept(line):
            return None
        completion = line.get("completion", line.get("trace"))
        if not isinstance(completion, str):
            raise InvalidRecordError('lacks a text under "completion"')
        question = _question_of(line, texts)
        name = f"{id_of(line, index)}/{sample_of(line, default=0)}"
        if finish_reason_of(line) != "stop":
            left_out["cut before their end"] += 1  # an end of turn after it would teach the model to stop in the middle
            return None
        if normalised(question) in tested:
            left_out["of test questions"] += 1
            return None
        return prompt.example(question, _token_ids(line, vocab_size) or prompt.completion_ids(completion), name)

    examples = [example for example in read_records(path, read) if example is not None]
    for reason, count in left_out.items():
        say(f"{path}: {count} traces are left out, {reason}")
    return examples


def _is_kept(line: Mapping[str, Any]) -> bool:
    kept = line.get("kept")
    if not isinstance(kept, bool | None):
        raise InvalidRecordError(f'has a "kept" of type {type(kept).__name__}; write true or false, without quotes')
    return kept is not False


def _question_of(line: Mapping[str, Any], texts: Mapping[str, set[str]]) -> str:
    """The line's own question, or the one that its id means.

    Raises:
      InvalidRecordError: it has none, one that is no text, or its id means two.
    """
    if line.get("question") is not None:
        return text_of(line, "question", '{"id", "question", "completion"}')
    name = id_of(line, None)
    found = texts.get(name, set())
    if not found:
        raise InvalidRecordError(f'lacks a "question", and no question of the task has the id {name!r}')
    if len(found) > 1:
        raise InvalidRecordError(
            f'the id {name!r} is that of a training and of a test question; write the "question" too'
        )
    return next(iter(found))


def _token_ids(line: Mapping[str, Any], vocab_size: int) -> list[int]:
    """Those that were sampled; none where only the text is known."""
    ids = line.get("token_ids") or []
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        raise InvalidRecordError("has token_ids that the model's vocabulary has not; leave them out")
    return ids


def _refuse_others(partial: Path, settings: dict[str, Any]) -> None:
    """Lets the folder of this very training be gone on with, and no other's.

    Raises:
      UserError: it was begun with something else.
    """
    path = partial / SETTINGS
    if path.is_file():
        begun = json.loads(path.read_text())
        different = [name for name in settings if begun.get(name) != settings[name]]
        if different:
            raise UserError(
                f"{partial}: was begun with another {different[0]}; give the one that it was begun with, or remove it"
            )
