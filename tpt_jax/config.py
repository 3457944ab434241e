"""A run's configuration: frozen dataclasses, filled from YAML and command-line overrides, every error one line.

The dataclass field is the only declaration of an option: its name, type, default and meaning.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT, UserError, suggestion
from tpt_jax.records import Keep
from tpt_jax.tasks import TASKS, AnyTaskConfig, TaskConfig

Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
PositiveFraction = Annotated[float, pydantic.Field(gt=0, le=1)]
Sampling = Literal["think", "evaluate"]  # the sections that sample


@dataclass(frozen=True, config=STRICT)
class ModelSource:
    """Which model, and the type that it computes in.

    Attributes:
      path: a Hugging Face checkpoint folder, a run's checkpoint, or "quickstart" for the one that ships in the package.
      source: where the model can be had; told to those who do not have it.
      compute_dtype: of sampling and of the forward and backward pass; master weights are fp32 always.
    """

    path: str
    source: str | None = None
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"


@dataclass(frozen=True, config=STRICT)
class MeshConfig:
    """The number of devices along each mesh axis; one of them may be -1: all that are left.

    Attributes:
      data: batches are split over it and weights are copied.
      fsdp: batches are split over it, and in training the weights and the optimizer state too.
      tensor: heads, the feed-forward dimension and the vocabulary are split over it.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclass(frozen=True, config=STRICT)
class PromptConfig:
    """How questions are asked, while sampling, training and testing alike.

    Attributes:
      instruction: stands after the question; null for the task's own, "" for none.
      num_shots: of the task's worked examples that stand before the question.
    """

    instruction: str | None = None
    num_shots: NonNegativeInt = 0


@dataclass(frozen=True, config=STRICT)
class SamplingConfig:
    """How traces are sampled.

    Attributes:
      num_questions: asked in one go; null for all there are. Think takes the next ones each round.
      num_samples: traces a question.
      temperature: 0 takes the likeliest token.
      top_k: only the k likeliest tokens are drawn; null for no limit.
      top_p: only the fewest likeliest tokens whose probabilities reach p; 1 for no limit.
      min_p: only tokens at least p times as likely as the likeliest; 0 for no limit. The three come after the
        temperature and in this order, as in transformers.
      max_prompt_tokens: longer prompts are skipped and counted; what the task needs if not given.
      max_new_tokens: a trace without an end of turn is cut here; what the task needs if not given.
      num_slots: traces decoded side by side; a finished one makes room for the next.
      cache_type: of keys and values: model.compute_dtype, or int8, which takes half of bfloat16's memory.
    """

    num_questions: PositiveInt | None = None
    num_samples: PositiveInt = 4
    temperature: NonNegativeFloat = 0.8
    top_k: PositiveInt | None = None
    top_p: PositiveFraction = 1.0
    min_p: Fraction = 0.0
    max_prompt_tokens: PositiveInt = TaskConfig.generation.max_prompt_tokens
    max_new_tokens: PositiveInt = TaskConfig.generation.max_new_tokens
    num_slots: PositiveInt = 64
    cache_type: Literal["compute", "int8"] = "compute"


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig(SamplingConfig):
    """How held-out questions are answered: as SamplingConfig says, at a temperature of its own."""

    temperature: NonNegativeFloat = 0.7


@dataclass(frozen=True, config=STRICT)
class PruneConfig:
    """Which traces are kept.

    Attributes:
      keep: correct (the right answer in any form), strict (in the form that was asked for), any (right or wrong: the
        paper's control).
      max_per_question, max_traces: at most so many a question and a round, drawn with the seed; null for no limit.
      num_workers: checker processes; null for one a processor core.
      seconds_per_trace: a checker that takes longer is killed and the trace is called wrong; what the task needs if
        not given.
      run_code_without_sandbox: run the programs that the model wrote with your own rights, on hosts that have no
        sandbox: they can read and delete what you can.
    """

    keep: Keep = "correct"
    max_per_question: PositiveInt = 1
    max_traces: PositiveInt | None = 2_000
    num_workers: PositiveInt | None = None
    seconds_per_trace: PositiveFloat = TaskConfig.seconds_per_trace
    run_code_without_sandbox: bool = False


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """How weights move.

    Attributes:
      name: adamw (Loshchilov and Hutter, arXiv 1711.05101); adafactor (Shazeer and Stern, arXiv 1804.04235; without
        momentum, second moments of rows and columns only: next to no memory); muon (Jordan 2024; matrices are
        orthogonalised, the other weights move by adamw).
      learning_rate: at the end of the warm-up.
      warmup_fraction: of all steps; the rate rises linearly from 0, then falls to 0 as a cosine.
      weight_decay: decoupled; not on norms.
      first_moment, second_moment: the types that adamw's moments (muon's first one) are kept in; weights are fp32.
      max_grad_norm: gradients whose global norm is larger are scaled down to it.
    """

    name: Literal["adamw", "adafactor", "muon"] = "adamw"
    learning_rate: PositiveFloat = 1e-6
    warmup_fraction: Fraction = 0.1
    weight_decay: NonNegativeFloat = 0.0
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    first_moment: Literal["float32", "bfloat16"] = "float32"
    second_moment: Literal["float32", "bfloat16"] = "float32"
    max_grad_norm: PositiveFloat = 1.0


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    """What a completion token of probability p costs; focal and clipped as in the public TPT code (soheilzi/TPT).

    Attributes:
      name: cross_entropy (-log p); focal (-(1 - p)^gamma log p: Lin et al., arXiv 1708.02002); clipped (-log p, and
        nothing for tokens of which the model is sure already).
      focal_gamma: gamma; at least 1, or the slope of a sure token is infinite.
      clip_above: the p beyond which clipped has no loss.
    """

    name: Literal["cross_entropy", "focal", "clipped"] = "cross_entropy"
    focal_gamma: Annotated[float, pydantic.Field(ge=1)] = 2.0
    clip_above: Fraction = 0.9


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Fine-tuning on the kept traces.

    Attributes:
      start_from: the weights that a round's training starts from: the previous round's or the model as given.
      traces_of: this round's traces, or those of all rounds so far.
      num_epochs: passes over the traces; max_steps ends them sooner.
      rows, sequence_length, micro_batches: a step trains on micro_batches x rows sequences of packed traces.
      attention: xla, splash (TPU), tokamax (GPU), or auto for the one that suits the devices.
      remat: what the backward pass computes anew to save memory: nothing, all but matrix products, everything.
      offload: while the model samples, keep the fp32 weights in the hosts' memory; the optimizer's state is only there
        while a round trains in any case.
      save_every: steps after which the state of a training under way is saved, to go on from if it is killed.
    """

    start_from: Literal["previous", "base"] = "previous"
    traces_of: Literal["round", "all"] = "round"
    num_epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    rows: PositiveInt = 16
    sequence_length: PositiveInt = 1024
    micro_batches: PositiveInt = 1
    attention: Literal["auto", "xla", "splash", "tokamax"] = "auto"
    remat: Literal["none", "dots", "full"] = "none"
    offload: bool = False
    save_every: PositiveInt = 100
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """Everything that a run is given.

    Attributes:
      name: of the run, for the report.
      seed: of sampling, selection and the order of training; two runs with the same config and seed are the same run.
      num_rounds: think, prune, train, evaluate; round 0 only evaluates the model as given.
      keep_checkpoints: of so many newest rounds, and of the best one by Pass@1; null keeps all.
      wandb_project: also log to this Weights & Biases project.
    """

    name: str
    model: ModelSource
    task: Annotated[AnyTaskConfig, pydantic.Field(discriminator="name")]
    prompt: PromptConfig = PromptConfig()
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0
    num_rounds: PositiveInt = 4
    keep_checkpoints: PositiveInt | None = None
    mesh: MeshConfig = MeshConfig()
    think: SamplingConfig = SamplingConfig()
    prune: PruneConfig = PruneConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    wandb_project: str | None = None


_ADAPTER = pydantic.TypeAdapter(RunConfig)


def load_config(path: Path, overrides: Mapping[str, str] | None = None) -> RunConfig:
    """Reads a YAML file and lays overrides ("train.optimizer.learning_rate": "1e-5") over it.

    A file may begin from another one: `extends: quickstart.yaml`, a path relative to its own folder.

    Raises:
      UserError: a missing file, or the first key that is unknown or whose value does not fit.
    """
    tree = _read_tree(path, below=())
    for key, text in (overrides or {}).items():
        _set(tree, key.split("."), _value(key, text, tree))
    return parse_config(tree)


def _value(key: str, text: str, tree: Mapping[str, Any]) -> Any:
    """What an override means: YAML, but for a key that takes text the text itself: to YAML "#" begins a comment."""
    *path, last = key.split(".")
    section = _section(path, _task_name(tree))
    wanted = {field.name: field.type for field in dataclasses.fields(section)}.get(last) if section else None
    if wanted in (str, Path) or (wanted in (str | None, Path | None) and text != "null"):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--{key} {text}: not YAML; quote what is meant as text") from error


def _read_tree(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """A file's keys over those of the file that it extends; `below` are the files that extend this one."""
    if path.resolve() in below:
        raise UserError(f"{path}: extends itself; let it extend another file, or none")
    if not path.is_file():
        raise UserError(f"{path}: no such config file; configs/quickstart.yaml is one to start from")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must be a mapping of keys to values, as in configs/quickstart.yaml")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    return _merged(_read_tree(path.parent / str(parent), (*below, path.resolve())), tree)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def parse_config(tree: Mapping[str, Any]) -> RunConfig:
    """Checks a tree of plain values against the dataclasses.

    Raises:
      UserError: the first key that is unknown or whose value does not fit.
    """
    try:
        return _ADAPTER.validate_python(_merged(_defaults_of_task(tree), dict(tree)))
    except pydantic.ValidationError as error:
        raise UserError(_one_line(error)) from error


def _defaults_of_task(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What the task needs, where it is one that we know: the config's own defaults suit none in particular."""
    task = TASKS.get(_task_name(tree))
    if task is None:
        return {}
    lengths = dataclasses.asdict(task.generation)
    return {"think": lengths, "evaluate": lengths, "prune": {"seconds_per_trace": task.seconds_per_trace}}


def _task_name(tree: Mapping[str, Any]) -> str:
    section = tree.get("task")
    return str(section.get("name")) if isinstance(section, Mapping) else ""


def dump_config(config: RunConfig) -> str:
    """The YAML that parse_config reads back to the same config."""
    return yaml.safe_dump(_ADAPTER.dump_python(config, mode="json"), sort_keys=False, allow_unicode=True)


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """["--train.rows", "8", "--seed=1"] as {"train.rows": "8", "seed": "1"}.

    Raises:
      UserError: something that is not an option, or an option without a value.
    """
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise UserError(f"{option!r} stands alone; write overrides as --key.sub VALUE")
        key, equals, value = option[2:].partition("=")
        if not equals:
            if not rest:
                raise UserError(f"--{key} has no value; write --{key} VALUE")
            value = rest.pop(0)
        overrides[key] = value
    return overrides


def _set(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UserError(f"--{'.'.join(path)}: {key} is a value, not a section")
    tree[path[-1]] = value


def _one_line(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    # The location of a value in a union names the chosen member too; a reader knows only the keys.
    path = [str(part) for part in first["loc"]]
    if len(path) > 1 and path[0] == "task":
        path.pop(1)
    key = ".".join(path)
    if first["type"] == "union_tag_invalid":
        tags = first.get("ctx", {})
        return f"{key}.name ({tags.get('tag')!r}): unknown; choose from {tags.get('expected_tags')}"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        section = _section(path[:-1], str(first["loc"][1]) if path[0] == "task" else "")
        known = [field.name for field in dataclasses.fields(section)]
        return f"{key}: unknown key; {suggestion(path[-1], known)}"
    if first["type"] == "union_tag_not_found":
        return f"{key}.name: missing; the config must set it"
    if first["type"] in ("missing", "missing_argument"):
        return f"{key}: missing; the config must set it"
    return f"{key} ({first['input']!r}): {first['msg'][0].lower()}{first['msg'][1:]}"


def _section(path: Sequence[str], task_name: str) -> Any:
    """The dataclass of the section that keys lead to; None where they lead nowhere."""
    section: Any = RunConfig
    for key in path:
        fields = {field.name: field.type for field in dataclasses.fields(section)}
        section = TASKS.get(task_name) if key == "task" else fields.get(key)
        if not dataclasses.is_dataclass(section):
            return None
    return section
