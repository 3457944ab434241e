"""The steps by name, and their form in a config: a list of names, or of one-key mappings with a step's options.

[correct, unique_calculations, {shortest: {count: 1}}]
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pydantic
import yaml

from tpt_jax.errors import UserError, suggestion
from tpt_jax.io.yaml_text import parse_yaml
from tpt_jax.prune.step import AnyStep, Step, Trim
from tpt_jax.prune.steps.agreement import Majority, PassRate
from tpt_jax.prune.steps.diversity import Diverse
from tpt_jax.prune.steps.draws import Random
from tpt_jax.prune.steps.lengths import FewestSteps, MedianLength, Shortest
from tpt_jax.prune.steps.own import Own
from tpt_jax.prune.steps.scores import HighestLogprob, LowestEntropy, LowestLogprob, LowestSurprisal
from tpt_jax.prune.steps.texts import UniqueCalculations, UniqueTexts
from tpt_jax.prune.steps.trims import TrimAfterAnswer, TrimSteps
from tpt_jax.prune.steps.verdicts import AnyVerdict, Correct, Strict

STEPS: Mapping[str, type[AnyStep]] = {
    step.name: step
    for step in (
        Correct,
        Strict,
        AnyVerdict,
        UniqueTexts,
        UniqueCalculations,
        Shortest,
        MedianLength,
        FewestSteps,
        HighestLogprob,
        LowestLogprob,
        LowestSurprisal,
        LowestEntropy,
        Majority,
        PassRate,
        Diverse,
        Random,
        Own,
        TrimAfterAnswer,
        TrimSteps,
    )
}
DEFAULT_STEPS: tuple[AnyStep, ...] = (Correct(), UniqueTexts())


def parse_steps(value: Any, option: str = "prune.steps") -> tuple[AnyStep, ...]:
    """Steps from their form in a config.

    Args:
      value: a list of names, one-key mappings and steps; or its text in YAML, with or without its brackets.
      option: what the user calls it, for messages.

    Raises:
      UserError: it is no such list; a step or one of its options is unknown or invalid; or a step that selects follows
        one that trims.
    """
    if isinstance(value, str):
        value = _parse_text(value, option)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence):
        raise UserError(f"{option} ({value!r:.80}): must be a list of steps, such as [correct, unique_texts]")
    steps = tuple(_parse_step(each, option) for each in value)
    for earlier, later in itertools.pairwise(steps):
        if isinstance(earlier, Trim) and isinstance(later, Step):
            raise UserError(
                f"{option}: {earlier.name} comes before {later.name}; put it after all steps that select, because it "
                "changes the traces that they keep"
            )
    return steps


def dump_steps(steps: Iterable[AnyStep]) -> list[Any]:
    """Their form in a config, without options that have their defaults."""
    return [_dump_step(step) for step in steps]


def _parse_text(text: str, option: str) -> Any:
    try:
        return parse_yaml(text if text.lstrip().startswith("[") else f"[{text}]")
    except yaml.YAMLError as error:
        raise UserError(f"{option} ({text!r}): not a list; write names with commas, or a list in YAML") from error


def _parse_step(value: Any, option: str) -> AnyStep:
    if isinstance(value, Step | Trim):
        return value
    if isinstance(value, str):
        value = {value: None}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise UserError(f"{option} ({value!r:.80}): not a step; write a name, or {{name: {{option: value}}}}")
    ((name, options),) = value.items()
    if name not in STEPS:
        raise UserError(f"{option}: unknown step {name!r}; {suggestion(str(name), STEPS)}")
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise UserError(f"{option}.{name} ({options!r:.80}): must be a mapping of its options{_options_of(name)}")
    try:
        return _adapter(name).validate_python(dict(options))
    except pydantic.ValidationError as error:
        raise UserError(_first_error(error, name, f"{option}.{name}")) from error


def _first_error(error: pydantic.ValidationError, name: str, option: str) -> str:
    """The first mistake in a step's options, in one line."""
    first = error.errors()[0]
    key = ".".join([option, *map(str, first["loc"])])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [field.name for field in dataclasses.fields(STEPS[name])]  # pyright: ignore[reportArgumentType]
        return f"{key}: unknown option; {suggestion(str(first['loc'][-1]), known) if known else f'{name} has none'}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{key}: missing; it has no default, so set it"
    if not first["loc"]:
        return f"{key}: {first['msg']}"
    value = " ".join(repr(first["input"]).split())
    return f"{key} ({value}): {first['msg'][0].lower()}{first['msg'][1:]}"


def _options_of(name: str) -> str:
    names = [field.name for field in dataclasses.fields(STEPS[name])]  # pyright: ignore[reportArgumentType]
    return f": {', '.join(names)}" if names else "; it has none"


def _dump_step(step: AnyStep) -> Any:
    fields: Any = dataclasses.fields(step)  # pyright: ignore[reportArgumentType]
    options = {field.name: getattr(step, field.name) for field in fields}
    changed = {field.name: options[field.name] for field in fields if options[field.name] != field.default}
    return {step.name: changed} if changed else step.name


@functools.cache
def _adapter(name: str) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(STEPS[name])
