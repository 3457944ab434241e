"""The model card of an exported model: what it was made from, how, and how well it answers held-out questions.

Names and settings come from strangers' files and are escaped; folders of this machine are left out.
"""

import dataclasses
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.checkpoints.model_names import full_name, is_local, local_folder
from tpt_jax.config import RunConfig
from tpt_jax.config_parsing import plain_values
from tpt_jax.errors import UserError, one_line
from tpt_jax.io.hub import cached_file, parse_hub_name
from tpt_jax.io.model_cards import CARD, MADE_BY, escaped, fenced, front_matter, read_metadata, text_of
from tpt_jax.io.paths import AnyPath, Path, is_remote
from tpt_jax.loop.run_folder import RunFolder, read_config, settings_digest
from tpt_jax.report import words
from tpt_jax.report.read import Rate, RoundResult, read_runs
from tpt_jax.tasks import FileConfig
from tpt_jax.terminal import say

VERSION = importlib.metadata.version("tpt_jax")
PAPER = "2504.18116"
ABOUT = f"[Think, Prune, Train](https://arxiv.org/abs/{PAPER})"
DATA_SETS = {"gsm8k": "openai/gsm8k", "mbpp": "google-research-datasets/mbpp", "humaneval": "openai/openai_humaneval"}
RECIPE = ("task", "prompt", "seed", "num_rounds", "think", "prune", "train", "evaluate")
HUB_LICENCES = ("license", "license_name", "license_link")  # keys of the Hub's model cards


@dataclasses.dataclass(frozen=True)
class Card:
    """A model card: its YAML, and its Markdown."""

    metadata: Mapping[str, Any]
    text: str

    def write(self, folder: AnyPath) -> None:
        (folder / CARD).write_text(front_matter(self.metadata) + "\n" + self.text, encoding="utf-8")


def make_card(checkpoint: ModelFolder, dtype: str, *, adapter: bool = False) -> Card:
    """The card of a checkpoint; it says less of one that is not in a run's folder.

    Args:
      dtype: of the exported weights.
      adapter: only adapters are exported, for PEFT.
    """
    source = _Source.of(checkpoint)
    licence = _licence(source)
    metadata: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["think-prune-train", "tpt_jax", f"arxiv:{PAPER}"],
    }
    if source.hub_base:
        metadata |= {"base_model": source.hub_base, "base_model_relation": "adapter" if adapter else "finetune"}
    if source.data_set:
        metadata["datasets"] = [source.data_set]
    metadata |= licence
    metadata[MADE_BY] = {"version": VERSION, "base": source.base, "run": None}
    if source.config is not None:
        metadata[MADE_BY] |= {"run": settings_digest(source.config), "round": source.round}
    parts = [
        *_introduction(source),
        *_results(source),
        *_usage(dtype, adapter),
        *_recipe(source, adapter),
        *_licence_note(source, licence),
    ]
    return Card(metadata, "\n".join(parts))


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where an exported model comes from.

    Attributes:
      base: the name of the base model; of one on this machine only the last part.
      hub_base: OWNER/NAME of the base model, if it is on the Hub.
      config, rounds: of the run; None and empty if the checkpoint is not in a run's folder.
      round: after which the checkpoint was written.
      base_card: the base model's own model card; None if it is not on this machine.
    """

    base: str
    hub_base: str | None
    config: RunConfig | None = None
    rounds: tuple[RoundResult, ...] = ()
    round: int = 0
    base_card: AnyPath | None = None

    @classmethod
    def of(cls, checkpoint: ModelFolder) -> "_Source":
        run_dir = checkpoint.path.parent.parent
        is_of_run = checkpoint.path.parent.name == "checkpoints" and checkpoint.path.name.isdecimal()
        config = _read_config(run_dir / "config.yaml") if is_of_run else None
        if config is None:
            name = checkpoint.name or os.fspath(checkpoint.path)
            return cls(_public_name(name), _hub_repository(name), base_card=checkpoint.path / CARD)
        name = full_name(config.model.path, config.model.version)
        return cls(
            _public_name(name),
            _hub_repository(name),
            config,
            read_runs([RunFolder.open_existing(run_dir)])[0].rounds,
            int(checkpoint.path.name),
            _base_card(config),
        )

    @property
    def data_set(self) -> str | None:
        """OWNER/NAME of the task's data set, if it is on the Hub."""
        if self.config is None:
            return None
        task = self.config.task
        if isinstance(task, FileConfig):
            return next((split.name.repository for split in task.hub_splits()), None)
        return DATA_SETS.get(task.name)


def _read_config(path: Path) -> RunConfig | None:
    """A run's config; None, and a line, if it cannot be read: the checkpoint is whole without it."""
    if not path.is_file():
        return None
    try:
        return read_config(path)
    except UserError as error:
        say(f"{error}; the model card will say nothing of the run")
        return None


def _public_name(name: str) -> str:
    return name if not is_local(name) else os.path.basename(os.path.normpath(name))


def _hub_repository(name: str) -> str | None:
    hub_name = parse_hub_name(name)
    return hub_name.repository if hub_name else None


def _introduction(source: _Source) -> Iterator[str]:
    if source.config is None:
        yield f"# {escaped(source.base)}, exported\n"
        yield f"Exported by tpt_jax {VERSION} from {_linked(source)}.\n"
        return
    rounds = "1 round" if source.round == 1 else f"{source.round} rounds"
    yield f"# {escaped(words.plain(source.config.name))}\n"
    yield (
        f"{_linked(source)} after {rounds} of {ABOUT}: the model sampled answers to the training "
        f"questions of the task {escaped(source.config.task.name)}, and was fine-tuned on its own right ones, by "
        f"tpt_jax {VERSION}.\n"
    )


def _linked(source: _Source) -> str:
    if source.hub_base:
        return f"[{escaped(source.hub_base)}](https://huggingface.co/{source.hub_base})"
    return escaped(words.plain(source.base))


def _results(source: _Source) -> Iterator[str]:
    """A table of the rounds so far, and what it shows."""
    rounds = [result for result in source.rounds if result.index <= source.round and "pass_at_1" in result.rates]
    if not rounds:
        return
    numbers = rounds[-1].numbers
    yield "## Held-out questions\n"
    yield (
        f"Pass@1 on {words.count(numbers.get('num_questions'))} questions, "
        f"{words.count(numbers.get('num_samples'))} samples each, with 95% intervals over questions: by the final "
        "answer in any form, and only in the form that the prompt asks for.\n"
    )
    yield "| model | Pass@1, any form | 95% interval | Pass@1, requested form | 95% interval |"
    yield "|---|---|---|---|---|"
    for result in rounds:
        cells = (cell for name in ("pass_at_1", "strict_pass_at_1") for cell in _cells(result.rates.get(name)))
        yield f"| {words.stage_of_model(result.index)} | {' | '.join(cells)} |"
    yield ""
    last = rounds[-1]
    if last.index == source.round > 0 and last.change is not None and last.change.interval is not None:
        low, high = last.change.interval
        chance = " It may be due to chance: the interval includes zero." if low <= 0 <= high else ""
        yield (
            f"Change of Pass@1 since the base model: {words.points(last.change.value)} points (95% interval "
            f"{words.points(low)} to {words.points(high)}, paired by question).{chance}\n"
        )


def _cells(rate: Rate | None) -> tuple[str, str]:
    if rate is None:
        return words.DASH, words.DASH
    return words.percent(rate.value), words.interval(rate.interval) if rate.interval else words.DASH


def _usage(dtype: str, adapter: bool) -> Iterator[str]:
    package, loader = ("peft", "AutoPeftModelForCausalLM") if adapter else ("transformers", "AutoModelForCausalLM")
    code = (
        f"from {package} import {loader}\nfrom transformers import AutoTokenizer\n\n"
        f'model = {loader}.from_pretrained(NAME, dtype="{dtype}")  # NAME: this repository, or its folder\n'
        "tokenizer = AutoTokenizer.from_pretrained(NAME)"
    )
    yield "## Use\n"
    yield fenced(code, "python")


def _recipe(source: _Source, adapter: bool) -> Iterator[str]:
    if source.config is None:
        return
    settings = plain_values(source.config)
    shown = {key: _without_folders(settings[key]) for key in RECIPE}
    recipe = {"name": one_line(source.config.name), "model": {"path": source.base}, **shown}
    yield "## How it was made\n"
    flag = " --adapter" if adapter else ""
    export = f"tpt export --checkpoint RUN_DIR/checkpoints/{source.round:03}{flag} --output FOLDER"
    yield fenced(f"tpt run --config config.yaml --run_dir RUN_DIR\n{export}")
    yield "with these settings in `config.yaml`:\n"
    yield fenced(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=False), "yaml")


def _without_folders(value: Any) -> Any:
    """Settings without the folders of this machine: only the last part of an absolute path."""
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~")) and "\n" not in value:
        return os.path.basename(os.path.normpath(value))
    return value


def _licence(source: _Source) -> dict[str, str]:
    """The licence as the base model's own card names it, if that card is on this machine."""
    if source.base_card is None or is_remote(source.base_card):
        return {}
    metadata = read_metadata(source.base_card)
    return {key: text for key in HUB_LICENCES if (text := text_of(metadata, key)) is not None}


def _base_card(config: RunConfig) -> AnyPath | None:
    """The base model's own card; None if it is not on this machine."""
    name, version = config.model.path, config.model.version
    if version is None:
        return local_folder(name, None) / CARD
    hub_name = parse_hub_name(full_name(name, version))
    return cached_file(hub_name, version, CARD) if hub_name else None


def _licence_note(source: _Source, licence: Mapping[str, str]) -> Iterator[str]:
    yield "## Licence\n"
    name = licence.get("license_name") or licence.get("license")
    terms = f"whose card says: {escaped(name)}" if name else "see its page"
    yield f"These weights are derived from {_linked(source)} and under its licence, {terms}."
