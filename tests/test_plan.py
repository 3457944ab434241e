"""The plan: what is counted in a program, what is looked for, and `tpt plan` for a slice that is not there."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpt_jax.config import MeshConfig, TrainConfig, load_config
from tpt_jax.errors import UserError
from tpt_jax.models.architecture import PUBLISHED, published
from tpt_jax.plan.chips import CHIPS, chip_of
from tpt_jax.plan.command import model_shape
from tpt_jax.plan.hlo import Module
from tpt_jax.plan.phases import Cost, Phase
from tpt_jax.plan.rounds import Lengths, stage_bounds
from tpt_jax.plan.search import MOST_COMPILES, largest
from tpt_jax.runtime.memory import DoesNotFitError, Need
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import DECODE_RULES, TRAIN_RULES, Layout
from tpt_jax.think.sampler import fewer_slots
from tpt_jax.think.state import SlotShape
from tpt_jax.train.compile import smaller_step

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*_gsm8k.yaml"))
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux only")


def compiled(function: Any, *shapes: tuple[int, ...]) -> jax.stages.Compiled:
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def test_flops_are_what_xla_counts_where_there_is_no_loop() -> None:
    program = compiled(lambda x, y, z: jnp.einsum("abc,bcd->ad", x, y) @ z, (4, 5, 6), (5, 6, 7), (7, 8))
    assert Module(str(program.as_text())).flops() == 2 * (4 * 7 * 30 + 4 * 8 * 7)


def test_a_loop_counts_with_its_trips() -> None:
    def products(x: jax.Array, stack: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, y: (x @ y, ()), x, stack)[0]

    program = compiled(products, (16, 16), (9, 16, 16))
    assert Module(str(program.as_text())).flops() == 9 * 2 * 16**3


# As XLA's TPU compiler writes products: a dimension of both sides is a window that meets itself once.
CONVOLUTIONS = {
    "bf[4096,2304] oi[16000,2304]": (
        "f32[4096,16000]{1,0} convolution(%x, %y), dim_labels=bf_oi->bf",
        "f32[4096,2304]{1,0}",
        "f32[16000,2304]{1,0}",
        2 * 4096 * 16000 * 2304,
    ),
    "BTD,DNH->BTNH": (
        "bf16[4,1024,8,256,1]{4,3,2,1,0} convolution(%x, %y), window={size=1x8x2 pad=0_0x7_7x0_0 rhs_reversal=0x1x0}, "
        "dim_labels=0b2f1_2i1o0->0b1f2",
        "bf16[4,1024,2,288,1]{4,3,2,1,0}",
        "bf16[2,288,8,256,1]{4,3,2,1,0}",
        2 * 4 * 1024 * 8 * 256 * 2 * 288,
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_products_that_a_tpu_writes_as_convolutions(name: str) -> None:
    text, left, right, flops = CONVOLUTIONS[name]
    lines = ["ENTRY %main (a: f32[1]) -> f32[1] {", f"  %x = {left} parameter(0)", f"  %y = {right} parameter(1)"]
    assert Module("\n".join([*lines, f"  ROOT %z = {text}", "}"])).flops() == flops


def test_what_collectives_send() -> None:
    lines = [
        "ENTRY %main (a: f32[8]) -> f32[64] {",
        "  %x = f32[8]{0} parameter(0)",
        "  %sum = f32[8]{0} all-reduce(%x), replica_groups={}",
        "  %start = (f32[8]{0}, f32[64]{0}) all-gather-start(%sum), dimensions={0}",
        "  ROOT %done = f32[64]{0} all-gather-done(%start)",
        "}",
    ]
    assert dict(Module("\n".join(lines)).collectives()) == {"all-reduce": 2 * 32, "all-gather": 256 - 32}


@settings(deadline=None)
@given(
    fixed=st.floats(0, 90),
    each=st.floats(0.001, 5),
    bend=st.floats(0.7, 1.3),
    start=st.integers(1, 4000),
    unit=st.sampled_from([1, 8, 64]),
)
def test_the_largest_that_fits_is_found(fixed: float, each: float, bend: float, start: int, unit: int) -> None:
    """Of memory that grows about as a line; the compiler refuses what is too large, as often as not with a number."""
    calls = []

    def needed(size: int) -> float:
        calls.append(size)
        need = fixed + each * size**bend
        if need > 100 and size % 2:
            raise DoesNotFitError("no", Need(need, 100))
        return need

    found = largest(needed, 100, start=start, unit=unit)
    assert found % unit == 0
    assert len(calls) <= MOST_COMPILES
    if found:
        assert fixed + each * found**bend <= 100


def test_published_models_go_by_both_names() -> None:
    assert published("google/gemma-2-2b-it") == published("gemma2-2b") == PUBLISHED["gemma2-2b"]
    assert published("meta-llama/Llama-3.1-70B-Instruct") == PUBLISHED["llama3.1-70b"]
    assert published("mistral-7b") is None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_models_of_the_configs_are_known_without_their_weights(path: Path) -> None:
    assert model_shape(load_config(path)).num_parameters > 5e8


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match=r"--topology v9:2x2: must begin with one of v4, v5e"):
        chip_of("v9:2x2")
    config = load_config(ROOT / "configs/gemma2_2b_gsm8k.yaml", {"model.path": "nowhere", "model.source": "mine"})
    with pytest.raises(UserError, match=r"model\.path \(nowhere\): no such folder.*gemma2-2b"):
        model_shape(config)


def test_a_round_is_its_phases_as_often_as_they_run() -> None:
    config = load_config(
        ROOT / "configs/gemma2_2b_gsm8k.yaml", {"prune.max_traces": "1000", "train.micro_batches": "2"}
    )
    chip = CHIPS["v5e"]
    one_second = Cost(flops=round(chip.flops), bytes=0, collectives={})
    names = ("think: prefill", "think: decode", "train step")
    phases = [Phase(name, "", None, one_second) for name in names]
    shape = SlotShape(8, 100, 400, 0, 320, 512)
    bounds = stage_bounds(config, phases, {"think": shape, "evaluate": shape}, 2, Lengths(100, 160), chip)
    seconds = {bound.stage: bound.seconds for bound in bounds}
    assert seconds["think"] == pytest.approx(400 * 160 / 8 + math.ceil(100 / 8), rel=1e-6)
    assert seconds["evaluate"] == seconds["think"]
    kept = 200  # one of each question
    assert seconds["train"] == pytest.approx(math.ceil(kept * 260 / (2 * 32 * 1024 * 0.95)), rel=1e-6)


@needs_libtpu
def test_a_plan_for_a_slice_that_is_not_there(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    command = [sys.executable, "-m", "tpt_jax", "plan", "--config", str(ROOT / "configs/quickstart.yaml")]
    options = ["--topology", "v5e:2x2", "--model.compute_dtype", "bfloat16", "--train.sequence_length", "256"]
    to = ["--train.remat", "full", "--json", str(tmp_path / "plan.json")]
    done = subprocess.run([*command, *options, *to], capture_output=True, text=True, env=env, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "plan.json").read_text())
    by_name = {phase["name"]: phase for phase in figures["phases"]}
    assert list(by_name) == ["reshard", "think: prefill", "think: decode", "train step"]
    step, train = by_name["think: decode"]["cost"], by_name["train step"]["cost"]
    # 160 slots on four chips: two flops a weight, and attention.
    assert 1.8 < step["flops"] / (figures["num_parameters"] * 40) < 4
    assert 1.0 < train["flops"] / train["least"] < 2.0
    assert figures["round"]["chip_hours"] == pytest.approx(figures["round"]["seconds"] * 4 / 3600)
    assert "in all" in done.stdout


def test_what_does_not_fit_is_told_with_what_would() -> None:
    """As many slots fewer as the memory lacks, in words that can be copied into a config."""
    layout = Layout(make_mesh(MeshConfig()), DECODE_RULES)
    model, shape = PUBLISHED["gemma2-2b"], SlotShape(64, 100, 400, 0, 320, 512)
    slot = shape.bytes_per_slot(model, 2)
    line = fewer_slots(Need(2**34 + 3.5 * slot, 2**34), "think", shape, model, layout, jnp.dtype("bfloat16"))
    assert line.startswith("think.num_slots (512): the sampler needs 16.3 of 16.00 GiB a device; try")
    assert "think.num_slots: 480, or think.cache_type: int8" in line
    line = smaller_step(Need(2.0**35, 2.0**34), TrainConfig(rows=32), Layout(make_mesh(MeshConfig()), TRAIN_RULES))
    assert "32.0 of 16.00 GiB" in line
    assert "train.remat: full, or train.rows: 16 with train.micro_batches: 2" in line
