"""What a run needs before its first round: model, task, prompt, mesh, compiled sampler and running checkers."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from flax import nnx
from jax.sharding import Mesh

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.checks.pool import CheckerPool
from tpt_jax.checks.registry import checker_name, without_sandbox
from tpt_jax.config import PromptConfig, RunConfig, Sampling, SamplingConfig
from tpt_jax.errors import UserError
from tpt_jax.io.record_files import MAX_BROKEN_SHARE
from tpt_jax.models.masters import master_bytes
from tpt_jax.prompts import Prompt, load_prompt
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.records import QuestionSet, Trace
from tpt_jax.runtime import hosts
from tpt_jax.runtime.compilations import CompilationCounter
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import DECODE_RULES, TRAIN_RULES, Layout
from tpt_jax.tasks import Task, load_task
from tpt_jax.terminal import listed, say
from tpt_jax.think.sampler import SamplerProgram, compile_sampler
from tpt_jax.think.sampling import Filters
from tpt_jax.think.sampling_plan import SamplingPlan, plan_sampling, think_shape
from tpt_jax.think.stop_strings import StopStrings, make_stop_strings
from tpt_jax.train.compile import TrainerProgram, compile_trainer, compiled_settings

CONTRACT_QUESTIONS = 16  # of each split, on which the prompt format is checked at start-up


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that sampling and judging need."""

    config: RunConfig
    model: ModelFolder
    task: Task
    prompt: Prompt
    stop_strings: StopStrings | None
    mesh: Mesh
    plans: Mapping[Sampling, SamplingPlan]
    sampler: SamplerProgram
    pool: CheckerPool
    compilations: CompilationCounter

    def load(self, folder: ModelFolder, *, verify: bool = True) -> nnx.State:
        """A model's parameters, sharded for training."""
        config = self.config
        return folder.load(Layout(self.mesh, TRAIN_RULES), lora=config.train.lora, seed=config.seed, verify=verify)


@contextlib.contextmanager
def set_up(config: RunConfig, samplings: Sequence[Sampling]) -> Iterator[Setup]:
    """Reads model and task, checks the prompt, compiles the sampler and starts the checkers.

    Args:
      samplings: the config sections to compile the sampler for.

    Raises:
      UserError: something the config names is missing or does not fit.
    """
    with Workshop() as workshop:
        yield workshop.set_up(config, samplings)


class Workshop:
    """Makes setups, and builds what several of them have in common only once: all but the config is shared.

    Its checkers work until the `with` block ends.
    """

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()
        self._compilations = CompilationCounter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def set_up(self, config: RunConfig, samplings: Sequence[Sampling]) -> Setup:
        """What a run needs; see the function `set_up`."""
        started = time.monotonic()
        Pipeline.from_config(config.prune, config.seed).require()
        model, task, pool, mesh = self.model(config), self._task(config), self._pool(config), self._mesh(config)
        of_prompt = (config.model, config.prompt, _of_pool(config))
        prompt = self._build("prompt", of_prompt, lambda: _checked_prompt(config.prompt, model, task))
        stop_strings = self._build(
            "stop strings",
            of_prompt,
            lambda: make_stop_strings(prompt.stop, prompt.tokenizer, model.config.vocab_size),
        )

        def plan(sampling: Sampling) -> SamplingPlan:
            questions = task.train if sampling == "think" else task.test
            return plan_prompts(
                {question.id: question.question for question in questions},
                prompt.prompt_ids,
                getattr(config, sampling),
                mesh,
                option=f"{sampling}.",
                stop_strings=stop_strings,
            )

        plans: dict[Sampling, SamplingPlan] = {
            sampling: self._build(
                f"plan of {sampling}",
                (of_prompt, config.mesh, getattr(config, sampling)),
                functools.partial(plan, sampling),
            )
            for sampling in samplings
        }
        if "think" in plans:
            shape = think_shape(plans["think"].shape, config, Layout(mesh, DECODE_RULES).batch_ways)
            plans["think"] = dataclasses.replace(plans["think"], shape=shape)
        shapes = {sampling: plan.shape for sampling, plan in plans.items()}

        lora = config.train.lora
        resident = 0 if config.train.offload else master_bytes(model.config, Layout(mesh, TRAIN_RULES), lora)

        def compile_programs() -> SamplerProgram:
            say(
                f"{config.name}: {model.config.num_parameters / 1e6:,.1f}M parameters, mesh {dict(mesh.shape)}, "
                f"{len(task.train)} training questions, {len(task.test)} held out; compiling"
            )
            sampler = compile_sampler(
                model.config,
                mesh,
                compute_dtype=config.model.compute_dtype,
                shapes=shapes,
                stop_ids=prompt.stop_ids,
                lora=lora,
                resident=resident,
            )
            say(f"sampler ready after {time.monotonic() - started:.0f} s")
            return sampler

        of_sampler = (config.model, config.mesh, shapes, prompt.stop_ids, lora, resident)
        sampler = self._build("sampler", of_sampler, compile_programs)
        return Setup(config, model, task, prompt, stop_strings, mesh, plans, sampler, pool, self._compilations)

    def trainer(self, config: RunConfig) -> TrainerProgram:
        """The compiled train stage."""
        train = compiled_settings(config.train)
        return self._build(
            "trainer",
            (config.model, config.mesh, train),
            lambda: compile_trainer(
                self.model(config).config, self._mesh(config), compute_dtype=config.model.compute_dtype, train=train
            ),
        )

    def model(self, config: RunConfig) -> ModelFolder:
        """The folder of the model; its weights fit its config."""

        def open_folder() -> ModelFolder:
            model = ModelFolder.open(config.model.path, config.model.version)
            model.check_weights()
            return model

        return self._build("model", config.model, open_folder)

    def _mesh(self, config: RunConfig) -> Mesh:
        return self._build("mesh", config.mesh, lambda: make_mesh(config.mesh))

    def _task(self, config: RunConfig) -> Task:
        """The task, without questions that its checkers cannot read."""
        return self._build(
            "readable task", _of_pool(config), lambda: without_unreadable(self._whole_task(config), self._pool(config))
        )

    def _whole_task(self, config: RunConfig) -> Task:
        def load() -> Task:
            task = load_task(config.task)
            if task.num_contaminated:
                say(
                    f"{config.name}: leaving out {task.num_contaminated} training questions that are test questions too"
                )
            return task

        return self._build("task", config.task, load)

    def _pool(self, config: RunConfig) -> CheckerPool:
        def start() -> CheckerPool:
            checker, prune = self._whole_task(config).train.checker, config.prune
            if prune.run_code_without_sandbox:
                checker = without_sandbox(checker)
            return self._stack.enter_context(CheckerPool(checker, prune.num_workers, prune.seconds_per_trace))

        return self._build("pool", _of_pool(config), start)

    def _build(self, part: str, needs: Any, build: Callable[[], Any]) -> Any:
        """What `build` returned when it was first called for this part and these needs."""
        key = f"{part}: {needs!r}"
        if key not in self._built:
            self._built[key] = build()
        return self._built[key]


def _of_pool(config: RunConfig) -> tuple[Any, ...]:
    """What the checkers, and the questions that they can read, depend on."""
    prune = config.prune
    return config.task, prune.num_workers, prune.seconds_per_trace, prune.run_code_without_sandbox


def _checked_prompt(config: PromptConfig, model: ModelFolder, task: Task) -> Prompt:
    prompt = make_prompt(config, model, task)
    questions = (*task.train[:CONTRACT_QUESTIONS], *task.test[:CONTRACT_QUESTIONS])
    prompt.check_contract(questions, model.config.vocab_size)
    return prompt


def without_unreadable(task: Task, pool: CheckerPool) -> Task:
    """The task without questions whose reference answer the checker cannot read; each host checks its share.

    Raises:
      UserError: more than 1% of a split's; names the first five.
    """
    questions = (*task.train, *task.test)
    indices = hosts.own_share(range(len(questions)))  # not ids: the two splits may share some
    verdicts = pool.judge((questions[index], Trace(questions[index].id, 0, "")) for index in indices)
    own = [index for index, verdict in zip(indices, verdicts, strict=True) if verdict.unknown]
    unreadable = {index for host in hosts.all_gather("unreadable reference answers", own) for index in host}
    return dataclasses.replace(
        task,
        train=_readable(task, "train", task.train, unreadable, first=0),
        test=_readable(task, "test", task.test, unreadable, first=len(task.train)),
    )


def _readable(task: Task, split: str, questions: QuestionSet, unreadable: set[int], first: int) -> QuestionSet:
    """The questions of a split that are readable; `first` is the index of its first question."""
    left_out = [question for index, question in enumerate(questions, first) if index in unreadable]
    if not left_out:
        return questions
    names = listed([f"{question.id} ({question.answer[:40]!r})" for question in left_out])
    if len(left_out) > MAX_BROKEN_SHARE * len(questions):
        raise UserError(
            f"task {task.name}: checker {checker_name(questions.checker)!r} cannot read {len(left_out)} of "
            f"{len(questions)} {split} reference answers, more than {MAX_BROKEN_SHARE:.0%}: {names}; fix them, or "
            "name another checker"
        )
    say(f"task {task.name}: leaving out {len(left_out)} {split} questions with unreadable reference answers: {names}")
    return questions.only([question for index, question in enumerate(questions, first) if index not in unreadable])


def make_prompt(config: PromptConfig, model: ModelFolder, task: Task) -> Prompt:
    """The prompt format for the task's questions.

    Raises:
      UserError: the config asks for more worked examples than the task has.
    """
    shots = task.train.shots
    if config.num_shots > len(shots):
        raise UserError(
            f"prompt.num_shots ({config.num_shots}): task {task.name} has {len(shots)} worked examples; ask for no more"
        )
    instruction = task.train.instruction if config.instruction is None else config.instruction
    return load_prompt(model.path, instruction, shots[: config.num_shots], template=config.template, stop=config.stop)


def plan_prompts(
    texts: Mapping[str, str],
    encode: Callable[[str], tuple[int, ...]],
    settings: SamplingConfig,
    mesh: Mesh,
    *,
    option: str,
    stop_strings: StopStrings | None = None,
) -> SamplingPlan:
    """Tokenizes prompts and finds the shape to compile for; each host tokenizes its share.

    Args:
      texts: by id.
      encode: maps a text to the token ids of its prompt.
      option: prefix of a setting's name in messages: "think." or "--".
      stop_strings: those that the sampler will look for.

    Raises:
      UserError: no prompt fits, or the slots do not divide over the data shards.
    """
    own = {name: encode(texts[name]) for name in hosts.own_share(list(texts))}
    prompt_ids = {name: tuple(ids) for host in hosts.all_gather("tokenizing", own) for name, ids in host.items()}
    plan = plan_sampling(
        {name: prompt_ids[name] for name in texts},
        num_questions=settings.num_questions,
        num_samples=settings.num_samples,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_new_tokens=settings.max_new_tokens,
        num_slots=settings.num_slots,
        num_shards=Layout(mesh, DECODE_RULES).batch_ways,
        filters=Filters(settings.top_k, settings.top_p, settings.min_p),
        cache_type=settings.cache_type,
        weights=settings.weights,
        option=option,
    )
    num_states = stop_strings.num_states if stop_strings else 0
    return dataclasses.replace(plan, shape=dataclasses.replace(plan.shape, num_stop_states=num_states))
