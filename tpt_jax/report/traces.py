"""The traces that a report shows: held-out questions whose answer changed, and a seeded few of each kind."""

import collections
import dataclasses
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tpt_jax.errors import UserError
from tpt_jax.io.files import read_jsonl
from tpt_jax.io.paths import AnyPath
from tpt_jax.records import JudgedTrace, Question

ENTRIES_ON_A_SHELF = 6
PAIRS_ON_A_SHELF = 4
MOST_PARTS = 16  # files of training traces read a round: enough to draw from, however large the run

KINDS = (
    "right, kept",
    "wrong, kept",  # only where pruning was told to keep any
    "right, not kept",
    "wrong, not kept",
    "right",  # without pruning: held out, or the round has not come so far
    "wrong",
    "right, but not in the format asked for",
    "cut at the length limit",
)


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """A trace to read.

    Attributes:
      kept: whether the round trained on it; None for a held-out question, and until pruning is done.
      samples: how many samples of a held-out question are right in that round, and how many there are.
    """

    round: int
    judged: JudgedTrace
    kept: bool | None = None
    samples: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """One of KINDS."""
        verdict = self.judged.verdict
        if self.judged.trace.finish_reason == "length":
            return "cut at the length limit"
        if verdict.correct and not verdict.strict:
            return "right, but not in the format asked for"
        right = "right" if verdict.correct else "wrong"
        return right if self.kept is None else f"{right}, {'kept' if self.kept else 'not kept'}"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A question with a trace, or with its traces of the first and the last round."""

    id: str
    question: Question | None
    exhibits: tuple[Exhibit, ...]


@dataclasses.dataclass(frozen=True)
class Shelf:
    """Entries of one kind."""

    title: str
    note: str
    entries: tuple[Entry, ...]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The traces of the held-out questions in one round.

    Attributes:
      num_right: how many samples are right, and how many there are, by question id.
      first_samples: a trace of each question, by question id.
      lengths: sampled tokens of each trace, where they are known.
    """

    round: int
    questions: Mapping[str, Question]
    num_right: Mapping[str, tuple[int, int]]
    first_samples: Mapping[str, JudgedTrace]
    lengths: Sequence[int]

    def entry(self, name: str) -> Entry:
        exhibit = Exhibit(self.round, self.first_samples[name], samples=self.num_right[name])
        return Entry(name, self.questions.get(name), (exhibit,))


def read_held_out(folder: AnyPath) -> HeldOut:
    """Reads a round's evaluation."""
    num_right: dict[str, tuple[int, int]] = {}
    firsts: dict[str, JudgedTrace] = {}
    lengths = []
    for judged in _judged(sorted((folder / "traces").glob("evaluate-*.jsonl"))):
        name = judged.trace.id
        right, samples = num_right.get(name, (0, 0))
        num_right[name] = (right + judged.verdict.correct, samples + 1)
        if name not in firsts or judged.trace.sample < firsts[name].trace.sample:
            firsts[name] = judged
        if judged.trace.token_ids:
            lengths.append(len(judged.trace.token_ids))
    questions = {name: question for name, question in _questions(folder).items() if name in num_right}
    return HeldOut(int(folder.name), questions, num_right, firsts, lengths)


def read_shelves(folders: Sequence[AnyPath], held_out: Sequence[HeldOut]) -> tuple[Shelf, ...]:
    """What to read of a run.

    Args:
      folders: of all its rounds.
      held_out: of its first and its last finished round, or of the one that there is.
    """
    changes = [_changes(*held_out, was_right=was_right) for was_right in (False, True)] if len(held_out) > 1 else []
    drawn = [_draw(_training(folder), seed=folder.name) for folder in folders]
    title = "Training questions"
    if not any(drawn) and held_out:
        drawn, title = [_draw(map(held_out[0].entry, held_out[0].num_right), seed="held out")], "Held-out questions"
    mixed = [Shelf(f"{title}: {kind}", "", _mix([of_round.get(kind, []) for of_round in drawn])) for kind in KINDS]
    return tuple(shelf for shelf in (*changes, *mixed) if shelf.entries)


def _changes(first: HeldOut, last: HeldOut, *, was_right: bool) -> Shelf:
    """Questions whose first sample was right and is wrong now, or the reverse: before and after, side by side."""
    both = [name for name in first.first_samples if name in last.first_samples]
    changed = [
        name
        for name in both
        if first.first_samples[name].verdict.correct == was_right != last.first_samples[name].verdict.correct
    ]
    drawn = random.Random(0).sample(changed, min(PAIRS_ON_A_SHELF, len(changed)))
    entries = (last.entry(name) for name in drawn)
    before, after = ("right", "wrong") if was_right else ("wrong", "right")
    return Shelf(
        f"Held-out questions: {before} before, {after} after",
        f"The first sample of a question in round {first.round} and in round {last.round}: {len(changed):,} of "
        f"{len(both):,} went from {before} to {after}.",
        tuple(
            dataclasses.replace(entry, exhibits=(*first.entry(entry.id).exhibits, *entry.exhibits)) for entry in entries
        ),
    )


def _training(folder: AnyPath) -> Iterator[Entry]:
    """A round's training questions, each of their traces an entry."""
    parts = sorted((folder / "traces").glob("think-*.jsonl"))
    if not parts:
        return
    questions = _questions(folder)
    pruned = folder / "training.jsonl"
    kept = {(judged.trace.id, judged.trace.sample) for judged in _judged([pruned])} if pruned.is_file() else None
    for judged in _judged(random.Random(folder.name).sample(parts, min(MOST_PARTS, len(parts)))):
        name = (judged.trace.id, judged.trace.sample)
        exhibit = Exhibit(int(folder.name), judged, kept=None if kept is None else name in kept)
        yield Entry(judged.trace.id, questions.get(judged.trace.id), (exhibit,))


def _draw(entries: Iterable[Entry], *, seed: str) -> dict[str, list[Entry]]:
    """A few of each kind, each with the same chance, the same ones each time; holds no more than those in memory."""
    chance = random.Random(seed)
    seen: collections.Counter[str] = collections.Counter()
    drawn: dict[str, list[Entry]] = {}
    for entry in entries:
        kind = entry.exhibits[0].kind
        seen[kind] += 1
        few = drawn.setdefault(kind, [])
        place = len(few) if len(few) < ENTRIES_ON_A_SHELF else chance.randrange(seen[kind])
        few[place : place + 1] = [entry] if place < ENTRIES_ON_A_SHELF else []
    return drawn


def _mix(by_round: Sequence[Sequence[Entry]]) -> tuple[Entry, ...]:
    """A few in all, from each round in its turn."""
    turns = itertools.zip_longest(*by_round)
    mixed = [entry for turn in turns for entry in turn if entry is not None][:ENTRIES_ON_A_SHELF]
    return tuple(sorted(mixed, key=lambda entry: entry.exhibits[0].round))


def _judged(paths: Iterable[AnyPath]) -> Iterator[JudgedTrace]:
    for path in paths:
        for number, line in enumerate(read_jsonl(path), start=1):
            try:
                yield JudgedTrace.from_json(line)
            except (KeyError, TypeError) as error:
                raise UserError(f"{path}: trace {number} is not a judged trace ({error!r})") from error


def _questions(folder: AnyPath) -> dict[str, Question]:
    """By id; {} where the round did not write them down."""
    path = folder / "questions.jsonl"
    lines = read_jsonl(path) if path.is_file() else ()
    return {
        str(line["id"]): Question(str(line["id"]), str(line.get("question", "")), str(line.get("answer", "")))
        for line in lines
        if "id" in line
    }
