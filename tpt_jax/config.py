"""A run's configuration: frozen dataclasses, which config_parsing.py fills from files, options and keyword arguments.

A dataclass field is the only declaration of an option: its name, type, default and meaning.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT, UserError, one_line
from tpt_jax.prune.registry import DEFAULT_STEPS, dump_steps, parse_steps
from tpt_jax.prune.step import AnyStep
from tpt_jax.records import Until
from tpt_jax.tasks import AnyTaskConfig, TaskConfig

Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
Sampling = Literal["think", "evaluate"]  # the sections that configure a sampling pass
PLAIN_TEMPLATE_NAME = "plain"
AUTO = "auto"  # num_slots that the start-up chooses
STEPS = re.compile(r"\d{1,9}:\d{1,9}", re.ASCII)


def _read_template(value: str) -> str:
    """A template's text, so that a run's config holds it even if the file changes."""
    if value == PLAIN_TEMPLATE_NAME or "{" in value:
        return value
    if not Path(value).is_file():
        raise ValueError('no such file; give a file with a Jinja chat template, its text, or "plain"')
    return Path(value).read_text(encoding="utf-8")


def _read_num_slots(value: Any) -> int | Literal["auto"]:
    if value == AUTO or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError("must be a whole number from 1, or auto")


def _check_project(value: str | None) -> str | None:
    """By the rules of Weights & Biases, and Trackio's, which would otherwise refuse the name after the compilation."""
    if value is None:
        return None
    if not value.isprintable() or not 1 <= len(value) <= 128 or any(each in "/\\#?%:" for each in value):
        raise ValueError("must be 1 to 128 characters on one line, without / \\ # ? % :")
    return value


def _check_steps(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and STEPS.fullmatch(value) and steps_of(value)):
        return value
    # YAML reads 10:13 without quotes as a number of minutes and seconds.
    raise ValueError('must be A:B with A below B, in quotes in a file: "10:13" are steps 10, 11 and 12')


def steps_of(text: str | None) -> range:
    """The steps of "10:13", which are 10, 11 and 12; None has none."""
    first, _, end = (text or "0:0").partition(":")
    return range(int(first), int(end))


RunName = Annotated[str, pydantic.Field(min_length=1), pydantic.AfterValidator(one_line)]  # it is printed
Project = Annotated[str | None, pydantic.AfterValidator(_check_project)]
StepRange = Annotated[str | None, pydantic.PlainValidator(_check_steps)]
Template = Annotated[str, pydantic.AfterValidator(_read_template)]
NumSlots = Annotated[int | Literal["auto"], pydantic.PlainValidator(_read_num_slots)]
Steps = Annotated[
    tuple[AnyStep, ...],
    pydantic.PlainValidator(parse_steps),
    pydantic.PlainSerializer(dump_steps),
]


# The sections.


@dataclass(frozen=True, config=STRICT)
class ModelSource:
    """Which model to load, and its compute type.

    Attributes:
      path: a Hugging Face checkpoint folder, a run's checkpoint, or "quickstart" for the model shipped in the package;
        or the name of a model that is downloaded: "owner/name" or "hf://owner/name@revision" from the Hugging Face Hub,
        "kaggle://owner/model/framework/variation" from Kaggle. A folder of that name wins.
      version: the commit on the Hub, or the version on Kaggle; null for the newest when the run starts, recorded
        here so that a resumed run has the same weights.
      compute_dtype: for sampling and for the forward and backward pass; master weights are always fp32.
    """

    path: str
    version: str | None = None
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"


@dataclass(frozen=True, config=STRICT)
class MeshConfig:
    """Number of devices along each mesh axis; -1 on one axis takes all remaining devices.

    Attributes:
      data: splits batches; weights are replicated.
      fsdp: splits batches and, during training, the weights and the optimizer state.
      tensor: splits attention heads, the feed-forward dimension and the vocabulary.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclass(frozen=True, config=STRICT)
class PromptConfig:
    """How questions are put to the model, the same in sampling, training and evaluation.

    Attributes:
      instruction: follows the question; null for the task's own instruction, "" for none.
      num_shots: how many of the task's worked examples precede the question.
      template: a Jinja chat template or a file with one; "plain" for the built-in "Question: ... Answer:"; null for the
        checkpoint's own, or plain if it has none.
      stop: texts before which a completion ends; null for the next "Question:" with the plain template, and none with
        others.
    """

    instruction: str | None = None
    num_shots: NonNegativeInt = 0
    template: Template | None = None
    stop: tuple[Annotated[str, pydantic.Field(min_length=1)], ...] | None = None


@dataclass(frozen=True, config=STRICT)
class SamplingConfig:
    """How traces are sampled.

    Attributes:
      num_questions: questions per sampling pass; null for all. Each think stage continues where the last one ended.
      num_samples: traces per question.
      temperature: 0 is greedy decoding.
      top_k: samples from the k most likely tokens; null for no limit.
      top_p: samples from the smallest set of most likely tokens with total probability p; 1 for no limit.
      min_p: samples from tokens at least p times as likely as the most likely one; 0 for no limit. These three filters
        apply after the temperature and in this order, as in transformers.
      max_prompt_tokens: longer prompts are skipped and counted; the task sets the default.
      max_new_tokens: a trace without an end of turn is cut off here; the task sets the default.
      num_slots: traces decoded concurrently; a finished trace frees its slot for the next. auto takes as many as fit in
        the devices' memory at start-up, unless fewer are as fast.
      cache_type: element type of the KV cache: compute (model.compute_dtype), or int8 (half the memory of bfloat16).
      weights: type of the sampling copy of the weights: compute, or int8 (half the memory and half the bytes that a
        decode step reads; norms and biases stay in the compute type; slower on a CPU). Training always uses the fp32
        master weights.
    """

    num_questions: PositiveInt | None = None
    num_samples: PositiveInt = 4
    temperature: NonNegativeFloat = 0.8
    top_k: PositiveInt | None = None
    top_p: Fraction = 1.0
    min_p: Fraction = 0.0
    max_prompt_tokens: PositiveInt = TaskConfig.generation.max_prompt_tokens
    max_new_tokens: PositiveInt = TaskConfig.generation.max_new_tokens
    num_slots: NumSlots = 64
    cache_type: Literal["compute", "int8"] = "compute"
    weights: Literal["compute", "int8"] = "compute"


@dataclass(frozen=True, config=STRICT)
class ThinkConfig(SamplingConfig):
    """How traces to train on are sampled.

    Attributes:
      until: enough (a question is sampled until it has prune.max_per_question kept traces, num_samples times at most,
        and the round until it has prune.max_traces; questions go in an order drawn from the seed) or all (every
        question num_samples times). The training set is the same. A step of prune.steps that compares the samples of a
        question gets all of them; one that looks at the whole round gets all samples of all questions.
      max_samples: a question with no kept trace among num_samples gets more samples, up to twice as many, four times
        and so on, and this many at most, so that hard questions are trained on too; null for no further samples.
      token_scores: keep the log-probability of every sampled token and the entropy of its distribution in the trace
        files, some 14 bytes a token; steps of prune.steps that need them switch this on.
    """

    until: Until = "enough"
    max_samples: PositiveInt | None = None
    token_scores: bool = False

    def __post_init__(self) -> None:
        if self.max_samples is not None and self.max_samples < self.num_samples:
            raise UserError(
                f"think.max_samples ({self.max_samples}) must be at least think.num_samples ({self.num_samples})"
            )


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig(SamplingConfig):
    """How held-out questions are answered: SamplingConfig with another default temperature."""

    temperature: NonNegativeFloat = 0.7


@dataclass(frozen=True, config=STRICT)
class PruneConfig:
    """Which traces are kept.

    Attributes:
      steps: what selects traces, in this order, then what trims them: a list of names, or of one-key mappings with a
        step's options, [correct, unique_calculations, {shortest: {count: 1}}]. docs/pruning.md has a table of all.
      max_per_question, max_traces: most traces kept per question and per round: the first samples of a question, and
        the first questions in an order drawn from the seed; null for no limit.
      num_workers: checker processes; null for one per processor core.
      seconds_per_trace: time limit of a check; past it the trace is judged wrong. The task sets the default.
      run_code_without_sandbox: run model-written programs with your own user rights on hosts without a sandbox. Such a
        program can read and delete everything that you can.
    """

    steps: Steps = DEFAULT_STEPS
    max_per_question: PositiveInt = 1
    max_traces: PositiveInt | None = 2_000
    num_workers: PositiveInt | None = None
    seconds_per_trace: PositiveFloat = TaskConfig.seconds_per_trace
    run_code_without_sandbox: bool = False


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """The optimizer and its learning-rate schedule.

    Attributes:
      name: adamw (Loshchilov and Hutter, arXiv 1711.05101); adafactor (Shazeer and Stern, arXiv 1804.04235; no
        momentum, factored second moments: almost no memory); muon (Jordan 2024; orthogonalises matrix updates, other
        weights use adamw).
      learning_rate: peak rate, reached at the end of warm-up; null for 1e-6, as in the paper, or 2e-4 with LoRA.
      warmup_fraction: share of all steps with a rate rising linearly from 0; afterwards it decays to 0 as a cosine.
      weight_decay: decoupled; norms are exempt.
      beta1, beta2: decay of adamw's and muon's moments.
      first_moment, second_moment: types that adamw's moments (muon's first moment) are stored in; weights are fp32.
      max_grad_norm: gradients with a larger global norm are scaled down to it.
    """

    name: Literal["adamw", "adafactor", "muon"] = "adamw"
    learning_rate: PositiveFloat | None = None
    warmup_fraction: Fraction = 0.1
    weight_decay: NonNegativeFloat = 0.0
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    first_moment: Literal["float32", "bfloat16"] = "float32"
    second_moment: Literal["float32", "bfloat16"] = "float32"
    max_grad_norm: PositiveFloat = 1.0


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    """Loss of a completion token with probability p; focal and clipped as in the public TPT code (soheilzi/TPT).

    Attributes:
      name: cross_entropy (-log p); focal (-(1 - p)^gamma log p: Lin et al., arXiv 1708.02002); clipped (-log p, but 0
        for tokens that the model is already sure of).
      focal_gamma: gamma; at least 1, because below it the slope at p = 1 is infinite.
      clip_above: clipped has no loss above this p.
    """

    name: Literal["cross_entropy", "focal", "clipped"] = "cross_entropy"
    focal_gamma: Annotated[float, pydantic.Field(ge=1)] = 2.0
    clip_above: Fraction = 0.9


AdapterTarget = Literal["query", "key", "value", "output", "gate", "up", "down"]
ADAPTER_TARGETS: tuple[AdapterTarget, ...] = get_args(AdapterTarget)
FULL_LEARNING_RATE = 1e-6  # the paper's
LORA_LEARNING_RATE = 2e-4  # Hu et al., table 12, and Dettmers et al., arXiv 2305.14314, table 9


@dataclass(frozen=True, config=STRICT)
class LoRAConfig:
    """Trains low-rank adapters of frozen weights in place of all weights (Hu et al., arXiv 2106.09685).

    Attributes:
      rank: of an adapter's two matrices A and B.
      alpha: A B is multiplied by alpha / rank.
      targets: the weights that get an adapter, in every layer; all by default (Dettmers et al., arXiv 2305.14314).
      frozen: what the frozen weights are stored in; with int8 the matrices of the layers are, the rest in bfloat16.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    targets: Annotated[tuple[AdapterTarget, ...], pydantic.Field(min_length=1)] = ADAPTER_TARGETS
    frozen: Literal["bfloat16", "int8"] = "bfloat16"


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Fine-tuning on the kept traces.

    Attributes:
      start_from: initial weights of a round's training: the previous round's, or the base model's.
      traces_of: train on this round's kept traces, or on those of all rounds so far.
      num_epochs, max_steps: passes over the traces, and the most steps, which may end training earlier.
      rows, sequence_length, micro_batches: a step trains on micro_batches x rows sequences of packed traces.
      attention: xla, splash (TPU), tokamax (GPU), or auto for the best one on the available devices.
      remat: what the backward pass recomputes to save memory: nothing (none), all but matrix products (dots), all but
        the outputs of attention and MLP (outputs), or everything (full).
      offload: keep the fp32 weights in host memory while the model samples. The optimizer state exists only during
        training in either case.
      save_every: steps between training checkpoints, from which an interrupted training resumes.
      lora: train adapters only; null trains all weights.
    """

    start_from: Literal["previous", "base"] = "previous"
    traces_of: Literal["round", "all"] = "round"
    num_epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    rows: PositiveInt = 16
    sequence_length: PositiveInt = 1024
    micro_batches: PositiveInt = 1
    attention: Literal["auto", "xla", "splash", "tokamax"] = "auto"
    remat: Literal["none", "dots", "outputs", "full"] = "none"
    offload: bool = False
    save_every: PositiveInt = 100
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig | None = None

    @property
    def learning_rate(self) -> float:
        """The peak rate."""
        default = FULL_LEARNING_RATE if self.lora is None else LORA_LEARNING_RATE
        return default if self.optimizer.learning_rate is None else self.optimizer.learning_rate


@dataclass(frozen=True, config=STRICT)
class TrackersConfig:
    """Where the curves are sent, besides metrics.jsonl and TensorBoard's files, which every run writes.

    Attributes:
      wandb: a project of Weights & Biases; with WANDB_MODE=offline it is kept in the run folder.
      trackio: a project of Trackio, on this machine unless TRACKIO_SPACE_ID names a Space.
    """

    wandb: Project = None
    trackio: Project = None


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """All settings of a run.

    Attributes:
      name: the run's name, for its folder and report.
      seed: for sampling, selection and training order; runs with equal config and seed are identical.
      num_rounds: rounds of think, prune, train and evaluate; round 0 only evaluates the base model.
      early_stop: end the run after a round whose Pass@1 is not above that of the best round before; the best
        checkpoint is kept.
      keep_checkpoints: keep those of the newest rounds, this many, and of the best round by Pass@1; null keeps all.
      trackers: also send the curves there.
      profile_steps: steps of each training to trace, "10:13" for 10, 11 and 12; the traces are in the folder profiles.
      profile_chunks: chunks of decode steps of each think stage to trace, likewise.
    """

    name: RunName
    model: ModelSource
    task: Annotated[AnyTaskConfig, pydantic.Field(discriminator="name")]
    prompt: PromptConfig = PromptConfig()
    seed: Seed = 0
    num_rounds: PositiveInt = 4
    early_stop: bool = False
    keep_checkpoints: PositiveInt | None = None
    mesh: MeshConfig = MeshConfig()
    think: ThinkConfig = ThinkConfig()
    prune: PruneConfig = PruneConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    trackers: TrackersConfig = TrackersConfig()
    profile_steps: StepRange = None
    profile_chunks: StepRange = None
