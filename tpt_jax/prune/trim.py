"""Applies the trimming steps of a pipeline to the traces that were kept.

A trimmed trace is never trained on unless its verdict is that of the whole trace: callers have it judged again, and the
whole trace is kept where the verdict differs.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.prune.step import Span
from tpt_jax.records import JudgedTrace, Trace, Verdict

Judge = Callable[[Sequence[Trace]], Iterable[Verdict]]  # in order
Encode = Callable[[Trace], tuple[int, ...] | None]  # token ids of a completion; None if it cannot be trained on


def trimmed_completion(pipeline: Pipeline, trace: Trace) -> str:
    """What the trimming steps leave of a completion: all of it, if they drop nothing but whitespace at its end.

    Whitespace before the completion stays, and there is none at a trimmed end.
    """
    text = trace.completion
    dropped = sorted(span for step in pipeline.trims for span in step.drop(trace))
    left = "".join(text[start:end] for start, end in _complement(dropped, len(text)))
    left = text[: len(text) - len(text.lstrip())] + left.strip()
    return text if left == text.rstrip() else left


def trim(
    pipeline: Pipeline, kept: Sequence[JudgedTrace], judge: Judge, encode: Encode = lambda trace: ()
) -> list[JudgedTrace]:
    """The kept traces, trimmed where that does not change their verdicts.

    A trimmed trace has the token ids of its text, tokenized anew, and none of the scores of what was sampled.

    Args:
      encode: leaves out the token ids if not given.
    """
    trimmed: dict[int, Trace] = {}
    for index, trace in enumerate(each.trace for each in kept):
        completion = trimmed_completion(pipeline, trace)
        if completion != trace.completion:
            new = Trace(trace.id, trace.sample, completion, finish_reason=trace.finish_reason)
            if (token_ids := encode(new)) is not None:
                trimmed[index] = dataclasses.replace(new, token_ids=token_ids)
    verdicts = dict(zip(trimmed, judge([*trimmed.values()]), strict=True)) if trimmed else {}
    return [
        dataclasses.replace(each, trace=trimmed[index])
        if index in trimmed and is_same(verdicts[index], each.verdict)
        else each
        for index, each in enumerate(kept)
    ]


def is_same(verdict: Verdict, other: Verdict) -> bool:
    """Whether two verdicts say the same, whatever their reasons."""
    return dataclasses.replace(verdict, reason="") == dataclasses.replace(other, reason="")


def _complement(dropped: Sequence[Span], length: int) -> list[Span]:
    """The parts of a text outside of sorted spans, which may overlap."""
    left, start = [], 0
    for begin, end in [*dropped, (length, length)]:
        if begin > start:
            left.append((start, begin))
        start = max(start, end)
    return left
