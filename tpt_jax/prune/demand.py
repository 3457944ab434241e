"""Which samples a round still needs, so that no more is sampled than will be trained on.

A round trains on at most max_traces traces, at most max_per_question of a question. Questions go in an order drawn from
the seed, and samples of a question by their index; the training set is the first traces in that order that suffice.
Samples of a question are exchangeable and the order of questions is random, so it is distributed like a selection from
all samples. Order and index alone decide, never which trace was finished first: the training set does not depend on
slots, mesh, hosts, or how often a run was killed.

    question   verdicts   needed, of num_samples 4 with max_traces 3
    b          +          sample 0
    d          - - +      samples 0 to 2
    a          - - - -    samples 0 to 3: given up
    c          +          sample 0: the third trace, so the round is settled
    e          +          none: it was under way by then, and is surplus
"""

import bisect
import math
from collections.abc import Iterable, Iterator, Sequence

from tpt_jax.prune.candidate import Candidate
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.records import TraceName, Until


def asks_one_by_one(pipeline: Pipeline, until: Until) -> bool:
    """Whether a question's samples are requested one after the other, until enough of them are kept."""
    return until == "enough" and pipeline.scope == "trace" and pipeline.max_per_question is not None


def takes_all_samples(pipeline: Pipeline, until: Until) -> bool:
    """Whether every question is sampled, as often as all others."""
    return until == "all" or pipeline.scope == "round" or (pipeline.max_traces is None and pipeline.scope == "question")


def sample_levels(num_samples: int, max_samples: int | None) -> list[int]:
    """The numbers of samples at which a question may be given up: num_samples, twice as many, ... and max_samples."""
    levels = [num_samples]
    while max_samples is not None and levels[-1] < max_samples:
        levels.append(min(2 * levels[-1], max_samples))
    return levels


class _Question:
    """What is known about one question."""

    def __init__(self) -> None:
        self.judged: dict[int, Candidate] = {}  # by sample
        self.requested: set[int] = set()
        self.num_tried = 0  # samples 0 to num_tried - 1 have been judged and taken into account
        self.num_needed: int | None = None  # samples; None until the question is settled
        self.num_kept = 0

    @property
    def is_settled(self) -> bool:
        return self.num_needed is not None

    @property
    def is_under_way(self) -> bool:
        """Whether a requested sample is not judged yet."""
        return not self.requested <= self.judged.keys()


class Demand:
    """Decides which samples to request next, from the verdicts so far.

    Its answers depend on the verdicts that were added and on the earlier answers about the same shard, so that all
    hosts that hold a shard get the same answers.
    """

    def __init__(
        self,
        names: Sequence[str],
        pipeline: Pipeline,
        *,
        until: Until,
        num_samples: int,
        max_samples: int | None = None,
        num_shards: int = 1,
    ):
        """Starts without a verdict.

        Args:
          names: ids of the questions, as `question_order` returns them.
          until: "enough" asks a question until it has max_per_question kept traces, one sample after the other, and the
            round until it has max_traces. A step of the pipeline that compares samples of a question needs all of
            them, and one that looks at the whole round needs all samples of all questions. "all" asks for everything.
          num_samples: most samples of a question.
          max_samples: a question without a kept trace among its first num_samples is sampled on, up to twice as many,
            four times as many and so on, and up to this many at most. None for no further samples.
          num_shards: question i belongs to shard i % num_shards.
        """
        self.names = names
        self._pipeline = pipeline
        self._questions = [_Question() for _ in names]
        self._positions = {name: position for position, name in enumerate(names)}
        self._levels = sample_levels(num_samples, max_samples)
        self._num_shards = num_shards
        self._max_traces = None if takes_all_samples(pipeline, until) else pipeline.max_traces
        self.is_one_by_one = asks_one_by_one(pipeline, until)
        self._enough = pipeline.max_per_question if self.is_one_by_one else None  # kept traces of a question
        self._num_tried = [0] * self._levels[-1]  # unsettled questions whose sample i was judged
        self._num_won = [0] * self._levels[-1]  # those that it settled, with traces to keep
        self._num_kept = 0  # of all settled questions
        # Questions are settled about in their order, so that only those between these two need a look after a verdict.
        self._num_settled = 0  # the first questions, all settled
        self._num_reached = 0  # the first questions, without the last ones that have no verdict yet
        self._num_kept_first = 0  # of the first _num_settled questions
        self._num_counted = 0  # judged traces, at most levels[0] of each question
        self._update_ends()

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Takes note of judged traces, in any order. Traces of other questions are ignored, and so are repeats."""
        for candidate in candidates:
            position = self._positions.get(candidate.id)
            if position is not None and candidate.sample not in self._questions[position].judged:
                question = self._questions[position]
                question.judged[candidate.sample] = candidate
                self._num_counted += len(question.judged) <= self._levels[0]
                self._num_reached = max(self._num_reached, position + 1)
                self._advance(question)
        self._update_ends()

    # Answers.

    @property
    def is_settled(self) -> bool:
        """Whether the training set is determined."""
        return self._num_settled >= self._certain_end

    def is_needed(self, name: TraceName) -> bool:
        """Whether a trace, judged or not, may have a part in the training set."""
        position = self._positions.get(name[0])
        if position is None or position >= self._certain_end:
            return False
        num_needed = self._questions[position].num_needed
        return num_needed is None or name[1] < num_needed

    @property
    def num_expected(self) -> int:
        """Kept traces that the round will end with at most, or all samples if it asks for everything."""
        return len(self.names) * self._levels[0] if self._max_traces is None else self._max_traces

    @property
    def num_decided(self) -> int:
        """How many of `num_expected` are there."""
        if self._max_traces is None:
            return self._num_counted
        between = range(self._num_settled, min(self._certain_end, self._num_reached))
        kept = self._num_kept_first + sum(self._questions[position].num_kept for position in between)
        return min(kept, self._max_traces)

    @property
    def num_needed(self) -> int:
        """The judged traces that decide on the training set."""
        return sum(
            len(question.judged) if question.num_needed is None else question.num_needed
            for question in self._questions[: self._certain_end]
        )

    def take(self, shard: int, count: int, num_idle: int) -> list[tuple[str, tuple[int, ...]]]:
        """Requests samples: pairs of question id and samples.

        Args:
          count: how many samples to request, if that many are needed; a question's samples are not torn apart.
          num_idle: slots without work. If nothing else is left to request, they get further samples of questions whose
            last sample is still under way, which saves time at the end of a round if that one fails.
        """
        taken: list[tuple[str, tuple[int, ...]]] = []
        num_taken = 0
        for requests, limit in ((self._wanted(shard), max(count, num_idle)), (self._guesses(shard), num_idle)):
            while num_taken < limit and (request := next(requests, None)) is not None:
                position, samples = request
                self._questions[position].requested.update(samples)
                taken.append((self.names[position], samples))
                num_taken += len(samples)
        return taken

    def has_more(self, shard: int) -> bool:
        """Whether questions are left that are expected to be needed and have not been asked."""
        return any(not question.requested and not question.is_settled for _, question in self._expected(shard))

    # How it gets there.

    def _advance(self, question: _Question) -> None:
        """Takes samples into account in the order of their index, and settles the question as soon as they suffice."""
        while not question.is_settled and question.num_tried in question.judged:
            sample = question.num_tried
            question.num_tried += 1
            self._num_tried[sample] += 1
            # The reference answer cannot be read, so that no further sample would help.
            is_hopeless = question.judged[sample].verdict.unknown
            is_level = question.num_tried in self._levels
            if self._enough is None and not is_level and not is_hopeless:
                continue
            kept = self._pipeline.keep_of_question([question.judged[each] for each in range(question.num_tried)])
            question.num_kept = len(kept)
            has_enough = self._enough is not None and len(kept) >= self._enough
            is_given_up = is_hopeless or question.num_tried == self._levels[-1]
            if has_enough or is_given_up or (is_level and kept):
                question.num_needed = question.num_tried
                self._num_won[sample] += bool(kept)
                self._num_kept += len(kept)

    def _update_ends(self) -> None:
        """Finds the first questions that suffice: those expected to, and those that do whatever is still to come."""
        most = math.inf if self._max_traces is None else self._max_traces
        while self._num_settled < self._num_reached and self._num_kept_first < most:
            if not self._questions[self._num_settled].is_settled:
                break
            self._num_kept_first += self._questions[self._num_settled].num_kept
            self._num_settled += 1
        self._certain_end = self._expected_end = len(self._questions)
        if self._max_traces is None:
            return
        # Traces kept, and of questions that are not settled the mean and variance of those to keep.
        num_kept, mean, variance = self._num_kept_first, 0.0, 0.0
        chances = self._chances()
        prior = self._pipeline.max_per_question or self._levels[0]
        kept_if_any = (self._num_kept + prior) / (sum(self._num_won) + 1)
        position, expected_end = self._num_settled, None
        while position < self._num_reached and num_kept < self._max_traces:
            if expected_end is None and num_kept + mean - math.sqrt(variance) >= self._max_traces:
                expected_end = position
            question = self._questions[position]
            if question.is_settled:
                num_kept += question.num_kept
            else:
                chance = chances[question.num_tried]
                mean += chance * kept_if_any
                variance += chance * (1 - chance) * kept_if_any**2
            position += 1
        if num_kept >= self._max_traces:
            self._certain_end = position
        elif expected_end is None:  # questions without a verdict are needed too
            chance, num_missing, num_left = chances[0], self._max_traces - num_kept, len(self._questions) - position

            def suffice(count: int) -> bool:
                total_variance = variance + count * chance * (1 - chance) * kept_if_any**2
                return mean + count * chance * kept_if_any - math.sqrt(total_variance) >= num_missing

            # If none do not suffice, all from some number on do.
            count = 0 if suffice(0) else bisect.bisect_left(range(num_left), True, key=suffice)
            expected_end = position + count
        self._expected_end = self._certain_end if expected_end is None else min(expected_end, self._certain_end)

    def _chances(self) -> list[float]:
        """The chance that an unsettled question will yield traces, by the number of its samples that were tried.

        Kaplan and Meier's estimate (1958): questions still under way count for the samples that they have had. A
        question that was settled early would otherwise bias it, because that happens to easy ones.
        """
        chances, none = [0.0] * (self._levels[-1] + 1), 1.0
        for sample in reversed(range(self._levels[-1])):
            none *= 1 - (self._num_won[sample] + 0.5) / (self._num_tried[sample] + 1)
            chances[sample] = 1 - none
        return chances

    def _expected(self, shard: int) -> Iterator[tuple[int, _Question]]:
        """The shard's questions that are expected to be needed, in order, without the first settled ones."""
        first = self._num_settled + (shard - self._num_settled) % self._num_shards
        positions = range(first, self._expected_end, self._num_shards)
        return ((position, self._questions[position]) for position in positions)

    def _wanted(self, shard: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Samples to request of questions that have none under way, in order."""
        for position, question in self._expected(shard):
            if not question.is_settled and not question.is_under_way:
                missing = self._missing(question)
                # No fewer than this many more can be enough.
                yield position, missing if self._enough is None else missing[: self._enough - question.num_kept]

    def _guesses(self, shard: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Further samples of unsettled questions, again and again: one of each if they are requested one by one."""
        while True:
            guesses = [
                (position, missing if self._enough is None else missing[:1])
                for position, question in self._expected(shard)
                if not question.is_settled and (missing := self._missing(question))
            ]
            if not guesses:
                return
            yield from guesses

    def _missing(self, question: _Question) -> tuple[int, ...]:
        """Samples that have not been requested, up to the next number at which the question may be settled."""
        level = next(level for level in self._levels if level > question.num_tried)
        return tuple(each for each in range(level) if each not in question.requested and each not in question.judged)
