"""The prune stage of a round: selects the traces to train on from the run folder."""

import collections
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from tpt_jax.evaluation import mean_interval
from tpt_jax.loop.on_demand import make_pipeline, needed_traces
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.loop.setup import Setup
from tpt_jax.prune.apply import select
from tpt_jax.prune.demand import asks_one_by_one
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.prune.summary import count_labels
from tpt_jax.prune.trim import trim
from tpt_jax.records import JudgedTrace, Trace, Verdict


def select_traces(setup: Setup, folder: RunFolder, round_index: int, names: Sequence[str]) -> dict[str, Any]:
    """Selects the traces to train on, trims them, writes them to the run folder, and returns the figures.

    The figures leave out surplus traces, so that they do not depend on what was under way when there was enough.

    Args:
      names: ids of the questions that the think stage asked, or would have.
    """
    judged = folder.traces(round_index, "think")
    pipeline = make_pipeline(setup.config, round_index)
    needed = needed_traces(setup.config, round_index, judged, names)
    selection = select(pipeline, needed)
    kept = _trim(setup, pipeline, selection.kept)
    folder.write_training(round_index, kept)
    is_estimate = asks_one_by_one(pipeline, setup.config.think.until)
    rates = training_rates(needed, first_samples_only=is_estimate)
    return {
        "train_pass_at_1": statistics.fmean(rates) if rates else None,
        "train_interval": mean_interval(rates),
        "train_is_estimate": is_estimate,
        "difficulty": difficulty(needed, selection.kept),
        "num_traces": len(needed),
        "num_correct": sum(trace.verdict.correct for trace in needed),
        "num_strict": sum(trace.verdict.strict for trace in needed),
        "num_kept": len(selection.kept),
        "num_dropped": selection.num_dropped,
        "num_trimmed": sum(new is not old for new, old in zip(kept, selection.kept, strict=True)),
        "verdicts": count_labels(needed),
        "mean_think_tokens": sum(len(trace.trace.token_ids) for trace in needed) / max(1, len(needed)),
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


def training_rates(judged: Sequence[JudgedTrace], *, first_samples_only: bool) -> list[float]:
    """Pass@1 of each training question whose verdicts are known.

    Args:
      first_samples_only: if questions are sampled until a trace is right, their other samples would bias the rate.
    """
    by_question: dict[str, list[bool]] = {}
    for each in judged:
        if not each.verdict.unknown and (each.trace.sample == 0 or not first_samples_only):
            by_question.setdefault(each.trace.id, []).append(each.verdict.correct)
    return [statistics.fmean(verdicts) for verdicts in by_question.values()]


def difficulty(judged: Sequence[JudgedTrace], kept: Sequence[JudgedTrace]) -> dict[str, int]:
    """Kept traces by how many samples their question took until the first right one: "1", "2", "3-4", "5-8", ...

    Traces of questions without a right one, as the paper's control keeps them, count under "none".
    """
    firsts: dict[str, int] = {}
    for each in judged:
        if each.verdict.correct:
            firsts[each.trace.id] = min(each.trace.sample + 1, firsts.get(each.trace.id, each.trace.sample + 1))
    counts = collections.Counter(firsts.get(each.trace.id, 0) for each in kept)
    groups: dict[str, int] = {}
    for first in sorted(counts, key=lambda count: count or math.inf):
        top = 1 << (first - 1).bit_length() if first else 0
        name = f"{top // 2 + 1}-{top}" if top > 2 else str(top) if top else "none"
        groups[name] = groups.get(name, 0) + counts[first]
    return groups
