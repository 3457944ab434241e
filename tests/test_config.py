"""Configs: shipped files load and round-trip, overrides reach every option, and each mistake is one helpful line."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from tpt_jax.config import ModelSource, OptimizerConfig, PruneConfig, RunConfig, SamplingConfig, TrainConfig
from tpt_jax.config_parsing import dump_config, load_config, parse_config, parse_overrides, read_tree, settings
from tpt_jax.errors import UserError
from tpt_jax.loop.sweep_plan import make_plan
from tpt_jax.prune.step import AnyStep
from tpt_jax.prune.steps.lengths import Shortest
from tpt_jax.prune.steps.verdicts import Correct
from tpt_jax.tasks import FileConfig, Gsm8kConfig

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
SWEEPS = sorted(path for path in CONFIGS[0].parent.glob("*/*.yaml") if path.parent.name in ("paper", "sweeps"))
QUICKSTART = CONFIGS[0].parent / "quickstart.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_round_trip(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert parse_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_shipped_sweeps_load(path: Path) -> None:
    tree = read_tree(path)
    plan = make_plan(tree, {})
    assert plan.name == path.stem
    if "sweep" in tree:
        assert plan.seeds == (0, 1, 2)
        with pytest.raises(UserError, match="run it with `tpt sweep"):
            load_config(path)
    else:
        assert [arm.config for arm in plan.arms] == [load_config(path)]


def test_the_control_differs_from_the_quickstart_only_in_the_traces_it_keeps() -> None:
    names = ("quickstart", "quickstart_no_prune")
    quickstart, control = (dump_config(load_config(QUICKSTART.with_stem(name))).splitlines() for name in names)
    differences = [(ours, theirs) for ours, theirs in zip(quickstart, control, strict=True) if ours != theirs]
    assert [(ours.strip(), theirs.strip()) for ours, theirs in differences] == [
        ("name: quickstart", "name: quickstart_no_prune"),
        ("- correct", "- any"),
    ]


def test_evaluation_keeps_its_own_default_temperature() -> None:
    tree = {"name": "n", "model": {"path": "p"}, "task": {"name": "gsm8k"}, "evaluate": {"num_samples": 2}}
    assert parse_config(tree).evaluate.temperature == 0.7
    assert parse_config(tree).think.temperature == 0.8


def test_a_config_is_immutable() -> None:
    config: RunConfig = load_config(QUICKSTART)
    with pytest.raises(AttributeError):
        config.seed = 1  # pyright: ignore[reportAttributeAccessIssue]


# Overrides.


def test_command_line_overrides_reach_every_depth() -> None:
    overrides = parse_overrides(["--train.optimizer.learning_rate", "1e-5", "--seed=7", "--prune.max_traces", "null"])
    config = load_config(QUICKSTART, overrides)
    assert (config.train.optimizer.learning_rate, config.seed, config.prune.max_traces) == (1e-5, 7, None)


@pytest.mark.parametrize(
    ("by_value", "by_text"),
    [
        ({"num_rounds": 1}, {"num_rounds": "1"}),
        ({"train": {"rows": 8}}, {"train.rows": "8"}),
        ({"train.optimizer": {"learning_rate": 3e-3}}, {"train.optimizer.learning_rate": "3e-3"}),
        ({"train": MappingProxyType({"optimizer": {"name": "adamw"}})}, {"train.optimizer.name": "adamw"}),
        ({"prune.max_traces": None}, {"prune.max_traces": "null"}),
        ({"task": {"templates": (43, 10)}}, {"task.templates": "[43, 10]"}),
        ({"prompt": {"instruction": "null # hm"}}, {"prompt.instruction": "null # hm"}),
    ],
)
def test_python_values_override_like_their_text(by_value: dict[str, Any], by_text: dict[str, Any]) -> None:
    changed = load_config(QUICKSTART, by_value)
    assert changed == load_config(QUICKSTART, by_text) != load_config(QUICKSTART)


def test_text_within_a_mapping_is_not_parsed() -> None:
    """It comes from Python, which has None."""
    assert load_config(QUICKSTART, {"trackers.wandb": "null"}).trackers.wandb is None
    assert load_config(QUICKSTART, {"model": {"version": "null"}}).model.version == "null"


def test_an_override_may_be_a_section() -> None:
    config = load_config(QUICKSTART, {"train": TrainConfig(rows=3), "task": Gsm8kConfig("gsm8k")})
    assert (config.train, config.task) == (TrainConfig(rows=3), Gsm8kConfig("gsm8k"))
    assert config.think.max_new_tokens == 80  # from the file, so the task's default of 512 does not apply


def test_overrides_leave_the_mappings_they_come_in_unchanged() -> None:
    train: dict[str, Any] = {"optimizer": {"name": "adamw"}}
    load_config(QUICKSTART, {"train": train, "train.optimizer.learning_rate": "1", "train.rows": 2})
    assert train == {"optimizer": {"name": "adamw"}}


# Single sections.


def test_settings_builds_a_section_from_plain_values() -> None:
    train = settings(TrainConfig, {"rows": 8, "optimizer": {"name": "muon"}})
    assert train == TrainConfig(rows=8, optimizer=OptimizerConfig(name="muon"))
    assert settings(TrainConfig, {"optimizer": OptimizerConfig(name="muon")}) == TrainConfig(optimizer=train.optimizer)
    assert settings(PruneConfig, {}) == PruneConfig()
    config = settings(FileConfig, {"name": "file", "train": "a.jsonl", "test": Path("b.jsonl")})
    assert config == FileConfig("file", Path("a.jsonl"), Path("b.jsonl"))


@pytest.mark.parametrize(
    ("cls", "values", "option", "message"),
    [
        (TrainConfig, {"row": 8}, "", "row: unknown key; did you mean rows?"),
        (TrainConfig, {"row": 8}, "train.", "train.row: unknown key; did you mean rows?"),
        (SamplingConfig, {"top_q": 8}, "--", "--top_q: unknown key; did you mean top_p?"),
        (
            TrainConfig,
            {"optimizer": {"nam": "muon"}},
            "train.",
            "train.optimizer.nam: unknown key; did you mean name?",
        ),
        (TrainConfig, {"rows": "many"}, "", "rows ('many'): input should be a valid integer"),
        (TrainConfig, {"loss": {"focal_gamma": 0}}, "", "loss.focal_gamma (0): input should be greater than or equal"),
        (TrainConfig, {"rows": "a\nb"}, "", r"rows ('a\nb'): input should be a valid integer"),
        (ModelSource, {}, "model.", "model.path: missing; it has no default, so set it"),
        (RunConfig, {"task": {"name": "gsm9k"}}, "", "name: missing"),
    ],
)
def test_mistakes_in_settings_are_one_line(cls: type, values: dict[str, Any], option: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        settings(cls, values, option)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("correct,shortest", (Correct(), Shortest())),
        ("correct", (Correct(),)),
        ("[correct, {shortest: {count: 2}}]", (Correct(), Shortest(count=2))),
        ("{shortest: {count: 2}}", (Shortest(count=2),)),
        ("correct, shortest: {count: 2}", (Correct(), Shortest(count=2))),
        ("[]", ()),
    ],
)
def test_steps_are_names_with_commas_or_a_list_in_yaml(text: str, expected: tuple[AnyStep, ...]) -> None:
    config = load_config(QUICKSTART, parse_overrides(["--prune.steps", text]))
    assert config.prune.steps == expected
    assert parse_config(yaml.safe_load(dump_config(config))) == config


# Mistakes in a run's config.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trian.rows", "8"], r"trian: unknown key; did you mean train\?"),
        (["--train.row", "8"], r"train\.row: unknown key; did you mean rows\?"),
        (["--train.optimizer.lr", "8"], r"train\.optimizer\.lr: unknown key; choose from name, learning_rate"),
        (["--task.max_numbr", "8"], r"task\.max_numbr: unknown key; did you mean max_number\?"),
        (["--train.rows", "many"], r"train\.rows \('many'\): input should be a valid integer"),
        (["--train.rows", "0"], r"train\.rows \(0\): input should be greater than 0"),
        (["--think.top_k", "0"], r"think\.top_k \(0\): input should be greater than 0"),
        (["--think.top_p", "1.5"], r"think\.top_p \(1\.5\): input should be less than or equal to 1"),
        (["--think.min_p", "1.5"], r"think\.min_p \(1\.5\): input should be less than or equal to 1"),
        (["--think.temperature", ".inf"], r"think\.temperature \(inf\): input should be a finite number"),
        (["--think.num_samples", "["], r"think\.num_samples \('\['\): not YAML; quote it"),
        (["--seed", "4294967296"], r"seed \(4294967296\): input should be less than 4294967296"),
        (["--prune.steps", "corect"], r"prune\.steps: unknown step 'corect'; did you mean correct\?"),
        (
            ["--prune.steps", "[correct, {shortest: {cont: 1}}]"],
            r"shortest\.cont: unknown option; did you mean count\?",
        ),
        (["--prune.steps", "correct: {count: 1}"], r"prune\.steps\.correct\.count: unknown option; correct has none"),
        (["--prune.steps", "shortest: {count: 0}"], r"shortest\.count \(0\): input should be greater than 0"),
        (["--prune.steps", "pass_rate: {high: 2}"], r"pass_rate\.high \(2\): input should be less than or equal to 1"),
        (["--prune.steps", "shortest: 2"], r"prune\.steps\.shortest \(2\): must be a mapping of its options: count"),
        (["--prune.steps", "diverse"], r"prune\.steps\.diverse\.count: missing; it has no default"),
        (["--prune.steps", "random"], r"prune\.steps\.random: give either count or share"),
        (["--prune.steps", "[[correct]]"], r"prune\.steps \(\['correct'\]\): not a step; write a name, or"),
        (["--prune.steps", "3"], r"prune\.steps \(3\): not a step"),
        (["--prune.steps", "[correct"], r"prune\.steps \('\[correct'\): not a list; write names with commas, or"),
        (["--task.name", "gsm9k"], r"task\.name \('gsm9k'\): unknown; choose from .*'gsm8k', 'gsm_symbolic'"),
        (["--task.name", "null"], r"task\.name"),
        (["--task.num_test", "0"], r"task\.num_test \(0\): input should be greater than 0"),
        (["--seed.deep", "1"], r"seed"),
        (["--name.first", "1"], r"name\.first: name is a value, not a section"),
        (["train.rows", "8"], "'train.rows': unexpected argument; write overrides as --key.sub VALUE"),
        (["--train.rows"], r"--train\.rows has no value"),
    ],
)
def test_a_mistake_in_an_override_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(QUICKSTART, parse_overrides(arguments))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not YAML"),
        ("- name", "must be a mapping of keys to values"),
        ("extends: none.yaml", r"none\.yaml: no such config file"),
        ("name: mine", "model: missing; it has no default, so set it"),
        ("name: mine\nmodel: {path: p}\ntask: {}", r"task\.name: missing; it has no default, so set it"),
        ("extends: mine.yaml\nname: mine", "extends itself"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
