"""What the stages do: sample and judge, fine-tune. The loop says when; `tpt eval` and `tpt sft` do one of them."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future

from flax import nnx
from jax.sharding import Mesh

from tpt_jax.checkpoint import ModelFolder
from tpt_jax.config import RunConfig, SamplingConfig, TrainConfig
from tpt_jax.errors import UserError
from tpt_jax.mesh import make_mesh
from tpt_jax.metrics import progress, say
from tpt_jax.program import CompilationCounter, SamplerProgram, TrainerProgram, compile_sampler
from tpt_jax.prompts import Example, Prompt, load_prompt
from tpt_jax.prune.pool import CheckerPool
from tpt_jax.records import JudgedTrace, Question, Verdict
from tpt_jax.run_dir import RunDir, Sampling
from tpt_jax.sharding import TRAIN_RULES, Layout
from tpt_jax.tasks import Task, load_task
from tpt_jax.think.engine import Engine, SampledBatch, batch_shape, fits
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
    prompt = load_prompt(model.path, task.instruction)
    prompt.check_contract((*task.train[:CONTRACT_QUESTIONS], *task.test[:CONTRACT_QUESTIONS]))
    for sampling in samplings:
        _check_that_some_fit(sampling, sampling_config(config, sampling), prompt, task)
    mesh = make_mesh(config.mesh)
    say(
        f"{config.name}: {model.config.num_parameters / 1e6:,.1f}M parameters, mesh {dict(mesh.shape)}, "
        f"{len(task.train)} questions to train on, {len(task.test)} held out; compiling"
    )
    sampler = compile_sampler(
        model.config,
        mesh,
        compute_dtype=config.model.compute_dtype,
        shapes={sampling: batch_shape(sampling_config(config, sampling)) for sampling in samplings},
        stop_ids=prompt.stop_ids,
    )
    with CheckerPool(task.checker, config.prune.num_workers, config.prune.seconds_per_trace) as pool:
        say(f"sampler ready after {time.monotonic() - started:.0f} s")
        yield Setup(config, model, task, prompt, mesh, sampler, pool, compilations)


def sampling_config(config: RunConfig, sampling: Sampling) -> SamplingConfig:
    return config.think if sampling == "think" else config.evaluate


def _check_that_some_fit(sampling: Sampling, config: SamplingConfig, prompt: Prompt, task: Task) -> None:
    questions = task.train if sampling == "think" else task.test
    if not any(fits(prompt, question, config) for question in questions):
        raise UserError(
            f"{sampling}.max_prompt_tokens ({config.max_prompt_tokens}): every prompt is longer; try "
            f"{max(len(prompt.prompt_ids(question.question)) for question in questions)}, the longest one's length"
        )


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What one sampling stage did, whichever processes did it."""

    tokens: int  # ends of turn included
    num_prompts_too_long: int  # questions that were not asked


def sample_and_judge(
    setup: Setup,
    run_dir: RunDir,
    round_index: int,
    sampling: Sampling,
    asked: Sequence[Question],
    parameters: Callable[[], nnx.State],
) -> Sampled:
    """Samples and judges traces into the run's folder, but for the batches that are there already.

    Args:
      parameters: gives the training parameters; called only where there is something to sample.
    """
    config = sampling_config(setup.config, sampling)
    engine = Engine(setup.sampler, setup.prompt, config)
    fitting = [question for question in asked if fits(setup.prompt, question, config)]
    finished = run_dir.finished_parts(round_index, sampling)
    num_too_long = len(asked) - len(fitting)
    label = f"round {round_index} {sampling}"
    if num_too_long:
        say(f"{label}: {num_too_long} questions are not asked: longer than {sampling}.max_prompt_tokens")
    if len(finished) < engine.num_batches(fitting):
        batches = engine.sample(
            setup.sampler.relayout(parameters()),
            fitting,
            seed=setup.config.seed,
            round_index=round_index,
            skip=finished,
        )
        done = sum(1 for _ in run_dir.traces(round_index, sampling))
        total = len(fitting) * config.num_samples
        with progress(label, total, "traces", done) as advance:
            for batch, verdicts in _judged(batches, setup.pool, {question.id: question for question in fitting}):
                run_dir.write_part(round_index, sampling, batch.index, map(JudgedTrace, batch.traces, verdicts))
                advance(len(batch.traces))
    tokens = sum(judged.trace.num_sampled for judged in run_dir.traces(round_index, sampling))
    return Sampled(tokens, num_too_long)


def _judged(
    batches: Iterable[SampledBatch], pool: CheckerPool, questions: dict[str, Question]
) -> Iterator[tuple[SampledBatch, list[Verdict]]]:
    """Each batch with its verdicts; a batch is checked while the next one is sampled."""
    waiting: tuple[SampledBatch, Future[list[Verdict]]] | None = None
    for batch in batches:
        started = (batch, pool.submit_batch([(questions[trace.id], trace) for trace in batch.traces]))
        if waiting is not None:
            yield waiting[0], waiting[1].result()
        waiting = started
    if waiting is not None:
        yield waiting[0], waiting[1].result()


@dataclasses.dataclass(frozen=True)
class Trained:
    """What one fine-tuning did."""

    parameters: nnx.State
    num_examples: int
    num_too_long: int  # examples that do not fit train.sequence_length; never cut
    tokens: int  # completion tokens that were trained on, repeats included


def fine_tune(
    trainer: TrainerProgram,
    parameters: nnx.State,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    seed: int,
    label: str,
    on_step: Callable[[StepRecord], None] = lambda record: None,
) -> Trained:
    """Trains on all examples. Takes the parameters over; without examples they come back as they are.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    fitting, num_too_long = split_by_length(examples, config.sequence_length)
    if not fitting:
        say(f"{label}: no traces to train on ({num_too_long} too long); the model stays as it was")
        return Trained(parameters, 0, num_too_long, 0)
    fit = Fit(trainer, parameters, fitting, config, seed)
    num_tokens = 0
    with progress(label, fit.num_steps, "steps") as advance:
        for record in fit:
            num_tokens += record.tokens
            on_step(record)
            advance(1)
    return Trained(fit.parameters, len(fitting), num_too_long, num_tokens)
