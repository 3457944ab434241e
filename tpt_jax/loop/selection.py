"""The prune stage of a round: selects the traces to train on from the run folder."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tpt_jax.evaluation import mean_interval
from tpt_jax.loop.on_demand import make_pipeline, needed_traces
from tpt_jax.loop.run_folder import RunFolder, parse_trace
from tpt_jax.loop.setup import Setup
from tpt_jax.prune.apply import checked
from tpt_jax.prune.candidate import Candidate
from tpt_jax.prune.demand import asks_one_by_one
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.prune.summary import count_labels
from tpt_jax.prune.trim import trim
from tpt_jax.records import JudgedTrace, Trace, Verdict

TRIMMED_AT_ONCE = 1024  # traces


class Found(NamedTuple):
    """A judged trace in the run folder.

    Attributes:
      index: its place there; see RunFolder.trace_lines.
      num_tokens: sampled, without the end of turn.
    """

    candidate: Candidate
    index: int
    num_tokens: int


def select_traces(setup: Setup, folder: RunFolder, round_index: int, names: Sequence[str]) -> dict[str, Any]:
    """Selects the traces to train on, trims them, writes them to the run folder, and returns the figures.

    Reads the round's traces twice: first what the pipeline looks at, then the lines of the kept ones. The figures leave
    out surplus traces, so that they do not depend on what was under way when there was enough.

    Args:
      names: ids of the questions that the think stage asked, or would have.
    """
    pipeline = make_pipeline(setup.config, round_index)
    needed = _needed(setup, folder, round_index, pipeline, names)
    candidates = [each.candidate for each in needed]
    choice = pipeline.choose(candidates)
    kept = [needed[index] for index in choice.kept]
    lines = folder.trace_lines(round_index, "think", {each.index for each in kept})
    num_trimmed = 0

    def trained_on() -> Iterator[JudgedTrace]:
        nonlocal num_trimmed
        for start in range(0, len(kept), TRIMMED_AT_ONCE):
            batch = kept[start : start + TRIMMED_AT_ONCE]
            whole = [dataclasses.replace(parse_trace(lines[each.index]), kept=True) for each in batch]
            trimmed = _trim(setup, pipeline, whole)
            num_trimmed += sum(new is not old for new, old in zip(trimmed, whole, strict=True))
            yield from trimmed

    folder.write_training(round_index, trained_on())
    is_estimate = asks_one_by_one(pipeline, setup.config.think.until)
    rates = training_rates(candidates, first_samples_only=is_estimate)
    return {
        "train_pass_at_1": statistics.fmean(rates) if rates else None,
        "train_interval": mean_interval(rates),
        "train_is_estimate": is_estimate,
        "difficulty": difficulty(candidates, [each.candidate for each in kept]),
        "num_traces": len(needed),
        "num_correct": sum(each.verdict.correct for each in candidates),
        "num_strict": sum(each.verdict.strict for each in candidates),
        "num_kept": len(kept),
        "num_dropped": choice.num_dropped,
        "num_trimmed": num_trimmed,
        "verdicts": count_labels(candidates),
        "mean_think_tokens": sum(each.num_tokens for each in needed) / max(1, len(needed)),
    }


def _needed(setup: Setup, folder: RunFolder, round_index: int, pipeline: Pipeline, names: Sequence[str]) -> list[Found]:
    """The traces that decide on the training set, sorted by question and sample."""
    judged = enumerate(checked(pipeline, folder.traces(round_index, "think")))
    found = [
        Found(pipeline.candidate(each.trace, each.verdict), index, len(each.trace.token_ids)) for index, each in judged
    ]
    found.sort(key=lambda each: (each.candidate.id, each.candidate.sample))
    indices = needed_traces(setup.config, round_index, [each.candidate for each in found], names)
    return [found[index] for index in indices]


def _trim(setup: Setup, pipeline: Pipeline, kept: Sequence[JudgedTrace]) -> Sequence[JudgedTrace]:
    """Kept traces, trimmed if the pipeline says so, tokenized anew and judged again."""
    if not pipeline.trims:
        return kept
    questions = {question.id: question for question in setup.task.train}

    def encode(trace: Trace) -> tuple[int, ...] | None:
        is_faithful = setup.prompt.is_faithful(questions[trace.id].question, trace.completion)
        return setup.prompt.completion_ids(trace.completion) if is_faithful else None

    def judge(traces: Sequence[Trace]) -> Iterator[Verdict]:
        return setup.pool.judge((questions[trace.id], trace) for trace in traces)

    return trim(pipeline, kept, judge, encode)


def training_rates(judged: Sequence[Candidate], *, first_samples_only: bool) -> list[float]:
    """Pass@1 of each training question whose verdicts are known.

    Args:
      first_samples_only: if questions are sampled until a trace is right, their other samples would bias the rate.
    """
    by_question: dict[str, list[bool]] = {}
    for each in judged:
        if not each.verdict.unknown and (each.sample == 0 or not first_samples_only):
            by_question.setdefault(each.id, []).append(each.verdict.correct)
    return [statistics.fmean(verdicts) for verdicts in by_question.values()]


def difficulty(judged: Sequence[Candidate], kept: Sequence[Candidate]) -> dict[str, int]:
    """Kept traces by how many samples their question took until the first right one: "1", "2", "3-4", "5-8", ...

    Traces of questions without a right one, as the paper's control keeps them, count under "none".
    """
    firsts: dict[str, int] = {}
    for each in judged:
        if each.verdict.correct:
            firsts[each.id] = min(each.sample + 1, firsts.get(each.id, each.sample + 1))
    counts = collections.Counter(firsts.get(each.id, 0) for each in kept)
    groups: dict[str, int] = {}
    for first in sorted(counts, key=lambda count: count or math.inf):
        top = 1 << (first - 1).bit_length() if first else 0
        name = f"{top // 2 + 1}-{top}" if top > 2 else str(top) if top else "none"
        groups[name] = groups.get(name, 0) + counts[first]
    return groups
