"""What the stages do: sample and judge, fine-tune. The loop says when; `tpt eval` and `tpt sft` do one of them."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import jax
from flax import nnx
from jax.sharding import Mesh

from tpt_jax.checkpoints.model import ModelFolder
from tpt_jax.checkpoints.training import TrainingCheckpoints
from tpt_jax.checks.pool import CheckerPool
from tpt_jax.checks.registry import without_sandbox
from tpt_jax.config import RunConfig, Sampling, TrainConfig
from tpt_jax.errors import Stopped, UserError
from tpt_jax.io.paths import Path
from tpt_jax.io.record_files import MAX_BROKEN_SHARE
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.prompts import Example, Prompt, load_prompt
from tpt_jax.prune.summary import failed_on_all
from tpt_jax.records import JudgedTrace, Question, QuestionSet, Trace, Verdict
from tpt_jax.runtime import hosts, preemption
from tpt_jax.runtime.compilations import CompilationCounter
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import DECODE_RULES, TRAIN_RULES, Layout
from tpt_jax.tasks import Task, load_task
from tpt_jax.terminal import listed, percent, progress, say
from tpt_jax.think.engine import Engine, SamplingPlan, Statistics, plan_sampling
from tpt_jax.think.reshard import Reshard
from tpt_jax.think.sampler import SamplerProgram, compile_sampler
from tpt_jax.think.sampling import Filters
from tpt_jax.train.compile import TrainerProgram
from tpt_jax.train.data import split_by_length
from tpt_jax.train.fit import Fit, StepRecord

CONTRACT_QUESTIONS = 16  # how many questions the prompt's contract is tested on at start-up


@dataclasses.dataclass(frozen=True)
class Setup:
    """What sampling and judging use: made once, at start-up."""

    config: RunConfig
    model: ModelFolder
    task: Task
    prompt: Prompt
    mesh: Mesh
    plans: Mapping[Sampling, SamplingPlan]
    sampler: SamplerProgram
    pool: CheckerPool
    compilations: CompilationCounter

    def load(self, folder: ModelFolder) -> nnx.State:
        """A model's parameters, as training wants them."""
        return folder.load(Layout(self.mesh, TRAIN_RULES))


@contextlib.contextmanager
def set_up(config: RunConfig, samplings: Sequence[Sampling]) -> Iterator[Setup]:
    """Reads model and task, checks the prompt, compiles what samples and starts the checkers.

    Args:
      samplings: what to compile for.

    Raises:
      UserError: something that the config names is missing or does not fit.
    """
    compilations = CompilationCounter()
    started = time.monotonic()
    model = ModelFolder.open(config.model.path, config.model.source)
    task = load_task(config.task)
    if task.num_contaminated:
        say(f"{config.name}: {task.num_contaminated} training questions are left out, for they are test questions too")
    checker = without_sandbox(task.train.checker) if config.prune.run_code_without_sandbox else task.train.checker
    with CheckerPool(checker, config.prune.num_workers, config.prune.seconds_per_trace) as pool:
        task = without_unreadable(task, pool)
        prompt = prompt_of(config, model, task)
        prompt.check_contract((*task.train[:CONTRACT_QUESTIONS], *task.test[:CONTRACT_QUESTIONS]))
        mesh = make_mesh(config.mesh)
        shards = Layout(mesh, DECODE_RULES).batch_ways
        plans: dict[Sampling, SamplingPlan] = {
            sampling: _plan(sampling, config, prompt, task, shards) for sampling in samplings
        }
        say(
            f"{config.name}: {model.config.num_parameters / 1e6:,.1f}M parameters, mesh {dict(mesh.shape)}, "
            f"{len(task.train)} questions to train on, {len(task.test)} held out; compiling"
        )
        sampler = compile_sampler(
            model.config,
            mesh,
            compute_dtype=config.model.compute_dtype,
            shapes={sampling: plan.shape for sampling, plan in plans.items()},
            stop_ids=prompt.stop_ids,
        )
        say(f"sampler ready after {time.monotonic() - started:.0f} s")
        yield Setup(config, model, task, prompt, mesh, plans, sampler, pool, compilations)


def without_unreadable(task: Task, pool: CheckerPool) -> Task:
    """The task without questions whose reference answer the checker cannot read: nobody could say what is right.

    Each host looks at some of them.

    Raises:
      UserError: they are more than 1% of a split; names the first five.
    """
    questions = (*task.train, *task.test)
    places = hosts.own_share(range(len(questions)))  # ids would not do: both splits may have the same
    verdicts = pool.judge((questions[place], Trace(questions[place].id, 0, "")) for place in places)
    own = [place for place, verdict in zip(places, verdicts, strict=True) if verdict.unknown]
    unreadable = {place for part in hosts.all_gather("reference answers", own) for place in part}
    readable: dict[str, QuestionSet] = {}
    for split, start, of_split in (("train", 0, task.train), ("test", len(task.train), task.test)):
        readable[split] = of_split.only([q for place, q in enumerate(of_split, start) if place not in unreadable])
        left_out = [question for place, question in enumerate(of_split, start) if place in unreadable]
        if not left_out:
            continue
        named = listed([f"{question.id} ({question.answer[:40]!r})" for question in left_out])
        if len(left_out) > MAX_BROKEN_SHARE * len(of_split):
            raise UserError(
                f"task {task.name}: checker {task.train.checker!r} cannot read {len(left_out)} of {len(of_split)} "
                f"{split} reference answers, more than {MAX_BROKEN_SHARE:.0%}: {named}; "
                "fix them, or name another checker"
            )
        what = f"{len(left_out)} {split} questions are left out, their answers cannot be read"
        say(f"task {task.name}: {what}: {named}")
    return dataclasses.replace(task, **readable)


def prompt_of(config: RunConfig, model: ModelFolder, task: Task) -> Prompt:
    """How the model is asked the task's questions.

    Raises:
      UserError: the task has fewer examples than are asked for.
    """
    given = config.prompt.instruction
    if config.prompt.num_shots > len(task.train.shots):
        raise UserError(
            f"prompt.num_shots ({config.prompt.num_shots}): task {task.name} has {len(task.train.shots)} examples; "
            "ask for no more"
        )
    shots = task.train.shots[: config.prompt.num_shots]
    return load_prompt(model.path, task.train.instruction if given is None else given, shots)


def _plan(sampling: Sampling, run: RunConfig, prompt: Prompt, task: Task, shards: int) -> SamplingPlan:
    config, questions = (run.think, task.train) if sampling == "think" else (run.evaluate, task.test)
    return plan_sampling(
        _tokenize(questions, prompt),
        num_questions=config.num_questions,
        num_samples=config.num_samples,
        max_prompt_tokens=config.max_prompt_tokens,
        max_new_tokens=config.max_new_tokens,
        num_slots=config.num_slots,
        num_shards=shards,
        filters=Filters(config.top_k, config.top_p, config.min_p),
        cache_type=config.cache_type,
        option=f"{sampling}.",
    )


def _tokenize(questions: Sequence[Question], prompt: Prompt) -> dict[str, tuple[int, ...]]:
    """The prompts by question, in order; each host makes some of them."""
    own = {question.id: prompt.prompt_ids(question.question) for question in hosts.own_share(questions)}
    made = {name: ids for part in hosts.all_gather("tokenizing", own) for name, ids in part.items()}
    return {question.id: tuple(made[question.id]) for question in questions}


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What one sampling stage did.

    Attributes:
      tokens: of all traces, whichever process sampled them; ends of turn included.
      num_prompts_too_long: questions that were not asked.
      slot_occupancy: the share of slots that worked while traces were waiting, this time; None if there was no need.
      device_idle: the share of the time in which the devices waited for their hosts, this time.
    """

    tokens: int
    num_prompts_too_long: int
    slot_occupancy: float | None
    device_idle: float | None


def sample_and_judge(
    setup: Setup,
    run_dir: RunFolder,
    round_index: int,
    sampling: Sampling,
    asked: Sequence[Question],
    parameters: Callable[[], nnx.State],
) -> Sampled:
    """Samples and judges traces into the run's folder, but for those that are there already.

    Each host sees to the traces of its own devices.

    Args:
      parameters: gives the training parameters; called only where there is something to sample.
    """
    plan = setup.plans[sampling]
    config = setup.config.think if sampling == "think" else setup.config.evaluate
    label = f"round {round_index} {sampling}"
    too_long = [question.id for question in asked if question.id not in plan.prompt_ids]
    if too_long:
        say(
            f"{label}: {len(too_long)} questions are not asked, for their prompts are longer than "
            f"{sampling}.max_prompt_tokens ({config.max_prompt_tokens}): {listed(too_long)}"
        )
    known = hosts.broadcast(label, lambda: _names(run_dir.traces(round_index, sampling)))
    done = {(name, sample) for name, sample in known}
    requests = plan.requests([question.id for question in asked], done)
    num_left = sum(len(request.samples) for request in requests)
    engine = Engine(setup.sampler.slots[sampling], setup.prompt, plan.prefix, setup.sampler.layout.batch_ways)
    occupancy = idle = None
    if num_left:
        batches = engine.sample(
            laid_out_for_sampling(setup.sampler.reshard, parameters(), label),
            requests,
            seed=setup.config.seed,
            round_index=round_index,
            temperature=config.temperature,
            should_stop=preemption.should_stop,
        )
        questions = {question.id: question for question in asked}
        writer = run_dir.trace_writer(round_index, sampling, jax.process_index())
        with progress(label, len(done) + num_left, "traces", len(done)) as advance, preemption.saves_first():
            for traces, verdicts in _judged(batches, setup.pool, questions):
                writer.write(map(JudgedTrace, traces, verdicts))
                advance(len(traces) * hosts.count())  # the others are about as far
        figures = Statistics.together(hosts.all_gather(label, dataclasses.asdict(engine.statistics)))
        occupancy, idle = figures.occupancy(plan.shape.num_slots), figures.idle_share
        busy = f"{percent(occupancy)} of slots busy while traces waited"
        say(f"{label}: {figures.num_tokens / figures.seconds:,.0f} tokens/s, {busy}, device idle {idle:.1%}")
    num_traces = len(done) + num_left

    def count_tokens() -> int:
        judged = _all_judged(run_dir, round_index, sampling, num_traces, setup.task.train.checker)
        return sum(each.trace.num_sampled for each in judged)

    tokens = hosts.broadcast(label, count_tokens)
    return Sampled(tokens, len(too_long), occupancy, idle)


def _names(judged: Iterable[JudgedTrace]) -> list[tuple[str, int]]:
    return [(each.trace.id, each.trace.sample) for each in judged]


def _all_judged(
    run_dir: RunFolder, round_index: int, sampling: Sampling, num_traces: int, checker: str
) -> list[JudgedTrace]:
    """All traces of the round.

    Raises:
      UserError: there are not all that were written, or the checker failed on all.
    """
    judged = run_dir.traces(round_index, sampling)
    if len(judged) < num_traces:
        raise UserError(
            f"{run_dir.path}: holds {len(judged)} of {num_traces} traces, for hosts do not share it; give a --run_dir "
            "that all hosts share: gs://BUCKET/..., or a network disk"
        )
    if failed := failed_on_all(judged):
        raise UserError(f"checker {checker!r}: {failed}; mend it, and begin anew in another --run_dir")
    return judged


def laid_out_for_sampling(reshard: Reshard, parameters: nnx.State, label: str) -> nnx.State:
    """The copy of the parameters that samples; says what it took."""
    started = time.monotonic()
    copy = jax.block_until_ready(reshard(parameters))
    seconds = time.monotonic() - started
    say(
        f"{label}: weights laid out for sampling in {seconds:.2f} s, {reshard.num_bytes / 1e9:.3f} GB a device, "
        f"{reshard.num_received / 1e9:.3f} GB of them from other devices"
    )
    return copy


def _judged(
    batches: Iterable[list[Trace]], pool: CheckerPool, questions: dict[str, Question]
) -> Iterator[tuple[list[Trace], list[Verdict]]]:
    """Traces with their verdicts; some are checked while the next ones are sampled.

    Where sampling is stopped, what it gave before is still judged.
    """
    waiting: tuple[list[Trace], Future[list[Verdict]]] | None = None
    stopped: Stopped | None = None
    try:
        for traces in filter(None, batches):
            submitted = (traces, pool.submit_batch([(questions[trace.id], trace) for trace in traces]))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = submitted
    except Stopped as error:
        stopped = error
    if waiting is not None:
        yield waiting[0], waiting[1].result()
    if stopped is not None:
        raise stopped


@dataclasses.dataclass(frozen=True)
class Trained:
    """What one fine-tuning did.

    Attributes:
      num_too_long: examples that do not fit train.sequence_length; never cut.
      tokens: completion tokens that were trained on, repeats included.
      packing: the share of the batches' tokens that are not padding; None if nothing was trained.
    """

    parameters: nnx.State
    num_examples: int
    num_too_long: int
    tokens: int
    packing: float | None


def fine_tune(
    trainer: TrainerProgram,
    parameters: Callable[[], nnx.State],
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    seed: int,
    label: str,
    saves: Path,
    on_step: Callable[[StepRecord], None] = lambda record: None,
) -> Trained:
    """Trains on all examples, or on those that are left where an earlier process was killed.

    Args:
      parameters: gives the ones to begin with, which are taken over; without examples they come back as they are.
      saves: the folder for the state of the training under way; the caller removes it when it has the result.

    Raises:
      FloatingPointError: the loss or the gradient is not finite.
      Stopped: the process was asked to stop; the state of the training is saved.
    """
    fitting, too_long = split_by_length(examples, config.sequence_length)
    if too_long:
        say(
            f"{label}: {len(too_long)} traces are left out, longer than train.sequence_length "
            f"({config.sequence_length}): {listed([example.id for example in too_long])}"
        )
    if not fitting:
        say(f"{label}: no traces to train on; the model stays as it was")
        return Trained(parameters(), 0, len(too_long), 0, None)
    with contextlib.closing(TrainingCheckpoints(saves, config.save_every)) as checkpoints:
        fit = Fit(trainer, parameters, fitting, config, seed, checkpoints, preemption.should_stop)
        started, before = time.monotonic(), fit.counts.packed_tokens
        with progress(label, fit.num_steps, "steps", fit.first_step) as advance, preemption.saves_first():
            for record in fit:
                on_step(record)
                advance(1)
        rate = (fit.counts.packed_tokens - before) / (time.monotonic() - started)
    packing = fit.counts.packed_tokens / (fit.num_steps * trainer.batch_shape.num_tokens)
    say(f"{label}: {rate:,.0f} tokens/s, {packing:.1%} of the batches is not padding")
    return Trained(fit.parameters, len(fitting), len(too_long), fit.counts.tokens, packing)
