"""What a run needs before its first round: model, task, prompt, mesh, compiled sampler and running checkers."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from flax import nnx
from jax.sharding import Mesh

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.checks.pool import CheckerPool
from tpt_jax.checks.registry import checker_name, without_sandbox
from tpt_jax.config import PromptConfig, RunConfig, Sampling, SamplingConfig
from tpt_jax.errors import UserError
from tpt_jax.io.record_files import MAX_BROKEN_SHARE
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
from tpt_jax.think.sampling_plan import SamplingPlan, plan_sampling
from tpt_jax.think.stop_strings import StopStrings, make_stop_strings

CONTRACT_QUESTIONS = 16  # of each split, on which the prompt format is checked at start-up


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that sampling and judging need; created once, at start-up."""

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
        """A model's parameters in fp32, sharded for training."""
        return folder.load(Layout(self.mesh, TRAIN_RULES), verify=verify)


@contextlib.contextmanager
def set_up(config: RunConfig, samplings: Sequence[Sampling]) -> Iterator[Setup]:
    """Reads model and task, checks the prompt, compiles the sampler and starts the checkers.

    Args:
      samplings: the config sections to compile the sampler for.

    Raises:
      UserError: something the config names is missing or does not fit.
    """
    compilations = CompilationCounter()
    started = time.monotonic()
    Pipeline.from_config(config.prune, config.seed).require()
    model = ModelFolder.open(config.model.path, config.model.source)
    model.check_weights()
    task = load_task(config.task)
    if task.num_contaminated:
        say(f"{config.name}: leaving out {task.num_contaminated} training questions that are also test questions")
    checker = task.train.checker
    if config.prune.run_code_without_sandbox:
        checker = without_sandbox(checker)
    with CheckerPool(checker, config.prune.num_workers, config.prune.seconds_per_trace) as pool:
        task = without_unreadable(task, pool)
        prompt = make_prompt(config.prompt, model, task)
        questions = (*task.train[:CONTRACT_QUESTIONS], *task.test[:CONTRACT_QUESTIONS])
        prompt.check_contract(questions, model.config.vocab_size)
        stop_strings = make_stop_strings(prompt.stop, prompt.tokenizer, model.config.vocab_size)
        mesh = make_mesh(config.mesh)
        asked: dict[Sampling, QuestionSet] = {"think": task.train, "evaluate": task.test}
        plans: dict[Sampling, SamplingPlan] = {
            sampling: plan_prompts(
                {question.id: question.question for question in asked[sampling]},
                prompt.prompt_ids,
                getattr(config, sampling),
                mesh,
                option=f"{sampling}.",
                stop_strings=stop_strings,
            )
            for sampling in samplings
        }
        say(
            f"{config.name}: {model.config.num_parameters / 1e6:,.1f}M parameters, mesh {dict(mesh.shape)}, "
            f"{len(task.train)} training questions, {len(task.test)} held out; compiling"
        )
        sampler = compile_sampler(
            model.config,
            mesh,
            compute_dtype=config.model.compute_dtype,
            shapes={sampling: plan.shape for sampling, plan in plans.items()},
            stop_ids=prompt.stop_ids,
        )
        say(f"sampler ready after {time.monotonic() - started:.0f} s")
        yield Setup(config, model, task, prompt, stop_strings, mesh, plans, sampler, pool, compilations)


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
        option=option,
    )
    num_states = stop_strings.num_states if stop_strings else 0
    return dataclasses.replace(plan, shape=dataclasses.replace(plan.shape, num_stop_states=num_states))
