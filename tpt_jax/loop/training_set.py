"""A round needs traces to train on: if there are none, the error says why, and which setting to change."""

from collections.abc import Mapping, Sequence
from typing import Any

from tpt_jax.config import RunConfig
from tpt_jax.errors import UserError
from tpt_jax.prompts import Example
from tpt_jax.prune.summary import FORMAT_ONLY, STRICT
from tpt_jax.train.data import row_length, split_by_length

NUM_REASONS = 3  # how many kinds of wrong traces the message counts
ELSEWHERE = "in another --run_dir"  # a run goes on with the settings that it started with


def check_training_set(
    examples: Sequence[Example], round_index: int, pruned: Mapping[str, Any], config: RunConfig
) -> None:
    """Refuses to train on nothing.

    Args:
      examples: of all rounds whose traces this round trains on.
      pruned: the figures of this round's selection, as `select_traces` returns them.

    Raises:
      UserError: no trace was kept, or none of the kept ones fits train.sequence_length.
    """
    if not examples:
        raise UserError(f"round {round_index}: no trace was kept: {_why_none_was_kept(pruned, config)}, {ELSEWHERE}")
    if not split_by_length(examples, config.train.sequence_length)[0]:
        shortest = min(map(row_length, examples))
        raise UserError(
            f"round {round_index}: none of the {len(examples)} kept traces fits train.sequence_length "
            f"({config.train.sequence_length}): the shortest needs {shortest}; set at least that, {ELSEWHERE}"
        )


def _why_none_was_kept(pruned: Mapping[str, Any], config: RunConfig) -> str:
    """The figures of the selection, and the setting that is most likely to help."""
    num_traces, num_correct, num_cut = pruned["num_traces"], pruned["num_correct"], pruned["num_dropped"]["unfinished"]
    reasons = [f"{label}: {count}" for label, count in pruned["verdicts"].items() if label not in (STRICT, FORMAT_ONLY)]
    counts = f"{num_correct} of {num_traces} correct"
    if reasons:
        counts += f" ({', '.join(reasons[:NUM_REASONS])})"
    if num_cut:
        counts += f", {num_cut} cut at think.max_new_tokens ({config.think.max_new_tokens})"
    emptied = _emptied_by(pruned)
    counts += f"; none was left after {emptied}" if emptied else ""
    if 2 * num_cut >= num_traces:
        advice = "raise think.max_new_tokens, or give in prompt.stop a text that follows an answer"
    elif num_correct and emptied == "strict":
        advice = "set correct instead of it in prune.steps"
    elif num_correct and emptied not in ("correct", None):
        advice = "leave it out of prune.steps, or change its options"
    else:
        advice = "set prompt.num_shots, ask easier questions, or sample more (think.num_questions, think.num_samples)"
    return f"{counts}; {advice}"


def _emptied_by(pruned: Mapping[str, Any]) -> str | None:
    """The guard or step that dropped the last trace; None if there was none to drop."""
    num_left = pruned["num_traces"]
    for name, count in pruned["num_dropped"].items():
        num_left -= count
        if not num_left:
            return name if count else None
    return None
