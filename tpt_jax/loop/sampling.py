"""The stages of a round that sample: think and evaluate. Checking overlaps with decoding."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import Any

import jax
from flax import nnx

from tpt_jax.checks.pool import CheckerPool
from tpt_jax.checks.registry import checker_name
from tpt_jax.config import Sampling, SamplingConfig
from tpt_jax.errors import Stopped, UserError
from tpt_jax.loop.figures import Progress, SamplingFigures
from tpt_jax.loop.on_demand import OnDemand, make_demand, make_pipeline
from tpt_jax.loop.parts import broadcast_each
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.loop.setup import Setup
from tpt_jax.prune.candidate import Candidate
from tpt_jax.prune.summary import always_failed
from tpt_jax.records import JudgedTrace, Question, QuestionSet, Trace, Verdict
from tpt_jax.runtime import hosts, preemption
from tpt_jax.runtime.profiling import Profile
from tpt_jax.terminal import listed, percent, progress, say
from tpt_jax.think.engine import Engine, Statistics
from tpt_jax.think.requests import FixedSchedule, Schedule
from tpt_jax.think.reshard import Reshard
from tpt_jax.think.sampling_plan import SamplingPlan

PATIENCE = 0.05  # seconds to wait for the verdicts on a chunk that has just been fetched; the next one takes longer


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The figures of a sampling stage.

    Attributes:
      tokens: sampled tokens of all traces, end-of-turn tokens included, over all processes that worked on the stage.
      num_prompts_too_long: questions that were not asked.
      num_surplus: traces without a part in the training set; they were under way when it was complete.
      num_cancelled: traces ended before they were finished, in this process.
      slot_occupancy: share of slots busy while traces were waiting, in this process; None if none ever waited.
      device_idle: share of the time the devices waited for their hosts, in this process.
    """

    tokens: int
    num_prompts_too_long: int
    num_surplus: int
    num_cancelled: int
    slot_occupancy: float | None
    device_idle: float | None


@dataclasses.dataclass(frozen=True)
class Pass:
    """One sampling pass of a run: what it asks, and where its traces go.

    Attributes:
      load_parameters: returns the training parameters; called only if there is something left to sample.
      log: called every few seconds with the number of traces done and the curves; see `SamplingFigures`.
      profile: traces some chunks of decode steps, from when the results of the one before arrive.
    """

    setup: Setup
    folder: RunFolder
    round_index: int
    sampling: Sampling
    questions: QuestionSet
    load_parameters: Callable[[], nnx.State]
    log: Callable[[int, Mapping[str, float]], None] = lambda step, curves: None
    profile: Profile | None = None

    @property
    def label(self) -> str:
        return f"round {self.round_index} {self.sampling}"

    @property
    def plan(self) -> SamplingPlan:
        return self.setup.plans[self.sampling]

    @property
    def num_slots(self) -> int:
        """Of a data shard."""
        return self.setup.sampler.slots[self.sampling].shape.num_slots

    @property
    def settings(self) -> SamplingConfig:
        return getattr(self.setup.config, self.sampling)

    def fitting(self) -> list[str]:
        """The ids of the questions whose prompts fit."""
        return [question.id for question in self.questions if question.id in self.plan.prompt_ids]

    def name_too_long(self) -> None:
        """Tells the user which questions are skipped."""
        too_long = [question.id for question in self.questions if question.id not in self.plan.prompt_ids]
        if too_long:
            say(
                f"{self.label}: skipping {len(too_long)} questions with prompts longer than "
                f"{self.sampling}.max_prompt_tokens ({self.settings.max_prompt_tokens}): {listed(too_long)}"
            )


@dataclasses.dataclass
class Tally:
    """What judged traces come to: those that a host judged in this process, and on the first host all earlier ones.

    Attributes:
      tokens: sampled ones, end-of-turn tokens included.
      reasons: of all verdicts.
      files: the number of traces in each file that the host has written.
    """

    num_traces: int = 0
    tokens: int = 0
    reasons: set[str] = dataclasses.field(default_factory=set)
    files: dict[str, int] = dataclasses.field(default_factory=dict)

    def count(self, judged: Iterable[JudgedTrace]) -> Iterator[JudgedTrace]:
        """Counts traces and passes them on."""
        for each in judged:
            self.num_traces += 1
            self.tokens += each.trace.num_sampled
            self.reasons.add(each.verdict.reason)
            yield each

    def of_all_hosts(self, label: str) -> "Tally":
        """The tallies of all hosts together."""
        own = {**dataclasses.asdict(self), "reasons": sorted(self.reasons)}
        total = Tally()
        for host in hosts.all_gather(f"{label}: tokens", own):
            total.num_traces += host["num_traces"]
            total.tokens += host["tokens"]
            total.reasons.update(host["reasons"])
            total.files.update(host["files"])
        return total


def sample_all(sampling_pass: Pass) -> Sampled:
    """Samples and judges the traces that the run folder lacks, `num_samples` of each question, and writes them there.

    Raises:
      UserError: the hosts do not share the folder, or the checker failed on every trace.
      Stopped: the process was asked to stop; every finished trace is written.
    """
    label, own = sampling_pass.label, Tally()
    sampling_pass.name_too_long()
    written = _read_done(sampling_pass, own, lambda each: (each.trace.id, each.trace.sample))
    done = {(name, sample) for name, sample in written}
    requests = sampling_pass.plan.requests(sampling_pass.fitting(), done)
    num_traces = len(done) + sum(len(request.samples) for request in requests)
    figures = None
    if num_traces > len(done):
        schedule = FixedSchedule(requests, sampling_pass.setup.sampler.layout.batch_ways)
        with progress(label, num_traces, "traces", len(done)) as advance:
            num_done = len(done)

            def on_judged(judged: list[JudgedTrace]) -> Progress:
                nonlocal num_done
                num_new = len(judged) * hosts.count()  # the other hosts are about as far
                advance(num_new)
                num_done = min(num_done + num_new, num_traces)
                return Progress(num_done, num_traces)

            figures = _sample(sampling_pass, schedule, own, on_judged)
    total = own.of_all_hosts(label)
    _require_all(sampling_pass, total, num_traces)
    return _summarize(sampling_pass, figures, total)


def sample_on_demand(sampling_pass: Pass) -> Sampled:
    """Samples and judges traces until the run folder holds what the training set needs, as `prune.demand` decides.

    Raises:
      UserError: the hosts do not share the folder, or the checker failed on every trace.
      Stopped: the process was asked to stop; every finished trace is written.
    """
    label, setup, index = sampling_pass.label, sampling_pass.setup, sampling_pass.round_index
    own = Tally()
    sampling_pass.name_too_long()
    names = sampling_pass.fitting()
    pipeline = make_pipeline(setup.config, index)

    def candidate(judged: JudgedTrace) -> dict[str, Any]:
        return pipeline.candidate_in_question(judged.trace, judged.verdict).to_json()

    def add(lines: Iterable[Mapping[str, Any]]) -> None:
        demand.add(map(Candidate.from_json, lines))

    demand = make_demand(setup.config, index, pipeline, names, setup.sampler.layout.batch_ways)
    add(_read_done(sampling_pass, own, candidate))
    figures = None
    if not demand.is_settled:
        with progress(label, demand.num_expected, "needed traces", demand.num_decided) as advance:

            def on_judged(judged: list[JudgedTrace]) -> Progress:
                before = demand.num_decided
                add(itertools.chain(*hosts.all_gather(f"{label}: verdicts", [*map(candidate, judged)])))
                advance(demand.num_decided - before)
                return Progress(demand.num_decided, demand.num_expected)

            figures = _sample(sampling_pass, OnDemand(sampling_pass.plan, demand), own, on_judged)
    total = own.of_all_hosts(label)
    _require_all(sampling_pass, total, total.num_traces)
    sampled = _summarize(sampling_pass, figures, total, num_surplus=total.num_traces - demand.num_needed)
    say(
        f"{label}: {demand.num_needed:,} traces decide on the training set; {sampled.num_surplus:,} others were under "
        f"way and finished, {sampled.num_cancelled:,} were cancelled"
    )
    return sampled


def _read_done(sampling_pass: Pass, own: Tally, look: Callable[[JudgedTrace], Any]) -> Iterator[Any]:
    """What `look` returns for each trace that earlier processes have written; the first host's tally counts them."""
    judged = sampling_pass.folder.traces(sampling_pass.round_index, sampling_pass.sampling)
    return broadcast_each(f"{sampling_pass.label}: traces done", map(look, own.count(judged)))


def _sample(
    sampling_pass: Pass, schedule: Schedule, own: Tally, on_judged: Callable[[list[JudgedTrace]], Progress]
) -> Statistics:
    """Samples, judges and writes what the schedule asks for; returns the figures of all hosts.

    Each host handles the traces of its own devices.

    Args:
      own: the host's tally, which counts them.
      on_judged: called after every chunk, on all hosts together, with the new traces of this host; returns how far the
        stage is.
    """
    setup, label = sampling_pass.setup, sampling_pass.label
    engine = Engine(
        setup.sampler.slots[sampling_pass.sampling],
        setup.prompt,
        sampling_pass.plan.prefix,
        setup.sampler.layout.batch_ways,
        setup.stop_strings,
    )
    batches = engine.sample(
        reshard(setup.sampler.reshards[sampling_pass.sampling], sampling_pass.load_parameters(), label),
        schedule,
        seed=setup.config.seed,
        round_index=sampling_pass.round_index,
        temperature=sampling_pass.settings.temperature,
        should_stop=preemption.should_stop,
    )
    writer = sampling_pass.folder.trace_writer(sampling_pass.round_index, sampling_pass.sampling, jax.process_index())
    reached, meter = Progress(0, 0), SamplingFigures(sampling_pass.num_slots * setup.sampler.layout.batch_ways)
    with preemption.defer(), sampling_pass.profile or contextlib.nullcontext() as profile:
        for chunk, judged in enumerate(judge_while_sampling(batches, setup.pool, sampling_pass.questions)):
            if profile is not None:
                profile.reach(chunk + 1)
            if judged:
                own.files[writer.write(own.count(judged))] = len(judged)
            reached = on_judged(judged)
            if (curves := meter.due(engine.statistics, reached)) is not None:
                sampling_pass.log(reached.num_done, curves)
    if (curves := meter.due(engine.statistics, reached, is_last=True)) is not None:
        sampling_pass.log(reached.num_done, curves)
    figures = Statistics.combine(hosts.all_gather(f"{label}: figures", dataclasses.asdict(engine.statistics)))
    occupancy = figures.occupancy(sampling_pass.num_slots)
    say(
        f"{label}: {figures.num_tokens / figures.seconds:,.0f} tokens/s, {percent(occupancy)} of slots busy while "
        f"traces waited, device idle {figures.idle_share:.1%}"
    )
    return figures


def _require_all(sampling_pass: Pass, total: Tally, num_expected: int) -> None:
    """Raises UserError if the first host does not find the files of all hosts in the run folder."""
    folder = sampling_pass.folder

    def check() -> None:
        files = {path.name for path in folder.trace_files(sampling_pass.round_index, sampling_pass.sampling)}
        num_found = total.num_traces - sum(count for name, count in total.files.items() if name not in files)
        if num_found < num_expected:
            raise UserError(
                f"{folder.path}: holds {num_found} of {num_expected} traces, because the hosts do not share it; give a "
                "--run_dir that all hosts share: gs://BUCKET/..., or a network disk"
            )

    hosts.broadcast(f"{sampling_pass.label}: traces found", check)


def _summarize(sampling_pass: Pass, figures: Statistics | None, total: Tally, num_surplus: int = 0) -> Sampled:
    """The figures of a finished stage.

    Args:
      figures: of this process; None if an earlier one had sampled everything.
      total: of all traces, of all hosts and processes.
    """
    if failure := always_failed(total.reasons):
        checker = checker_name(sampling_pass.setup.task.train.checker)
        raise UserError(f"checker {checker!r}: {failure}; fix it, and start again in another --run_dir")
    return Sampled(
        tokens=total.tokens,
        num_prompts_too_long=len(sampling_pass.questions) - len(sampling_pass.fitting()),
        num_surplus=num_surplus,
        num_cancelled=figures.num_cancelled if figures else 0,
        slot_occupancy=figures.occupancy(sampling_pass.num_slots) if figures else None,
        device_idle=figures.idle_share if figures else None,
    )


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
) -> Iterator[list[JudgedTrace]]:
    """Judges batches of traces while the next ones are sampled.

    Yields once for each batch, and once more at the end, the traces whose verdicts have come by then. After a batch
    without traces it waits for all verdicts: the sampler may have nothing to do until they are there.

    Raises:
      Stopped: as the sampler raises it, after all its traces were judged.
    """
    by_id = {question.id: question for question in questions}
    pending: list[tuple[list[Trace], Future[list[Verdict]]]] = []
    stopped: Stopped | None = None

    def take(seconds: float | None) -> list[JudgedTrace]:
        nonlocal pending
        done, _ = wait([verdicts for _, verdicts in pending], seconds)
        taken = [(traces, verdicts.result()) for traces, verdicts in pending if verdicts in done]
        pending = [(traces, verdicts) for traces, verdicts in pending if verdicts not in done]
        return [judged for traces, verdicts in taken for judged in map(JudgedTrace, traces, verdicts)]

    try:
        for traces in batches:
            if traces:
                pending.append((traces, pool.submit_batch([(by_id[trace.id], trace) for trace in traces])))
            yield take(PATIENCE if traces else None)
    except Stopped as error:
        stopped = error
    yield take(None)
    if stopped is not None:
        raise stopped
