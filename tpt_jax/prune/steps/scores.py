"""Steps by the model's own scores of what it sampled."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from tpt_jax.errors import STRICT
from tpt_jax.prune.reasoning_steps import reasoning_steps, tokens_of
from tpt_jax.prune.step import Ranking
from tpt_jax.records import Trace, Verdict


@dataclass(frozen=True, config=STRICT)
class HighestLogprob(Ranking):
    """Keeps the traces of each question with the highest mean log-probability a token: the lowest perplexity.

    The end of turn counts as a token. Pruning by the perplexity of a model: Marion et al., arXiv 2309.04564.
    """

    name: ClassVar[str] = "highest_logprob"
    needs: ClassVar[frozenset[str]] = frozenset({"logprob", "token_ids"})

    def measure(self, trace: Trace, verdict: Verdict) -> Any:
        return trace.logprob / max(1, trace.num_sampled)

    def rank(self, values: Sequence[Any]) -> Sequence[Any]:
        return [-value for value in values]


@dataclass(frozen=True, config=STRICT)
class LowestLogprob(HighestLogprob):
    """Keeps the traces of each question with the lowest mean log-probability a token: the most surprising right ones.

    The end of turn counts as a token. Pruning by the perplexity of a model: Marion et al., arXiv 2309.04564.
    """

    name: ClassVar[str] = "lowest_logprob"

    def rank(self, values: Sequence[Any]) -> Sequence[Any]:
        return values


@dataclass(frozen=True, config=STRICT)
class LowestSurprisal(Ranking):
    """Keeps the traces of each question whose reasoning steps begin least surprisingly.

    Measures the mean, over steps, of -log p of the step's first token, at temperature 1. ASAP (Zeng et al., Pruning the
    Unsurprising, arXiv 2508.05988) ranks the steps inside a trace by it, and drops unsurprising ones; here it ranks
    traces.
    """

    name: ClassVar[str] = "lowest_surprisal"
    needs: ClassVar[frozenset[str]] = frozenset({"token_logprobs", "token_ends"})

    def measure(self, trace: Trace, verdict: Verdict) -> Any:
        firsts = [tokens_of(step, trace.token_ends)[:1] for step in reasoning_steps(trace.completion)]
        surprisals = [-trace.token_logprobs[index] for first in firsts for index in first]
        return sum(surprisals) / max(1, len(surprisals))


@dataclass(frozen=True, config=STRICT)
class LowestEntropy(Ranking):
    """Keeps the traces of each question whose reasoning steps have the lowest mean entropy.

    A step's entropy is the sum of its tokens' (Li et al., Compressing Chain-of-Thought in LLMs via Step Entropy,
    arXiv 2508.03346), so the mean over steps is the trace's entropy, end of turn included, by the number of steps. The
    paper drops steps of low entropy inside a trace, as `trim_steps` does; here it ranks traces.
    """

    name: ClassVar[str] = "lowest_entropy"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def measure(self, trace: Trace, verdict: Verdict) -> Any:
        return trace.entropy / max(1, len(reasoning_steps(trace.completion)))
