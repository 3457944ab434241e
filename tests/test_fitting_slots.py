"""num_slots: auto: as many as fit in memory, no more than are of use, and one line about it."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from conftest import TINY

from tpt_jax.config import AUTO, MeshConfig, SamplingConfig
from tpt_jax.config_parsing import load_config, parse_config, settings
from tpt_jax.errors import UserError
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.models.masters import master_bytes
from tpt_jax.models.published import PUBLISHED
from tpt_jax.runtime import memory
from tpt_jax.runtime.memory import GIB, DoesNotFitError, free_bytes, peak_bytes
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import DECODE_RULES, TRAIN_RULES, Layout
from tpt_jax.think import fitting_slots
from tpt_jax.think.fitting_slots import bytes_per_slot, compile_fitting, most_useful, weight_bytes
from tpt_jax.think.sampling import Filters
from tpt_jax.think.sampling_plan import slot_shape, think_shape
from tpt_jax.think.state import SlotShape

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
SHAPE = SlotShape(
    num_slots=10_000,
    num_questions=2500,
    num_traces=10_000,
    num_prefix_tokens=0,
    max_prompt_tokens=16,
    max_new_tokens=17,
    auto_slots=True,
)
FLOAT32 = jnp.dtype("float32")


@pytest.fixture(scope="module")
def one_device() -> Layout:
    return Layout(make_mesh(MeshConfig(), jax.devices()[:1]), DECODE_RULES)


def fit(layout: Layout, room: float, fixed: float, per_slot: float, shape: SlotShape = SHAPE) -> tuple[int, list[int]]:
    """The slots of a program whose memory is known, and the numbers that were compiled on the way."""
    tried = []

    def compile_shape(shape: SlotShape) -> Any:
        assert not shape.auto_slots
        tried.append(shape.num_slots)
        need = int(fixed + per_slot * shape.num_slots)
        sizes = {"peak_memory_in_bytes": need, "argument_size_in_bytes": need}
        analysis = SimpleNamespace(**sizes, output_size_in_bytes=0, alias_size_in_bytes=0)
        return SimpleNamespace(shape=shape, decode_chunk=SimpleNamespace(memory_analysis=lambda: analysis))

    options: dict[str, Any] = {"room": room, "resident": 1000}
    program = compile_fitting(compile_shape, "think", shape, TINY["llama"], layout, FLOAT32, **options)
    return program.shape.num_slots, tried


@pytest.mark.parametrize("error", [0.8, 1.0, 1.5])
def test_slots_fill_the_memory_after_two_compilations(
    one_device: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: float
) -> None:
    """Even if a slot takes more or less than expected."""
    monkeypatch.setattr(fitting_slots, "MOST_ON_CPU", 10_000)
    per_slot = error * bytes_per_slot(SHAPE, TINY["llama"], one_device, FLOAT32)
    weights = weight_bytes(SHAPE, TINY["llama"], one_device, FLOAT32)
    count, tried = fit(one_device, weights + 1000 * per_slot, weights, per_slot)
    assert 950 <= count <= 1000
    assert count % 8 == 0
    assert len(tried) <= 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"think.num_slots: auto takes {count}, {count} per shard, more do not fit; sampling needs 0.0"
    )


def test_slots_that_are_of_no_use_are_not_compiled(one_device: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(one_device, 1e9, 1e6, 1000) == (64, [64])
    assert "more would hardly be faster" in capsys.readouterr().err
    few = dataclasses.replace(SHAPE, num_slots=13)
    assert fit(one_device, 1e9, 1e6, 1000, few) == (13, [13])
    assert "there are no more traces at a time" in capsys.readouterr().err


def test_the_memory_of_fewer_slots_than_a_tile(one_device: Layout) -> None:
    weights = weight_bytes(SHAPE, TINY["llama"], one_device, FLOAT32)
    per_slot = bytes_per_slot(SHAPE, TINY["llama"], one_device, FLOAT32)
    assert fit(one_device, weights + 5.5 * per_slot, weights, per_slot)[0] == 5
    with pytest.raises(DoesNotFitError) as error:
        fit(one_device, weights + 0.5 * per_slot, weights, per_slot)
    assert str(error.value).startswith("think.num_slots (auto): not one slot fits, with it the sampler needs 0.0 of")
    assert str(error.value).endswith(
        "per device; try a larger mesh.tensor, or think.cache_type: int8, or think.weights: int8, or "
        "train.offload: true"
    )
    assert "\n" not in str(error.value)


def test_the_need_of_a_program_counts_arguments_and_results() -> None:
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    compiled = jax.jit(lambda a, b: (a @ b, a)).lower(x, x).compile()
    assert 4 * x.size * 4 <= peak_bytes(compiled) < 6 * x.size * 4


def test_as_many_as_pay_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a number of rows, and not many times the bytes of the weights in caches."""
    device = SimpleNamespace(platform="tpu")
    layout: Any = SimpleNamespace(
        mesh=SimpleNamespace(devices=SimpleNamespace(flat=[device])), ways=lambda axes: 1, rules={"kv_heads": ()}
    )
    monkeypatch.setattr(fitting_slots, "weight_bytes", lambda *_: 5.2e9)
    model, bfloat16 = PUBLISHED["gemma2-2b"], jnp.dtype("bfloat16")
    shape = dataclasses.replace(SHAPE, max_prompt_tokens=320, max_new_tokens=512)
    cache = 2 * 2 * 26 * 4 * 256 * 831
    assert most_useful(shape, model, layout, bfloat16) == -int(-8 * 5.2e9 // cache)
    assert most_useful(SHAPE, model, layout, bfloat16) == 1024


def test_slots_that_traces_could_fill() -> None:
    """All samples of all questions; but one of each, and no more than are kept, if they are asked one by one."""
    common: dict[str, Any] = {"num_questions": 1800, "num_samples": 4, "num_prefix_tokens": 0, "max_prompt_tokens": 9}
    common |= {"max_new_tokens": 9, "num_shards": 8, "filters": Filters(), "cache_type": "int8", "weights": "int8"}
    shape = slot_shape(num_slots=AUTO, option="think.", **common)
    assert (shape.num_slots, shape.auto_slots) == (900, True)
    assert not slot_shape(num_slots=8, option="think.", **common).auto_slots
    overrides: dict[str, Any]
    for overrides, most in (
        ({}, 63),  # 500 kept traces, on eight shards
        ({"prune.max_traces": None}, 225),
        ({"think.until": "all"}, 900),
        ({"think.until": "all", "think.max_samples": 8}, 1800),
    ):
        config = load_config(QUICKSTART, {"think.num_slots": "auto", **overrides})
        assert think_shape(shape, config, 8).num_slots == most


def test_memory_of_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = make_mesh(MeshConfig())
    monkeypatch.setattr(memory, "_free_bytes_of_machine", lambda: 16 * GIB)
    assert free_bytes(mesh) == GIB  # half of the machine's, for eight devices
    chips = [
        SimpleNamespace(platform="tpu", device_kind="TPU v5", memory_stats=lambda used=used: used)
        for used in ({"bytes_limit": 1000, "bytes_in_use": 100}, {"bytes_limit": 1000, "bytes_in_use": 300})
    ]
    pod: Any = SimpleNamespace(local_devices=chips)
    assert free_bytes(pod) == 650
    chips[0].memory_stats = lambda: None
    with pytest.raises(UserError, match=r"num_slots \(auto\): TPU v5 does not report its memory; give a number"):
        free_bytes(pod)


def test_memory_of_this_machine() -> None:
    total = memory.os.sysconf("SC_PHYS_PAGES") * memory.os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory._free_bytes_of_machine() <= total


def test_bytes_of_the_fp32_weights_are_those_of_a_shard() -> None:
    config = PUBLISHED["llama3.2-1b"]
    assert master_bytes(config, Layout(make_mesh(MeshConfig()), TRAIN_RULES)) == pytest.approx(
        4 * config.num_parameters / 8, rel=1e-3
    )


def test_the_setting_is_a_number_or_auto(tmp_path: Path) -> None:
    config = load_config(QUICKSTART, {"think.num_slots": "auto", "evaluate.num_slots": AUTO})
    assert (config.think.num_slots, config.evaluate.num_slots) == (AUTO, AUTO)
    RunFolder.open(tmp_path, config).begin(config)
    assert parse_config(load_tree(tmp_path / "config.yaml")) == config
    RunFolder.open(tmp_path, load_config(QUICKSTART))  # a run may go on with another number
    for wrong in ("0", "-8", "many", "1.5", "true", "null"):
        with pytest.raises(UserError, match=r"^think\.num_slots \(.*\): .*must be a whole number from 1, or auto$"):
            load_config(QUICKSTART, {"think.num_slots": wrong})
    with pytest.raises(UserError, match=r"^--num_slots \('all'\)"):
        settings(SamplingConfig, {"num_slots": "all"}, option="--")


def load_tree(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text())
