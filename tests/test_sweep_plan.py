"""What each stage of a run depends on, and the arms that a sweep's settings make."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tpt_jax.config_parsing import flat, load_config, override, plain_values, read_tree
from tpt_jax.loop import stage_keys
from tpt_jax.loop.run_folder import Stage
from tpt_jax.loop.stage_keys import StageKeys
from tpt_jax.loop.sweep_plan import make_plan, split_values

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"

# What depends on a setting: the weights given (W0), and the stages of two rounds: think, prune, train (weights),
# evaluate. The digests of the kept traces stay as they are here, so a training depends on the earlier ones only.
NOTHING = ""
AFTER_THINK = "T1 P1 T2 P2"
AFTER_TRAIN = "W1 E1 T2 P2 W2 E2"
ALL_BUT_BASE = f"E0 T1 P1 {AFTER_TRAIN}"
SAMPLING: Mapping[str, Any] = {
    "num_questions": 7, "num_samples": 3, "temperature": 0.3, "top_k": 5, "top_p": 0.9, "min_p": 0.1,
    "max_prompt_tokens": 63, "max_new_tokens": 79, "num_slots": 8, "cache_type": "int8", "weights": "int8",
}  # fmt: skip
PRUNING: Mapping[str, Any] = {"steps": ["any"], "max_per_question": 2, "max_traces": 7}
CHANGES: Mapping[str, tuple[str, Any]] = {
    "name": (NOTHING, "other"),
    "model.path": (f"W0 {ALL_BUT_BASE}", "other"),
    "model.version": (f"W0 {ALL_BUT_BASE}", "2"),
    "model.compute_dtype": (ALL_BUT_BASE, "bfloat16"),
    "task.name": (ALL_BUT_BASE, "gsm8k"),
    "task.templates": (ALL_BUT_BASE, [43, 10]),
    "task.max_number": (ALL_BUT_BASE, 41),
    "task.num_train": (ALL_BUT_BASE, 7000),
    "task.num_test": (ALL_BUT_BASE, 399),
    "prompt.instruction": (ALL_BUT_BASE, "Think."),
    "prompt.num_shots": (ALL_BUT_BASE, 1),
    "prompt.template": (ALL_BUT_BASE, "plain"),
    "prompt.stop": (ALL_BUT_BASE, ["###"]),
    "seed": (ALL_BUT_BASE, 1),
    "num_rounds": (NOTHING, 5),
    "early_stop": (NOTHING, True),
    "keep_checkpoints": (NOTHING, 1),
    "mesh.data": (ALL_BUT_BASE, 2),
    "mesh.fsdp": (ALL_BUT_BASE, 2),
    "mesh.tensor": (ALL_BUT_BASE, 2),
    **{f"think.{name}": (AFTER_THINK, value) for name, value in SAMPLING.items()},
    "think.until": (AFTER_THINK, "all"),
    "think.max_samples": (AFTER_THINK, 8),
    "think.token_scores": (AFTER_THINK, True),
    **{f"evaluate.{name}": ("E0 E1 E2", value) for name, value in SAMPLING.items()},
    **{f"prune.{name}": (AFTER_THINK, value) for name, value in PRUNING.items()},  # it says when there is enough
    "prune.num_workers": (NOTHING, 3),
    "prune.seconds_per_trace": (f"E0 {AFTER_THINK} E1 E2", 9.0),
    "prune.run_code_without_sandbox": (f"E0 {AFTER_THINK} E1 E2", True),
    "train.start_from": ("W2 E2", "base"),
    "train.traces_of": ("W2 E2", "round"),
    "train.num_epochs": (AFTER_TRAIN, 2),
    "train.max_steps": (AFTER_TRAIN, 7),
    "train.rows": (AFTER_TRAIN, 8),
    "train.sequence_length": (AFTER_TRAIN, 128),
    "train.micro_batches": (AFTER_TRAIN, 2),
    "train.attention": (AFTER_TRAIN, "xla"),
    "train.remat": (AFTER_TRAIN, "full"),
    "train.offload": (NOTHING, True),
    "train.save_every": (NOTHING, 7),
    "train.loss.name": (AFTER_TRAIN, "focal"),
    "train.loss.focal_gamma": (AFTER_TRAIN, 3.0),
    "train.loss.clip_above": (AFTER_TRAIN, 0.8),
    "train.optimizer.name": (AFTER_TRAIN, "adamw"),
    "train.optimizer.learning_rate": (AFTER_TRAIN, 1e-4),
    "train.optimizer.warmup_fraction": (AFTER_TRAIN, 0.2),
    "train.optimizer.weight_decay": (AFTER_TRAIN, 0.1),
    "train.optimizer.beta1": (AFTER_TRAIN, 0.8),
    "train.optimizer.beta2": (AFTER_TRAIN, 0.9),
    "train.optimizer.first_moment": (AFTER_TRAIN, "bfloat16"),
    "train.optimizer.second_moment": (AFTER_TRAIN, "bfloat16"),
    "train.lora": (f"W0 {ALL_BUT_BASE}", {"rank": 4}),
    "train.optimizer.max_grad_norm": (AFTER_TRAIN, 2.0),
    "trackers.wandb": (NOTHING, "project"),
    "trackers.trackio": (NOTHING, "project"),
    "profile_steps": (NOTHING, "1:2"),
    "profile_chunks": (NOTHING, "1:2"),
}


STAGES: Mapping[str, Stage] = {"T": "think", "P": "prune", "W": "train", "E": "evaluate"}


def keys(changes: Mapping[str, Any], digests: tuple[str, str] = ("a", "b")) -> dict[str, str]:
    """The keys of all stages of two rounds of the quickstart."""
    tree = read_tree(QUICKSTART)
    if "task.name" in changes:
        tree["task"] = {}
    of_run = StageKeys(override(tree, changes), lambda index: digests[index - 1])
    made = {"W0": of_run.key(0, "train"), "E0": of_run.key(0, "evaluate")}
    for index in (1, 2):
        made |= {f"{letter}{index}": of_run.key(index, stage) for letter, stage in STAGES.items()}
    return made


BEFORE = keys({})


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    return {stage for stage in before if before[stage] != after[stage]}


# Keys.


def test_every_setting_is_known_to_influence_some_stages() -> None:
    assert flat(plain_values(load_config(QUICKSTART))).keys() == CHANGES.keys(), "say what a new setting influences"
    assert len(set(BEFORE.values())) == 10


@pytest.mark.parametrize("setting", CHANGES)
def test_a_setting_changes_the_keys_of_the_stages_that_read_it(setting: str) -> None:
    stages, value = CHANGES[setting]
    assert changed(BEFORE, keys({setting: value})) == set(stages.split())


def test_adapters_of_other_seeds_are_other_weights() -> None:
    assert "W0" not in changed(BEFORE, keys({"seed": 5}))
    lora = {"train.lora": {"rank": 4}}
    assert "W0" in changed(keys(lora), keys({**lora, "seed": 5}))


@pytest.mark.parametrize("setting", PRUNING)
def test_if_all_samples_are_taken_they_are_the_same_whatever_is_kept(setting: str) -> None:
    take_all = {"think.until": "all"}
    assert changed(keys(take_all), keys({**take_all, f"prune.{setting}": PRUNING[setting]})) == {"P1", "P2"}


def test_a_setting_that_is_not_listed_changes_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {name: kinds for name, kinds in stage_keys.READ_BY.items() if name != "train.save_every"}
    monkeypatch.setattr(stage_keys, "READ_BY", listed)
    assert changed(BEFORE, keys({"train.save_every": 7})) == BEFORE.keys()


def test_every_listed_setting_exists() -> None:
    leaves = CHANGES.keys()
    assert not [name for name in stage_keys.READ_BY if not any(f"{leaf}.".startswith(f"{name}.") for leaf in leaves)]


def test_a_training_reads_the_traces_that_were_kept_and_not_how() -> None:
    assert changed(BEFORE, keys({}, ("other", "b"))) == set(AFTER_TRAIN.split())
    assert changed(BEFORE, keys({}, ("a", "other"))) == {"W2", "E2"}
    one_round = keys({"train.traces_of": "round", "train.start_from": "base"})
    other = keys({"train.traces_of": "round", "train.start_from": "base"}, ("other", "b"))
    assert changed(one_round, other) == {"W1", "E1", "T2", "P2"}  # round 2 starts from the base, with its own traces


# Plans.


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("500,1000, 2000", ["500", "1000", "2000"]),
        ("[correct];[correct, {shortest: {count: 1}}]", ["[correct]", "[correct, {shortest: {count: 1}}]"]),
        ("'a, b',\"c; d\"", ["a, b", "c; d"]),
        ("don't,won't", ["don't", "won't"]),
        ("{a: 'x], y'},null", ["{a: 'x], y'}", "null"]),
    ],
)
def test_values_are_separated_outside_of_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_a_grid_and_a_list_of_arms(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    section = "sweep: {seeds: 2, arms: {not pruned: {prune.steps: [any]}, pruned: {}}, vary: {train.rows: [16, 8]}}"
    path.write_text(f"extends: {QUICKSTART}\nname: mine\nseed: 7\n{section}\n")
    plan = make_plan(read_tree(path), {"num_rounds": "1"}, vary={"train.loss.name": ["focal"]}, seeds=3)
    assert plan.seeds == (7, 8, 9)
    assert [arm.name for arm in plan.arms] == [
        f"{name} rows={rows} loss.name=focal" for name in ("not pruned", "pruned") for rows in (16, 8)
    ]
    assert [len(arm.config.prune.steps) for arm in plan.arms] == [1, 1, 2, 2]
    assert {arm.config.num_rounds for arm in plan.arms} == {1}
    assert plan.arms[0].folder == "not-pruned-rows=16-loss.name=focal"
    (arm,) = make_plan(read_tree(QUICKSTART), {}, vary={"prune.steps": ["[correct, {shortest: {count: 1}}]"]}).arms
    assert arm.folder == "steps=correct-shortest-count-1"


def test_folders_of_arms_are_safe_and_differ() -> None:
    names = ("../../x", "..", "a/b", "A b", "a b", "‮😀", "-rf", "x" * 300, "x" * 301)
    arms = {name: {"train.rows": 2 * index + 2} for index, name in enumerate(names)}
    folders = [arm.folder for arm in make_plan(read_tree(QUICKSTART), {}, arms=arms).arms]
    assert all(re.fullmatch(r"[A-Za-z0-9=_][A-Za-z0-9=_.-]{0,90}", folder) for folder in folders), folders
    assert len({folder.casefold() for folder in folders}) == len(names)
