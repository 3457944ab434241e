"""`finetune`: a model trained on kept traces."""

import dataclasses
from typing import Any

from tpt_jax.config import Seed, TrainConfig
from tpt_jax.config_parsing import check_value, settings
from tpt_jax.errors import UserError
from tpt_jax.library.model import Model
from tpt_jax.loop.training import fine_tune
from tpt_jax.prompts import Example, Prompt
from tpt_jax.records import JudgedTrace, Trace, Traces
from tpt_jax.terminal import say
from tpt_jax.train.data import split_by_length

ROUND_SETTINGS = frozenset({"start_from", "traces_of", "offload", "save_every"})


def finetune(
    model: Model, traces: Traces[JudgedTrace] | Traces[Trace], *, seed: int = 0, donate: bool = False, **options: Any
) -> Model:
    """Fine-tunes all weights, or adapters, on the traces, in the prompt format of their questions.

    Args:
      traces: as `select` returns them. Unfinished ones are left out: they would teach the model to stop in mid-answer.
      seed: for the order of the examples.
      donate: give up the model's own weights, which saves their memory; the model cannot be used afterwards.
      options: keys of a config's `train` section: rows, sequence_length, micro_batches, num_epochs, max_steps, remat,
        attention, optimizer={"name": "muon", "learning_rate": 2e-3}, loss={...}, lora={"rank": 16}, ...

    Returns:
      The model after training, on the same mesh.

    Raises:
      UserError: an option is unknown or does not fit, no trace fits, or a step does not fit the devices.
      FloatingPointError: the loss or the gradient is not finite.
    """
    for name in ROUND_SETTINGS & options.keys():
        raise UserError(f"{name}: only a run of several rounds has it; see tpt.run")
    config = settings(TrainConfig, options)
    check_value("seed", seed, Seed)
    if not isinstance(traces, Traces):
        raise UserError("finetune: give the traces as `select`, `judge` or `sample` return them")
    examples = _examples(traces, model.prompt(traces.questions))
    if not split_by_length(examples, config.sequence_length)[0]:
        raise UserError(
            f"finetune: no trace to train on: of {len(traces)} traces {len(examples)} are finished, and none of these "
            f"fits sequence_length ({config.sequence_length}); keep more traces, or raise sequence_length"
        )
    parameters = model.parameters_to_train(config.lora, seed, donate=donate)
    trainer = model.programs.trainer(model, config)
    trained = fine_tune(trainer, lambda: parameters, examples, config, seed=seed, label="finetune")
    return dataclasses.replace(model, parameters=trained.parameters, lora=config.lora)


def _examples(traces: Traces[JudgedTrace] | Traces[Trace], prompt: Prompt) -> list[Example]:
    questions = {question.id: question.question for question in traces.questions}
    plain = [each.trace if isinstance(each, JudgedTrace) else each for each in traces]
    finished = [trace for trace in plain if trace.finish_reason == "stop"]
    if len(finished) < len(plain):
        say(f"finetune: leaving out {len(plain) - len(finished)} unfinished traces")
    return [
        prompt.example(questions[trace.id], trace.token_ids or prompt.completion_ids(trace.completion), trace.name)
        for trace in finished
    ]
