"""The room that a run says it will need, against what it writes."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.config import RunConfig
from tpt_jax.config_parsing import load_config
from tpt_jax.io.paths import to_path
from tpt_jax.loop.room import needed_bytes, say_if_short

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
Usage = namedtuple("Usage", "total used free")


def config(**overrides: str) -> RunConfig:
    return load_config(QUICKSTART, {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.mark.parametrize(
    ("overrides", "num_fp32_copies"),
    [
        ({"num_rounds": "4", "train__optimizer__name": "adamw"}, 5 + 3 * 3),
        ({"num_rounds": "4", "train__optimizer__name": "muon"}, 5 + 3 * 2),
        ({"num_rounds": "9", "keep_checkpoints": "1", "train__optimizer__name": "adafactor"}, 3 + 3),
        ({"num_rounds": "4", "train__optimizer__name": "adamw", "train__optimizer__first_moment": "bfloat16"}, 12.5),
    ],
)
def test_room_is_counted_in_copies_of_the_weights(overrides: dict[str, str], num_fp32_copies: float) -> None:
    model = ModelFolder.open("quickstart").config
    assert needed_bytes(config(**overrides), model) == num_fp32_copies * 4 * model.num_parameters


def test_a_disk_that_is_too_small_is_said_beforehand_without_what_is_there_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ModelFolder.open("quickstart").config
    needed = needed_bytes(config(), model)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, needed - 1000))
    say_if_short(to_path(tmp_path), config(), model)
    assert f"take up to {needed / 1e6:,.1f} MB, but the disk of {tmp_path} has" in capsys.readouterr().err
    (tmp_path / "checkpoints" / "000").mkdir(parents=True)
    (tmp_path / "checkpoints" / "000" / "weights").write_bytes(bytes(1000))
    say_if_short(to_path(tmp_path), config(), model)
    assert capsys.readouterr().err == ""
