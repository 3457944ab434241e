"""Applies a pipeline to judged traces in memory."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

from tpt_jax.errors import UserError
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.records import TOKEN_FIELDS, JudgedTrace

SCORES = ("token_logprobs", "token_entropies", "token_ends")  # a run keeps them if think.token_scores is set


@dataclasses.dataclass(frozen=True)
class Selection:
    """The kept traces, sorted by question and sample, and the number of dropped ones by what dropped them."""

    kept: tuple[JudgedTrace, ...]
    num_dropped: dict[str, int]


def select(
    pipeline: Pipeline,
    judged: Sequence[JudgedTrace],
    is_held_out: Callable[[str], bool] = lambda name: False,
    option: str = "prune.steps",
) -> Selection:
    """Selects among traces in memory, as Pipeline.choose.

    Args:
      option: what the user calls the steps, for messages.

    Raises:
      UserError: the traces lack what a step needs, or a step of the user's own failed.
    """
    candidates = [pipeline.candidate(each.trace, each.verdict) for each in checked(pipeline, judged, option)]
    choice = pipeline.choose(candidates, is_held_out)
    return Selection(tuple(dataclasses.replace(judged[index], kept=True) for index in choice.kept), choice.num_dropped)


def checked(pipeline: Pipeline, judged: Iterable[JudgedTrace], option: str = "prune.steps") -> Iterator[JudgedTrace]:
    """Passes traces on, and makes sure that they have what the steps need.

    Args:
      option: what the user calls the steps, for messages.

    Raises:
      UserError: they lack it; names step and field.
    """
    sums = pipeline.needs - {*TOKEN_FIELDS}  # one may be 0, but not in all traces
    has_text = False
    for each in judged:
        if each.trace.completion:
            has_text = True
            missing = {field for field in pipeline.needs if not getattr(each.trace, field)}
            sums &= missing
            if missing & {*TOKEN_FIELDS}:
                raise lack(pipeline, min(missing & {*TOKEN_FIELDS} | sums), option)
        yield each
    if has_text and sums:
        raise lack(pipeline, min(sums), option)


def lack(pipeline: Pipeline, field: str, option: str) -> UserError:
    """The error that stored traces lack a field that a step needs."""
    name = next(step.name for step in pipeline.steps if field in step.needs)
    advice = "sample them with think.token_scores: true" if field in SCORES else "take traces that tpt sampled"
    return UserError(f"{option}: {name} needs {field}, which the traces lack; {advice}")
