"""`show_run_prompts` and `show_file_prompts`: prompts as the model reads them, special tokens and all."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.config import RunConfig
from tpt_jax.config_parsing import as_config
from tpt_jax.errors import one_line, printable
from tpt_jax.library.sample_file import read_prompts
from tpt_jax.loop.setup import make_prompt
from tpt_jax.prompts import Prompt, load_prompt
from tpt_jax.runtime import environment
from tpt_jax.tasks import load_task


def show_run_prompts(config: RunConfig | str | os.PathLike[str], count: int) -> Iterator[str]:
    """The prompts of a run's first training questions, each under a line with its id and length in tokens.

    Raises:
      UserError: the model or the task cannot be loaded.
    """
    environment.prepare()
    config = as_config(config)
    model = ModelFolder.open(config.model.path, config.model.version)
    task = load_task(config.task)
    texts = {question.id: question.question for question in task.train[:count]}
    prompt = make_prompt(config.prompt, model, task)
    return _show(prompt, texts, prompt.prompt_ids)


def show_file_prompts(
    model: str | os.PathLike[str],
    prompts: str | os.PathLike[str],
    count: int,
    *,
    template: str | None = None,
    plain: bool = False,
) -> Iterator[str]:
    """The first prompts of a file, in the same form.

    Args:
      template, plain: as in `sample_file`.

    Raises:
      UserError: the model cannot be loaded, or the file holds no prompts.
    """
    environment.prepare()
    prompt = load_prompt(ModelFolder.open(model).path, template=template, stop=() if plain else None)
    texts = dict(itertools.islice(read_prompts(Path(prompts)).items(), count))
    return _show(prompt, texts, prompt.plain_ids if plain else prompt.prompt_ids)


def _show(prompt: Prompt, texts: dict[str, str], encode: Callable[[str], tuple[int, ...]]) -> Iterator[str]:
    end = prompt.text([prompt.end_of_turn])
    for name, text in texts.items():
        ids = encode(text)
        yield f"=== {one_line(name)}: {len(ids)} tokens; the model then writes its answer and {end}"
        yield printable(prompt.text(ids))  # in a terminal, which obeys some characters
