"""The stages of a round: sample and judge, select, fine-tune; the library also uses some of them alone."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
from flax import nnx

from tpt_jax.checkpoints.training import TrainingCheckpoints
from tpt_jax.checks.pool import CheckerPool
from tpt_jax.checks.registry import checker_name
from tpt_jax.config import Sampling, TrainConfig
from tpt_jax.errors import Stopped, UserError
from tpt_jax.io.paths import Path
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.loop.setup import Setup
from tpt_jax.prompts import Example
from tpt_jax.prune.apply import select
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.prune.summary import count_labels, failed_on_all
from tpt_jax.prune.trim import trim
from tpt_jax.records import JudgedTrace, Question, QuestionSet, Trace, Verdict
from tpt_jax.runtime import hosts, preemption
from tpt_jax.terminal import listed, percent, progress, say
from tpt_jax.think.engine import Engine, Statistics
from tpt_jax.think.requests import Request
from tpt_jax.think.reshard import Reshard
from tpt_jax.train.compile import TrainerProgram
from tpt_jax.train.data import split_by_length
from tpt_jax.train.fine_tuning import FineTuning, StepRecord


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The figures of a sampling stage.

    Attributes:
      tokens: sampled tokens of all traces, end-of-turn tokens included, over all processes that worked on the stage.
      num_prompts_too_long: questions that were not asked.
      slot_occupancy: share of slots busy while traces were waiting, in this process; None if none ever waited.
      device_idle: share of the time the devices waited for their hosts, in this process.
    """

    tokens: int
    num_prompts_too_long: int
    slot_occupancy: float | None
    device_idle: float | None


def sample_and_judge(
    setup: Setup,
    folder: RunFolder,
    round_index: int,
    sampling: Sampling,
    questions: QuestionSet,
    load_parameters: Callable[[], nnx.State],
) -> Sampled:
    """Samples and judges the traces that the run folder lacks, and writes them there.

    Each host handles the traces of its own devices; checking overlaps with decoding.

    Args:
      load_parameters: returns the training parameters; called only if there is something left to sample.

    Raises:
      UserError: the hosts do not share the folder, or the checker failed on every trace.
      Stopped: the process was asked to stop; every finished trace is written.
    """
    plan = setup.plans[sampling]
    label = f"round {round_index} {sampling}"
    too_long = [question.id for question in questions if question.id not in plan.prompt_ids]
    if too_long:
        say(
            f"{label}: skipping {len(too_long)} questions with prompts longer than {sampling}.max_prompt_tokens "
            f"({getattr(setup.config, sampling).max_prompt_tokens}): {listed(too_long)}"
        )
    done = {
        (name, sample)
        for name, sample in hosts.broadcast(
            f"{label}: traces done",
            lambda: [(each.trace.id, each.trace.sample) for each in folder.traces(round_index, sampling)],
        )
    }
    requests = plan.requests([question.id for question in questions], done)
    num_traces = len(done) + sum(len(request.samples) for request in requests)
    occupancy = idle = None
    if num_traces > len(done):
        figures = _sample_missing(
            setup, folder, round_index, sampling, questions, requests, load_parameters, label, len(done), num_traces
        )
        occupancy, idle = figures.occupancy(plan.shape.num_slots), figures.idle_share
        say(
            f"{label}: {figures.num_tokens / figures.seconds:,.0f} tokens/s, {percent(occupancy)} of slots busy while "
            f"traces waited, device idle {idle:.1%}"
        )
    checker = checker_name(setup.task.train.checker)

    def count_tokens() -> int:
        judged = _all_traces(folder, round_index, sampling, num_traces, checker)
        return sum(each.trace.num_sampled for each in judged)

    tokens = hosts.broadcast(f"{label}: tokens", count_tokens)
    return Sampled(tokens, len(too_long), occupancy, idle)


def _sample_missing(
    setup: Setup,
    folder: RunFolder,
    round_index: int,
    sampling: Sampling,
    questions: QuestionSet,
    requests: Sequence[Request],
    load_parameters: Callable[[], nnx.State],
    label: str,
    num_done: int,
    num_traces: int,
) -> Statistics:
    """Samples the requested traces, and writes them with their verdicts as they finish; the figures of all hosts."""
    engine = Engine(
        setup.sampler.slots[sampling],
        setup.prompt,
        setup.plans[sampling].prefix,
        setup.sampler.layout.batch_ways,
        setup.stop_strings,
    )
    batches = engine.sample(
        reshard(setup.sampler.reshard, load_parameters(), label),
        requests,
        seed=setup.config.seed,
        round_index=round_index,
        temperature=getattr(setup.config, sampling).temperature,
        should_stop=preemption.should_stop,
    )
    writer = folder.trace_writer(round_index, sampling, jax.process_index())
    with progress(label, num_traces, "traces", num_done) as advance, preemption.defer():
        for traces, verdicts in judge_while_sampling(batches, setup.pool, questions):
            writer.write(map(JudgedTrace, traces, verdicts))
            advance(len(traces) * hosts.count())  # the other hosts are about as far
    return Statistics.combine(hosts.all_gather(f"{label}: figures", dataclasses.asdict(engine.statistics)))


def _all_traces(
    folder: RunFolder, round_index: int, sampling: Sampling, num_traces: int, checker: str
) -> list[JudgedTrace]:
    """All traces of the stage, from the folder.

    Raises:
      UserError: traces of another host are missing, or the checker failed on every trace.
    """
    judged = folder.traces(round_index, sampling)
    if len(judged) < num_traces:
        raise UserError(
            f"{folder.path}: holds {len(judged)} of {num_traces} traces, because the hosts do not share it; give a "
            "--run_dir that all hosts share: gs://BUCKET/..., or a network disk"
        )
    if failure := failed_on_all(judged):
        raise UserError(f"checker {checker!r}: {failure}; fix it, and start again in another --run_dir")
    return judged


def reshard(program: Reshard, parameters: nnx.State, label: str) -> nnx.State:
    """A copy of the training parameters, resharded for sampling; reports bytes and time."""
    started = time.monotonic()
    copy = jax.block_until_ready(program(parameters))
    say(
        f"{label}: weights resharded for sampling in {time.monotonic() - started:.2f} s, "
        f"{program.num_bytes / 1e9:.3f} GB per device, {program.num_received / 1e9:.3f} GB of them from other devices"
    )
    return copy


def judge_while_sampling(
    batches: Iterable[list[Trace]], pool: CheckerPool, questions: Iterable[Question]
) -> Iterator[tuple[list[Trace], list[Verdict]]]:
    """Batches of traces with their verdicts; one batch is checked while the next one is sampled.

    Raises:
      Stopped: as the sampler raises it, after all its traces were judged.
    """
    by_id = {question.id: question for question in questions}
    pending: tuple[list[Trace], Future[list[Verdict]]] | None = None
    stopped: Stopped | None = None
    try:
        for traces in filter(None, batches):
            submitted = (traces, pool.submit_batch([(by_id[trace.id], trace) for trace in traces]))
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = submitted
    except Stopped as error:
        stopped = error
    if pending is not None:
        yield pending[0], pending[1].result()
    if stopped is not None:
        raise stopped


def select_traces(setup: Setup, folder: RunFolder, round_index: int, seed: int) -> dict[str, Any]:
    """Selects the traces to train on, trims them, writes them to the run folder, and returns the figures."""
    judged = folder.traces(round_index, "think")
    pipeline = Pipeline.from_config(setup.config.prune, seed)
    selection = select(pipeline, judged)
    kept = _trim(setup, pipeline, selection.kept)
    folder.write_training(round_index, kept)
    return {
        "num_traces": len(judged),
        "num_correct": sum(trace.verdict.correct for trace in judged),
        "num_strict": sum(trace.verdict.strict for trace in judged),
        "num_kept": len(selection.kept),
        "num_dropped": selection.num_dropped,
        "num_trimmed": sum(new is not old for new, old in zip(kept, selection.kept, strict=True)),
        "verdicts": count_labels(judged),
        "mean_think_tokens": sum(len(trace.trace.token_ids) for trace in judged) / max(1, len(judged)),
    }


def _trim(setup: Setup, pipeline: Pipeline, kept: Sequence[JudgedTrace]) -> Sequence[JudgedTrace]:
    """The kept traces, trimmed if the pipeline says so, tokenized anew and judged again."""
    if not pipeline.trims:
        return kept
    questions = {question.id: question for question in setup.task.train}

    def encode(trace: Trace) -> tuple[int, ...] | None:
        is_faithful = setup.prompt.is_faithful(questions[trace.id].question, trace.completion)
        return setup.prompt.completion_ids(trace.completion) if is_faithful else None

    def judge(traces: Sequence[Trace]) -> Iterator[Verdict]:
        return setup.pool.judge((questions[trace.id], trace) for trace in traces)

    return trim(pipeline, kept, judge, encode)


@dataclasses.dataclass(frozen=True)
class Trained:
    """The result of a fine-tuning.

    Attributes:
      num_too_long: examples longer than train.sequence_length; they are left out, never truncated.
      tokens: completion tokens trained on, repeats included.
      packing: share of the batches' tokens that are not padding.
    """

    parameters: nnx.State
    num_examples: int
    num_too_long: int
    tokens: int
    packing: float

    @property
    def facts(self) -> Mapping[str, Any]:
        return {name: getattr(self, name) for name in ("num_examples", "num_too_long", "tokens", "packing")}


def fine_tune(
    trainer: TrainerProgram,
    load_parameters: Callable[[], nnx.State],
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    seed: int,
    label: str,
    saves: Path | None = None,
    on_step: Callable[[StepRecord], None] = lambda record: None,
) -> Trained:
    """Trains on the examples, or on the rest of them after an earlier process was killed.

    Args:
      load_parameters: returns the parameters to start from, which are donated.
      examples: at least one fits train.sequence_length.
      saves: folder for the state of the unfinished training, which the caller removes afterwards; None to save nothing.

    Raises:
      FloatingPointError: the loss or the gradient is not finite.
      Stopped: the process was asked to stop; the state of the training is saved.
    """
    fitting, too_long = split_by_length(examples, config.sequence_length)
    if too_long:
        say(
            f"{label}: leaving out {len(too_long)} traces longer than train.sequence_length "
            f"({config.sequence_length}): {listed([example.id for example in too_long])}"
        )
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if saves is not None:
            checkpoints = stack.enter_context(contextlib.closing(TrainingCheckpoints(saves, config.save_every)))
        fit = FineTuning(trainer, load_parameters, fitting, config, seed, checkpoints, preemption.should_stop)
        started, tokens_before = time.monotonic(), fit.counts.packed_tokens
        with progress(label, fit.num_steps, "steps", fit.first_step) as advance, preemption.defer():
            for record in fit:
                on_step(record)
                advance(1)
        rate = (fit.counts.packed_tokens - tokens_before) / (time.monotonic() - started)
    packing = fit.counts.packed_tokens / (fit.num_steps * trainer.batch_shape.num_tokens)
    say(f"{label}: {rate:,.0f} tokens/s, batches {packing:.1%} full")
    return Trained(fit.parameters, len(fitting), len(too_long), fit.counts.tokens, packing)
