"""`finetune_file`: fine-tunes a model on a file of traces, as `tpt sft`; a killed call resumes from its last save."""

import collections
import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.checkpoints.writer import CheckpointWriter, is_complete
from tpt_jax.config import RunConfig, steps_of
from tpt_jax.config_parsing import as_config, dump_config
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.files import checksum, write_atomically
from tpt_jax.io.paths import AnyPath, Path, to_path
from tpt_jax.io.record_files import parse_finish_reason, parse_id, parse_sample, read_records
from tpt_jax.loop.figures import StepFigures
from tpt_jax.loop.metrics import MetricsLog
from tpt_jax.loop.run_folder import num_saved_steps
from tpt_jax.loop.setup import make_prompt
from tpt_jax.loop.trackers import require_trackers
from tpt_jax.loop.training import Trained, fine_tune
from tpt_jax.prompts import Example, Prompt
from tpt_jax.runtime import environment, hosts
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.one_at_a_time import own_output
from tpt_jax.runtime.profiling import Profile
from tpt_jax.tasks import Task, load_task
from tpt_jax.tasks.decontamination import normalised, normalised_texts
from tpt_jax.tasks.task import parse_text
from tpt_jax.terminal import say
from tpt_jax.train.compile import TrainerProgram, compile_trainer
from tpt_jax.train.data import split_by_length
from tpt_jax.train.fine_tuning import StepRecord

CURVES = "metrics.jsonl"
SAVES = "training"
PROFILES = "profiles"
SETTINGS = "settings.json"  # the settings that the training was started with


def finetune_file(
    config: RunConfig | str | os.PathLike[str],
    model: str | os.PathLike[str],
    traces: str | os.PathLike[str],
    output: str | os.PathLike[str],
) -> None:
    """Writes a checkpoint with the training's curves; until it is complete, everything is in OUTPUT.partial.

    Args:
      traces: JSON lines, {"id", "completion"}, with ids of the config's task.

    Raises:
      UserError: the output exists or was started with other settings, or the file holds no traces.
      FloatingPointError: the loss or the gradient is not finite.
      Stopped: the process was asked to stop; the state of the training is saved.
    """
    environment.prepare()
    config, traces = as_config(config), to_path(traces)
    target = to_path(output)
    with own_output(target):
        if is_complete(target):
            raise UserError(f"{target}: exists already; give a new folder")
        if hosts.is_first():
            require_trackers(config.trackers)
        folder = ModelFolder.open(model)
        folder.check_weights()
        task = load_task(config.task)
        examples = read_examples(traces, task, make_prompt(config.prompt, folder, task), folder.config.vocab_size)
        longest = config.train.sequence_length
        if not split_by_length(examples, longest)[0]:
            raise UserError(
                f"{traces}: holds no trace to train on; {len(examples)} are longer than train.sequence_length "
                f"({longest}): give a file with traces, or a larger train.sequence_length"
            )
        partial = target.with_name(f"{target.name}.partial")
        settings = {"config": dump_config(config), "model": folder.name, "traces": checksum(traces)}
        _check_same_training(partial, settings)
        hosts.barrier("partial folder checked")
        trainer = compile_trainer(
            folder.config, make_mesh(config.mesh), compute_dtype=config.model.compute_dtype, train=config.train
        )
        if hosts.is_first():
            write_atomically(partial / SETTINGS, json.dumps(settings, indent=2) + "\n")
        trained = _train(trainer, folder, examples, config, partial)
        facts = {"num_examples": trained.num_examples, "num_too_long": trained.num_too_long, "tokens": trained.tokens}
        writer = CheckpointWriter()
        extra_files = (
            partial / CURVES,
            partial / "tensorboard",
            *[each for each in [partial / PROFILES] if each.is_dir()],
        )
        writer.save(target, trained.parameters, folder, facts, extra_files, config.train.lora)
        writer.close()
        if hosts.is_first():
            partial.rmtree()
        hosts.barrier("end of the training")
        say(f"{target}: trained on {trained.num_examples} traces; {trained.num_too_long} were too long")


def _train(
    trainer: TrainerProgram, folder: ModelFolder, examples: list[Example], config: RunConfig, partial: Path
) -> Trained:
    """Trains on the examples, resumed from the saves in the partial folder, where the curves are logged too."""
    saves = partial / SAVES
    num_done = num_saved_steps(saves)
    with contextlib.ExitStack() as stack:
        log = None
        if hosts.is_first():
            log = MetricsLog(
                partial / CURVES,
                name=config.name,
                trackers=config.trackers,
                is_kept=lambda line: line["step"] < num_done,
            )
            stack.enter_context(contextlib.closing(log))

        figures = StepFigures(folder.config, trainer.layout.mesh, lora=config.train.lora)

        def log_step(record: StepRecord) -> None:
            if log is not None:
                log.log(0, "train", record.step, figures(record))

        return fine_tune(
            trainer,
            lambda: folder.load(trainer.layout, lora=config.train.lora, seed=config.seed),
            examples,
            config.train,
            seed=config.seed,
            label="train",
            saves=saves,
            on_step=log_step,
            profile=Profile(partial / PROFILES, "train", steps_of(config.profile_steps)),
        )


def read_examples(path: AnyPath, task: Task, prompt: Prompt, vocab_size: int) -> list[Example]:
    """Training examples from a file of traces; leaves out those not kept, cut short, or of a test question.

    Sampled token ids are used if the file has them.

    Raises:
      UserError: more than 1% of the lines lack a completion or a question; names file and line.
    """
    texts: collections.defaultdict[str, set[str]] = collections.defaultdict(set)
    for question in (*task.train, *task.test):
        texts[question.id].add(question.question)
    tested = normalised_texts(task.test)
    left_out: collections.Counter[str] = collections.Counter()

    def read(index: int, line: dict[str, Any]) -> Example | None:
        if not _is_kept(line):
            return None
        completion = line.get("completion", line.get("trace"))
        if not isinstance(completion, str):
            raise InvalidRecordError('lacks text under "completion"')
        question = _question_text(line, texts)
        name = f"{parse_id(line, index)}/{parse_sample(line, default=0)}"
        if parse_finish_reason(line) != "stop":
            left_out["cut short"] += 1  # an end of turn after it would teach the model to stop in mid-answer
            return None
        if normalised(question) in tested:
            left_out["of test questions"] += 1
            return None
        return prompt.example(question, _token_ids(line, vocab_size) or prompt.completion_ids(completion), name)

    examples = [example for example in read_records(path, read) if example is not None]
    for reason, count in left_out.items():
        say(f"{path}: leaving out {count} traces {reason}")
    return examples


def _is_kept(line: Mapping[str, Any]) -> bool:
    kept = line.get("kept")
    if not isinstance(kept, bool | None):
        raise InvalidRecordError(f'has a "kept" of type {type(kept).__name__}; write true or false, without quotes')
    return kept is not False


def _question_text(line: Mapping[str, Any], texts: Mapping[str, set[str]]) -> str:
    """The line's own question, or the task's question with its id.

    Raises:
      InvalidRecordError: there is neither, or a training and a test question share the id.
    """
    if line.get("question") is not None:
        return parse_text(line, "question", '{"id", "question", "completion"}')
    name = parse_id(line, None)
    found = texts.get(name, set())
    if not found:
        raise InvalidRecordError(f'lacks a "question", and no question of the task has the id {name!r}')
    if len(found) > 1:
        raise InvalidRecordError(f'a training and a test question share the id {name!r}; write the "question" too')
    return next(iter(found))


def _token_ids(line: Mapping[str, Any], vocab_size: int) -> list[int]:
    """The sampled token ids; empty if only the text is known."""
    ids = line.get("token_ids") or []
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        raise InvalidRecordError("has token_ids outside the model's vocabulary; leave them out")
    return ids


def _check_same_training(partial: Path, settings: Mapping[str, Any]) -> None:
    """Raises UserError if the partial folder holds saves of a training with other settings."""
    path = partial / SETTINGS
    if path.is_file() and num_saved_steps(partial / SAVES):
        started = json.loads(path.read_text())
        different = [name for name in settings if started.get(name) != settings[name]]
        if different:
            raise UserError(
                f"{partial}: was started with another {different[0]}; give the same again, or remove the folder"
            )
