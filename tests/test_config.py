"""Configs: what ships is read, what is written is read back, and a mistake is one line that says what to write."""

from pathlib import Path

import pytest

from tpt_jax.config import RunConfig, dump_config, load_config, parse_config, parse_overrides
from tpt_jax.errors import UserError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
QUICKSTART = CONFIGS[0].parent / "quickstart.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_read_and_written_back(path: Path) -> None:
    import yaml

    config = load_config(path)
    assert config.name == path.stem
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_the_control_differs_from_the_quickstart_in_what_it_keeps_alone() -> None:
    """As many traces, right or wrong; everything else the same."""
    quickstart, control = (dump_config(load_config(QUICKSTART.with_stem(name))).splitlines() for name in PAIR)
    differences = [(ours, theirs) for ours, theirs in zip(quickstart, control, strict=True) if ours != theirs]
    assert [(ours.strip(), theirs.strip()) for ours, theirs in differences] == [
        ("name: quickstart", "name: quickstart_no_prune"),
        ("keep: correct", "keep: any"),
    ]


def test_an_evaluation_keeps_its_own_temperature() -> None:
    tree = {"name": "n", "model": {"path": "p"}, "task": {"name": "gsm8k"}, "evaluate": {"num_samples": 2}}
    assert parse_config(tree).evaluate.temperature == 0.7
    assert parse_config(tree).think.temperature == 0.8


PAIR = ("quickstart", "quickstart_no_prune")


def test_overrides_reach_every_depth() -> None:
    overrides = parse_overrides(["--train.optimizer.learning_rate", "1e-5", "--seed=7", "--prune.max_traces", "null"])
    config = load_config(QUICKSTART, overrides)
    assert (config.train.optimizer.learning_rate, config.seed, config.prune.max_traces) == (1e-5, 7, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trian.rows", "8"], "trian: unknown key; did you mean train?"),
        (["--train.row", "8"], r"train\.row: unknown key; did you mean rows?"),
        (["--train.optimizer.lr", "8"], r"train\.optimizer\.lr: unknown key; choose from name, learning_rate"),
        (["--task.max_numbr", "8"], r"task\.max_numbr: unknown key; did you mean max_number?"),
        (["--train.rows", "many"], r"train\.rows \('many'\): input should be a valid integer"),
        (["--train.rows", "0"], r"train\.rows \(0\): input should be greater than 0"),
        (["--think.top_k", "0"], r"think\.top_k \(0\): input should be greater than 0"),
        (["--think.top_p", "0"], r"think\.top_p \(0\): input should be greater than 0"),
        (["--think.min_p", "1.5"], r"think\.min_p \(1\.5\): input should be less than or equal to 1"),
        (["--think.temperature", ".inf"], r"think\.temperature \(inf\): input should be a finite number"),
        (["--think.num_samples", "["], r"--think\.num_samples \[: not YAML"),
        (["--seed", "4294967296"], r"seed \(4294967296\): input should be less than 4294967296"),
        (["--prune.keep", "best"], r"prune\.keep \('best'\): input should be 'correct', 'strict' or 'any'"),
        (["--task.name", "gsm9k"], r"task\.name \('gsm9k'\): unknown; choose from .*'gsm8k', 'gsm_symbolic'"),
        (["--task.name", "null"], r"task\.name"),
        (["--task.num_test", "0"], r"task\.num_test \(0\): input should be greater than 0"),
        (["--seed.deep", "1"], r"seed"),
        (["--name.first", "1"], r"--name\.first: name is a value, not a section"),
        (["train.rows", "8"], "'train.rows' stands alone; write overrides as --key.sub VALUE"),
        (["--train.rows"], r"--train\.rows has no value"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(QUICKSTART, parse_overrides(arguments))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not YAML"),
        ("- name", "must be a mapping of keys to values"),
        ("extends: none.yaml", r"none\.yaml: no such config file"),
        ("name: mine", "model: missing; the config must set it"),
        ("extends: mine.yaml\nname: mine", "extends itself"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_config_cannot_be_changed() -> None:
    config: RunConfig = load_config(QUICKSTART)
    with pytest.raises(AttributeError):
        config.seed = 1  # pyright: ignore[reportAttributeAccessIssue]
