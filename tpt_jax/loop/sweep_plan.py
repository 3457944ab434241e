"""The plan of a sweep: its arms, which differ in some settings, and the folder of each run.

A file for `tpt sweep` is a run's config with one more section, which the command line can add to:

    extends: quickstart.yaml
    name: traces
    sweep:
      seeds: 3                                  # the config's seed, and the next ones
      vary:                                     # a grid: every combination is an arm
        prune.max_traces: [500, 1000, 2000]
      arms:                                     # a list: each arm by itself, or each with every combination above
        pruned: {}
        not pruned: {prune.steps: [any, unique_texts]}

SWEEP/sweep.yaml                      the plan
SWEEP/arms/<arm>/seed-<n>/            one run
SWEEP/report.html
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pydantic
import yaml
from pydantic.dataclasses import dataclass

from tpt_jax.config import RunConfig
from tpt_jax.config_parsing import SWEEP, override, parse_config, plain_values, settings
from tpt_jax.errors import STRICT, UserError
from tpt_jax.io.files import write_atomically
from tpt_jax.io.paths import Path, is_remote, to_path
from tpt_jax.io.yaml_text import parse_yaml
from tpt_jax.loop.run_folder import RunFolder, first_difference, has_results, is_empty

MAX_SEEDS = 1000
MAX_FOLDER_NAME = 80  # characters
OPENING, CLOSING, QUOTES = "([{", ")]}", "'\""
ANOTHER = "give another --sweep_dir"

Settings = Mapping[str, Any]  # by dotted key


@dataclass(frozen=True, config=STRICT)
class SweepSection:
    """The section `sweep` of a config file.

    Attributes:
      seeds: runs of each arm.
      vary: the values of each varied key.
      arms: the settings of each arm, by its name.
    """

    seeds: Annotated[int, pydantic.Field(ge=1, le=MAX_SEEDS)] = 1
    vary: dict[str, Annotated[list[Any], pydantic.Field(min_length=1)]] = pydantic.Field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = pydantic.Field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A config that is run with every seed.

    Attributes:
      name: what sets it apart, for people.
      folder: the name as a folder's.
      settings: those in which it differs from the sweep's config, as plain values.
    """

    name: str
    folder: str
    settings: Settings
    config: RunConfig


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """All runs of a sweep; the first arm is what the others are compared with."""

    name: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]

    def run_config(self, arm: Arm, seed: int) -> RunConfig:
        return dataclasses.replace(arm.config, name=f"{self.name}: {arm.name}, seed {seed}", seed=seed)


@dataclasses.dataclass(frozen=True)
class SweepFolder:
    """The folder of a sweep."""

    path: Path

    @classmethod
    def open(cls, path: str | os.PathLike[str], plan: SweepPlan) -> "SweepFolder":
        """Opens a folder to resume, or one for a new sweep; writes nothing before `begin`.

        Raises:
          UserError: the folder holds results of a sweep with another plan or a run with another config, or something
            else.
        """
        folder = cls(to_path(path))
        if folder.plan_file.is_file():
            if not folder.has_results():
                return folder  # a command with a mistake: the corrected one takes its place
            difference = _first_difference(folder.read_plan(), plan)
            if difference is not None:
                raise UserError(f"{path}: holds a sweep with another plan ({difference}); {ANOTHER}")
        elif not is_remote(folder.path) and folder.path.exists() and not is_empty(folder.path):
            raise UserError(f"{path}: is neither a sweep's folder nor empty; {ANOTHER}")
        for arm in plan.arms:
            for seed in plan.seeds:
                RunFolder.open(folder.run(arm, seed), plan.run_config(arm, seed))
        return folder

    def begin(self, plan: SweepPlan) -> None:
        """Writes the plan, which makes this a sweep's folder."""
        arms = {arm.name: {"folder": arm.folder, "settings": dict(arm.settings)} for arm in plan.arms}
        configs = {arm.name: plain_values(arm.config) for arm in plan.arms}
        tree = {"name": plan.name, "seeds": list(plan.seeds), "arms": arms, "configs": configs}
        write_atomically(
            self.plan_file, "# tpt sweep\n" + yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        )

    def read_plan(self) -> SweepPlan:
        """The plan as written.

        Raises:
          UserError: the file cannot be read.
        """
        try:
            tree = parse_yaml(self.plan_file.read_text(encoding="utf-8"))
            arms = tuple(
                Arm(name, arm["folder"], arm["settings"], parse_config(tree["configs"][name]))
                for name, arm in tree["arms"].items()
            )
            return SweepPlan(tree["name"], arms, tuple(tree["seeds"]))
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.plan_file}: cannot be read; restore it, or {ANOTHER}") from error

    def has_results(self) -> bool:
        """Whether a run of the sweep has computed something."""
        return any(map(has_results, self.path.glob("arms/*/*")))

    @property
    def plan_file(self) -> Path:
        return self.path / "sweep.yaml"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def run(self, arm: Arm, seed: int) -> Path:
        """The folder of a run."""
        return self.path / "arms" / arm.folder / f"seed-{seed}"


class _Dumper(yaml.SafeDumper):
    """Writes a config that several arms share in full each time: anchors are hard to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def make_plan(
    tree: Mapping[str, Any],
    overrides: Settings,
    *,
    vary: Mapping[str, Sequence[Any]] | None = None,
    arms: Mapping[str, Settings] | None = None,
    seeds: int | None = None,
) -> SweepPlan:
    """The plan of a config with a section `sweep` or without; every arm's config is checked.

    Args:
      tree: the plain values of the config file.
      overrides: settings of all arms.
      vary, arms: as in the section, and added to it; text is parsed as on the command line.
      seeds: instead of the number in the section.

    Raises:
      UserError: a key is unknown or varied twice, a value is invalid, or two arms are the same.
    """
    tree = dict(tree)
    written = tree.pop(SWEEP, {})
    section = settings(SweepSection, written if seeds is None else {**written, "seeds": seeds}, f"{SWEEP}.")
    vary = {key: list(values) for key, values in (vary or {}).items()}
    if twice := vary.keys() & section.vary.keys() or (arms or {}).keys() & section.arms.keys():
        raise UserError(f"{sorted(twice)[0]}: is varied twice, in the file and in the call; leave one out")
    vary, arms = {**section.vary, **vary}, {**section.arms, **(arms or {})}
    base = override(tree, overrides)
    _check_keys(vary, arms)
    made: list[Arm] = []
    for name, chosen in _combinations(vary, arms, base.name):
        config = override(tree, {**overrides, **chosen})
        equal = next((arm.name for arm in made if arm.config == config), None)
        if equal is not None:
            raise UserError(f"arms {equal!r} and {name!r} are the same; leave one out")
        if name in (arm.name for arm in made):
            raise UserError(f"two arms are called {name!r}; give one of them another name")
        made.append(Arm(name, _folder_name(name, made), chosen, config))
    numbers = range(base.seed, base.seed + section.seeds)
    if numbers[-1] >= 2**32:
        raise UserError(f"seed ({base.seed}): {section.seeds} seeds from there pass 2**32; start lower")
    return SweepPlan(base.name, tuple(made), tuple(numbers))


def split_values(text: str) -> list[str]:
    """The values in the text of a --vary: separated by , or ; outside of brackets and quotes.

    >>> split_values("[correct]; [correct, {shortest: {count: 1}}]")
    ['[correct]', '[correct, {shortest: {count: 1}}]']

    Raises:
      UserError: a value is empty, or a bracket or quote is not closed.
    """
    values, start, depth, quote = [], 0, 0, ""
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES and (depth or not text[start:place].strip()):  # not an apostrophe in a word
            quote = character
        elif character in OPENING:
            depth += 1
        elif character in CLOSING:
            depth -= 1
        elif character in ",;" and depth == 0:
            values.append(text[start:place].strip())
            start = place + 1
    values.append(text[start:].strip())
    if depth or quote:
        raise UserError(f"--vary ({text!r}): a bracket or a quote is open at the end; close it")
    if not all(values):
        raise UserError(f"--vary ({text!r}): a value is empty; write KEY=V1,V2, and null for none")
    return [_unquoted(value) for value in values]


def _unquoted(text: str) -> str:
    """Text in quotes without them, so that it may hold commas."""
    return str(parse_yaml(text)) if text[0] in QUOTES and text[-1] == text[0] and len(text) > 1 else text


def _check_keys(vary: Mapping[str, Any], arms: Mapping[str, Settings]) -> None:
    """Refuses keys whose values would overwrite each other, and those that the sweep sets itself."""
    for chosen in arms.values() if arms else ({},):
        keys = [*vary, *chosen]
        for key, other in itertools.combinations(keys, 2):
            if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                raise UserError(f"{other}: is varied twice, the other time as {key}; leave one out")
        if "seed" in keys:
            raise UserError("seed: is not varied like other keys; give --seeds N for N seeds of every arm")
        if "name" in keys:
            raise UserError("name: each run is named after its arm; leave it out")


def _combinations(
    vary: Mapping[str, Sequence[Any]], arms: Mapping[str, Settings], name: str
) -> list[tuple[str, dict[str, Any]]]:
    """The name and the settings of every arm."""
    grid = [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]
    short = {key: ".".join(key.split(".")[-2 if key.endswith(".name") else -1 :]) for key in vary}
    labels = {key: key if list(short.values()).count(label) > 1 else label for key, label in short.items()}
    combined = []
    for arm, chosen in (arms or {"": {}}).items():
        for values in grid:
            words = [*([arm] if arm else []), *(f"{labels[key]}={_as_text(value)}" for key, value in values.items())]
            combined.append((" ".join(words) or name, {**chosen, **values}))
    return combined


def _as_text(value: Any) -> str:
    """A value as in a YAML file, on one line."""
    if isinstance(value, str):
        return " ".join(value.split())
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _folder_name(name: str, made: Sequence[Arm]) -> str:
    """The name without what file systems and shells treat specially, unlike those of the other arms."""
    plain = re.sub(r"[^A-Za-z0-9=_.]+", "-", name).replace("=-", "=").strip("-.")[:MAX_FOLDER_NAME] or "arm"
    taken = {arm.folder.casefold() for arm in made}
    numbered = (f"{plain}-{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([plain], numbered) if each.casefold() not in taken)


def _first_difference(there: SweepPlan, here: SweepPlan) -> str | None:
    """The first difference that affects results."""
    if there.seeds != here.seeds:
        return f"seeds {', '.join(map(str, there.seeds))} there, {', '.join(map(str, here.seeds))} here"
    ours = {arm.name: arm for arm in here.arms}
    if [arm.name for arm in there.arms] != list(ours):
        missing = [arm.name for arm in there.arms if arm.name not in ours]
        added = [name for name in ours if name not in {arm.name for arm in there.arms}]
        if missing:
            return f"arm {missing[0]!r} there, not here"
        return f"arm {added[0]!r} here, not there" if added else "the order of its arms"
    for arm in there.arms:
        difference = first_difference(plain_values(arm.config), plain_values(ours[arm.name].config))
        if difference is not None:
            return f"arm {arm.name!r}: {difference}"
    return None
