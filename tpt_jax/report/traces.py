"""Chooses the traces to show: held-out questions whose verdict changed, and a few random traces of each kind."""

import collections
import dataclasses
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from tpt_jax.loop.monitors import Tally
from tpt_jax.loop.run_folder import RunFolder, read_traces
from tpt_jax.records import JudgedTrace, Question

QUESTIONS_PER_GROUP = 6
CHANGES_PER_GROUP = 4
MAX_FILES = 16  # trace files read per round: enough to draw from, however large the run

KINDS = (
    "correct, kept",
    "wrong, kept",  # only with steps that keep wrong ones
    "correct, not kept",
    "wrong, not kept",
    "correct",  # held out, or the round is not pruned yet
    "wrong",
    "correct, but not in the requested format",
    "truncated",
    "verdict unknown",
)


class FirstSample(NamedTuple):
    """The sample of a question with the lowest number, and whether it is correct."""

    sample: int
    is_correct: bool


@dataclasses.dataclass(frozen=True)
class ShownTrace:
    """A trace, with the facts shown next to it.

    Attributes:
      kept: whether the round trained on it; None for held-out questions, and before pruning.
      tally: over the round's samples of the question; None for training questions.
    """

    round: int
    judged: JudgedTrace
    kept: bool | None = None
    tally: Tally | None = None

    @property
    def kind(self) -> str:
        """One of KINDS."""
        verdict = self.judged.verdict
        if verdict.unknown:
            return "verdict unknown"
        if self.judged.trace.finish_reason == "length":
            return "truncated"
        if verdict.correct and not verdict.strict:
            return "correct, but not in the requested format"
        correctness = "correct" if verdict.correct else "wrong"
        return correctness if self.kept is None else f"{correctness}, {'kept' if self.kept else 'not kept'}"


@dataclasses.dataclass(frozen=True)
class ShownQuestion:
    """A question with one of its traces, or with one from the first and one from the last round."""

    id: str
    question: Question | None
    traces: tuple[ShownTrace, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """Questions whose traces are of one kind, under one heading."""

    title: str
    note: str
    questions: tuple[ShownQuestion, ...]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A round's evaluation; as in all rates, questions with an unknown verdict are left out.

    Attributes:
      questions: by id, without their data; empty if the round did not write them.
      tallies: by question id.
      first_samples: by question id.
      lengths: sampled tokens of each trace that has token ids.
    """

    round: int
    questions: Mapping[str, Question]
    tallies: Mapping[str, Tally]
    first_samples: Mapping[str, FirstSample]
    lengths: Sequence[int]


def read_held_out(folder: RunFolder, round_index: int) -> HeldOut:
    """Reads a round's evaluation, trace by trace."""
    tallies: dict[str, Tally] = {}
    first_samples: dict[str, FirstSample] = {}
    lengths: dict[str, list[int]] = {}
    unknown: set[str] = set()
    for judged in folder.traces(round_index, "evaluate"):
        trace, verdict = judged.trace, judged.verdict
        if verdict.unknown:
            unknown.add(trace.id)
        num_correct, num_samples = tallies.get(trace.id, (0, 0))
        tallies[trace.id] = Tally(num_correct + verdict.correct, num_samples + 1)
        if trace.id not in first_samples or trace.sample < first_samples[trace.id].sample:
            first_samples[trace.id] = FirstSample(trace.sample, verdict.correct)
        lengths.setdefault(trace.id, []).extend([len(trace.token_ids)] if trace.token_ids else [])
    known = {name: tally for name, tally in tallies.items() if name not in unknown}
    # A training question may have the same id. The held-out one is written after it, so it wins.
    questions = {
        question.id: dataclasses.replace(question, data={})
        for question in folder.questions(round_index)
        if question.id in known
    }
    return HeldOut(round_index, questions, known, first_samples, [length for name in known for length in lengths[name]])


def choose_groups(folder: RunFolder, held_out: Sequence[HeldOut]) -> tuple[Group, ...]:
    """Chooses the traces of a run to show.

    Args:
      held_out: the evaluations of the first and the last finished round, or of the only one.
    """
    changes = _changes(folder, *held_out) if len(held_out) == 2 else []
    by_round = [_draw_training(folder, index) for index in folder.round_indices()]
    split = "Training questions"
    if not any(by_round) and held_out:
        evaluation, split = held_out[0], "Held-out questions"
        drawn = _draw(_first_traces(folder, evaluation), seed=0)
        by_round = [_with_questions(drawn, evaluation.questions)]
    kinds = [Group(f"{split}: {kind}", "", _mix([drawn.get(kind, []) for drawn in by_round])) for kind in KINDS]
    return tuple(group for group in (*changes, *kinds) if group.questions)


def _changes(folder: RunFolder, first: HeldOut, last: HeldOut) -> list[Group]:
    """Questions whose first sample became correct, and those where it became wrong: all counted, a few shown."""
    changed = {was: _changed(first, last, was_correct=was) for was in (False, True)}
    drawn = {was: random.Random(0).sample(names, min(CHANGES_PER_GROUP, len(names))) for was, names in changed.items()}
    pairs = _pairs(folder, (first, last), {*drawn[False], *drawn[True]})
    num_common = len(first.tallies.keys() & last.tallies.keys())
    groups = []
    for was, (before, after) in ((False, ("wrong", "correct")), (True, ("correct", "wrong"))):
        title = f"Held-out questions: {before} in round {first.round}, {after} in round {last.round}"
        counts = f"{len(changed[was]):,} of {num_common:,} went from {before} to {after}"
        note = f"By the first sample of each question, {counts}."
        groups.append(Group(title, note, tuple(pairs[name] for name in drawn[was])))
    return groups


def _changed(first: HeldOut, last: HeldOut, *, was_correct: bool) -> list[str]:
    """The questions whose first sample went from correct to wrong, or from wrong to correct."""
    return [
        name
        for name, sample in first.first_samples.items()
        if name in first.tallies and name in last.tallies
        if sample.is_correct == was_correct != last.first_samples[name].is_correct
    ]


def _pairs(folder: RunFolder, held_out: Sequence[HeldOut], names: Set[str]) -> dict[str, ShownQuestion]:
    """Questions by id, each with its first sample in the first and in the last round."""
    before, after = ({each.judged.trace.id: each for each in _first_traces(folder, end, names)} for end in held_out)
    return {name: ShownQuestion(name, held_out[-1].questions.get(name), (before[name], after[name])) for name in names}


def _first_traces(folder: RunFolder, evaluation: HeldOut, names: Set[str] | None = None) -> Iterator[ShownTrace]:
    """The first samples of an evaluation's questions, or of some of them; reads its traces again."""
    wanted = evaluation.tallies.keys() if names is None else names
    for judged in folder.traces(evaluation.round, "evaluate") if wanted else ():
        name = judged.trace.id
        if name in wanted and judged.trace.sample == evaluation.first_samples[name].sample:
            yield ShownTrace(evaluation.round, judged, tally=evaluation.tallies[name])


def _draw_training(folder: RunFolder, round_index: int) -> dict[str, list[ShownQuestion]]:
    drawn = _draw(_training_traces(folder, round_index), seed=round_index)
    ids = {trace.judged.trace.id for traces in drawn.values() for trace in traces}
    return _with_questions(drawn, _training_questions(folder, round_index, ids))


def _training_traces(folder: RunFolder, round_index: int) -> Iterator[ShownTrace]:
    """Traces of the round's training questions, from a random choice of its files."""
    files = folder.trace_files(round_index, "think")
    if not files:
        return
    kept = None
    if folder.is_done(round_index, "prune"):
        kept = {(judged.trace.id, judged.trace.sample) for judged in folder.training(round_index)}
    for judged in read_traces(*random.Random(round_index).sample(files, min(MAX_FILES, len(files)))):
        key = (judged.trace.id, judged.trace.sample)
        yield ShownTrace(round_index, judged, kept=None if kept is None else key in kept)


def _training_questions(folder: RunFolder, round_index: int, ids: Set[str]) -> dict[str, Question]:
    questions: dict[str, Question] = {}
    for question in folder.questions(round_index) if ids else ():
        if question.id in ids:
            questions.setdefault(question.id, question)  # a held-out question may have the same id, but comes later
    return questions


def _with_questions(
    drawn: Mapping[str, Iterable[ShownTrace]], questions: Mapping[str, Question]
) -> dict[str, list[ShownQuestion]]:
    def shown(trace: ShownTrace) -> ShownQuestion:
        question_id = trace.judged.trace.id
        return ShownQuestion(question_id, questions.get(question_id), (trace,))

    return {kind: [shown(trace) for trace in traces] for kind, traces in drawn.items()}


def _draw(traces: Iterable[ShownTrace], *, seed: int) -> dict[str, list[ShownTrace]]:
    """Reservoir sampling: QUESTIONS_PER_GROUP traces of each kind, each with the same probability."""
    generator = random.Random(seed)
    num_seen: collections.Counter[str] = collections.Counter()
    reservoirs: dict[str, list[ShownTrace]] = {}
    for trace in traces:
        reservoir = reservoirs.setdefault(trace.kind, [])
        num_seen[trace.kind] += 1
        if len(reservoir) < QUESTIONS_PER_GROUP:
            reservoir.append(trace)
        elif (index := generator.randrange(num_seen[trace.kind])) < QUESTIONS_PER_GROUP:
            reservoir[index] = trace
    return reservoirs


def _mix(by_round: Sequence[Sequence[ShownQuestion]]) -> tuple[ShownQuestion, ...]:
    """QUESTIONS_PER_GROUP questions, taken from the rounds in turn, in the order of their rounds."""
    one_of_each = itertools.chain.from_iterable(itertools.zip_longest(*by_round))
    mixed = [shown for shown in one_of_each if shown is not None][:QUESTIONS_PER_GROUP]
    return tuple(sorted(mixed, key=lambda shown: shown.traces[0].round))
