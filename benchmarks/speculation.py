"""How many tokens a decode step would yield if earlier traces of a question proposed the next ones: a replay.

    python benchmarks/speculation.py FOLDER --tokenizer MODEL [--memory_ms 14.9 --compute_ms 1.7]

FOLDER holds questions.json (a list of id, question, answer) and traces.jsonl (lines of id, sample, trace); MODEL is any
Hugging Face folder with a tokenizer like that of the model that wrote the traces.

At each step the last tokens, four of them or else three or two, are looked up in the sources, and the k tokens that
follow there are proposed. A verifying step accepts those that the model samples as well, and yields one token more.
Proposals are not drawn at random, so a token is accepted with its probability under the model: whether the trace has
the same token is one draw of that, and the replay gives the tokens per step that exact sampling would give. The end of
a trace counts as a token.

    accepted per step = tokens per step - 1, the ones above the one that every step yields anyway

Sources: the trace itself and its prompt (the question's text); and other traces of the question,
  finished: those with a smaller sample number, as if samples of a question always ran one after the other;
  lockstep: all others, each as far as the trace itself is, as with `think.until: all`, which starts them together.
Traces that `think.until: enough` asks for: the samples of a question up to the first right one, four at most.

A verifying step reads as many bytes as a decode step, and has k + 1 times the flops. --memory_ms and --compute_ms are
the two bounds of a decode step (`tpt plan`); the last columns divide tokens per step by the growth of the larger one.
"""

import argparse
import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpt_jax.checks.answers.number import check_numeric
from tpt_jax.io.files import read_jsonl
from tpt_jax.records import Question
from tpt_jax.tokenizer import load_tokenizer

LONGEST, SHORTEST = 4, 2  # tokens that are looked up
MOST_PROPOSED = 8
NUM_SAMPLES = 4  # of a question at most, with `until: enough`
SOURCES = ("own", "own, finished", "own, lockstep")
ENOUGH = "until: enough, one after the other"


@dataclasses.dataclass(frozen=True)
class Replayed:
    """A trace, and how many proposed tokens would have been right at each of its positions, by the sources used.

    Attributes:
      is_needed: `until: enough` asks for it.
    """

    sample: int
    is_needed: bool
    num_right: Mapping[str, Sequence[int]]

    def num_steps(self, sources: str, num_proposed: int) -> int:
        right, position, steps = self.num_right[sources], 0, 0
        while position < len(right):
            position += 1 + min(right[position], num_proposed)
            steps += 1
        return steps


class Index:
    """Where each run of a few tokens was last seen, in some texts."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], tuple[Sequence[int], int]] = {}

    def add(self, text: Sequence[int], end: int) -> None:
        """Takes note of the runs that end before a position of a text."""
        for length in range(SHORTEST, min(LONGEST, end) + 1):
            self._places[tuple(text[end - length : end])] = text, end

    def following(self, run: tuple[int, ...], known: int) -> Sequence[int]:
        """The tokens that followed a run, of those before the position `known`; none if it was not seen."""
        text, end = self._places.get(run, ((), 0))
        return text[end : min(end + MOST_PROPOSED, known)]


def count_right(
    prompt: Sequence[int], trace: Sequence[int], others: Sequence[Sequence[int]], *, are_finished: bool = True
) -> list[int]:
    """How many of the tokens proposed at each position of a trace are those of the trace, up to the first that is not.

    Args:
      others: the question's other traces that propose tokens.
      are_finished: else only what they have written at the same position is known.
    """
    first, text = len(prompt), [*prompt, *trace]
    known_of_others = len(prompt) + max(map(len, others), default=0) if are_finished else 0
    other_texts = [[*prompt, *other] for other in others]
    own, of_others = Index(), Index()
    for end in range(1, first):
        own.add(text, end)
    if are_finished:
        for other in other_texts:
            for end in range(first, len(other)):
                of_others.add(other, end)
    counts = []
    for position in range(first, len(text)):
        if not are_finished:
            known_of_others = position
            for other in other_texts:
                if position <= len(other):
                    of_others.add(other, position - 1)
        proposal = propose(text[max(0, position - LONGEST) : position], of_others, known_of_others, own, position)
        counts.append(num_equal(proposal, text[position:]))
        own.add(text, position)
    return counts


def propose(ending: Sequence[int], of_others: Index, known_of_others: int, own: Index, known: int) -> Sequence[int]:
    """What followed the longest run that ends like this, in other traces first."""
    for length in range(len(ending), SHORTEST - 1, -1):
        run = tuple(ending[-length:])
        if proposal := of_others.following(run, known_of_others) or own.following(run, known):
            return proposal
    return ()


def num_equal(proposal: Sequence[int], actual: Sequence[int]) -> int:
    """The length of the longest common beginning."""
    pairs = enumerate(zip(proposal, actual, strict=False))
    return next((count for count, (one, two) in pairs if one != two), min(len(proposal), len(actual)))


def replay(folder: Path, tokenize: Callable[[str], list[int]], end: int) -> list[Replayed]:
    questions = {str(each["id"]): each for each in json.loads((folder / "questions.json").read_text())}
    by_question: dict[str, list[str]] = collections.defaultdict(list)
    for line in sorted(read_jsonl(folder / "traces.jsonl"), key=lambda line: line["sample"]):
        by_question[str(line["id"])].append(line["trace"])
    replayed = []
    for name, traces in by_question.items():
        question = Question(name, questions[name]["question"], questions[name]["answer"])
        prompt, texts = tokenize(question.question), [[*tokenize(trace), end] for trace in traces]
        right = [check_numeric(question, trace).correct for trace in traces]
        for sample, text in enumerate(texts):
            others = [*texts[:sample], *texts[sample + 1 :]]
            num_right = (
                count_right(prompt, text, ()),
                count_right(prompt, text, texts[:sample]),
                count_right(prompt, text, others, are_finished=False),
            )
            is_needed = sample < NUM_SAMPLES and not any(right[:sample])
            replayed.append(Replayed(sample, is_needed, dict(zip(SOURCES, num_right, strict=True))))
    return replayed


def rate(traces: Sequence[Replayed], sources: str, num_proposed: int) -> float:
    """Tokens per step, over all steps of some traces."""
    steps = sum(trace.num_steps(sources, num_proposed) for trace in traces)
    return sum(len(trace.num_right[sources]) for trace in traces) / steps


def cases(traces: Sequence[Replayed]) -> dict[str, tuple[list[Replayed], str]]:
    """Rows of the table: which traces, and with which sources."""

    def by_sample(some: Sequence[Replayed]) -> dict[str, tuple[list[Replayed], str]]:
        groups: dict[int, list[Replayed]] = collections.defaultdict(list)
        for trace in some:
            groups[trace.sample].append(trace)
        return {
            f"{len(some)} traces: sample {sample} of {len(group)} questions": (group, "own, finished")
            for sample, group in sorted(groups.items())
        }

    needed = [trace for trace in traces if trace.is_needed]
    return {
        "own text only": (list(traces), "own"),
        "all samples, one after the other": (list(traces), "own, finished"),
        **by_sample(traces),
        "until: all, side by side": (list(traces), "own, lockstep"),
        ENOUGH: (needed, "own, finished"),
        **by_sample(needed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--memory_ms", type=float, default=14.9, help="a decode step's, bound by bytes")
    parser.add_argument("--compute_ms", type=float, default=1.7, help="a decode step's, bound by flops")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.tokenizer)
    end: Any = tokenizer.eos_token_id
    traces = replay(args.folder, lambda text: tokenizer.encode(text, add_special_tokens=False), end)
    proposed = range(1, MOST_PROPOSED + 1)
    print("Tokens per step, the one sampled anyway included, by number of proposed tokens:\n")
    _print_row("", map(str, proposed))
    _print_row("---", ["---"] * len(proposed))
    rates = {name: [rate(*case, count) for count in proposed] for name, case in cases(traces).items()}
    plain = max(args.memory_ms, args.compute_ms)
    growth = [max(args.memory_ms, (count + 1) * args.compute_ms) / plain for count in proposed]
    rates["a step's time, by its bounds"] = growth
    rates["until: enough, speed by these bounds"] = [
        tokens / time for tokens, time in zip(rates[ENOUGH], growth, strict=True)
    ]
    for name, figures in rates.items():
        _print_row(name, (f"{figure:.2f}" for figure in figures))


def _print_row(name: str, cells: Iterable[str]) -> None:
    print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
