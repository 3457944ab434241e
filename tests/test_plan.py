"""`tpt plan`: cost of a program from its HLO, the search for what fits, bounds of a round, and a plan end to end."""

import dataclasses
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
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpt_jax.config import MeshConfig, OptimizerConfig, TrainConfig
from tpt_jax.config_parsing import load_config
from tpt_jax.errors import UserError
from tpt_jax.models.published import PUBLISHED, published
from tpt_jax.plan.chips import CHIPS, chip_of
from tpt_jax.plan.hlo import Module
from tpt_jax.plan.phases import Cost, Phase
from tpt_jax.plan.planner import model_config
from tpt_jax.plan.rounds import SPREAD, Assumptions, expected_traces, stage_bounds
from tpt_jax.plan.timeline import Wires
from tpt_jax.runtime.largest import MAX_COMPILES, largest_that_fits
from tpt_jax.runtime.memory import DoesNotFitError, MemoryNeed, explain_out_of_memory
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import DECODE_RULES, TRAIN_RULES, Layout
from tpt_jax.think.fitting_slots import fewer_slots
from tpt_jax.think.state import SlotShape
from tpt_jax.train.compile import suggest_smaller_step

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*_gsm8k.yaml"))
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux only")
SLOTS = SlotShape(
    num_slots=8,
    num_questions=100,
    num_traces=400,
    num_prefix_tokens=0,
    max_prompt_tokens=320,
    max_new_tokens=512,
)


def compile_function(function: Any, *shapes: tuple[int, ...]) -> Module:
    compiled = jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()
    return Module(str(compiled.as_text()))


def test_flops_of_einsum_and_matmul() -> None:
    module = compile_function(lambda x, y, z: jnp.einsum("abc,bcd->ad", x, y) @ z, (4, 5, 6), (5, 6, 7), (7, 8))
    assert module.flops() == 2 * (4 * 7 * 30 + 4 * 8 * 7)


def test_flops_of_a_loop_count_every_trip() -> None:
    def products(x: jax.Array, stack: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, y: (x @ y, ()), x, stack)[0]

    assert compile_function(products, (16, 16), (9, 16, 16)).flops() == 9 * 2 * 16**3


# Products as XLA's TPU compiler writes them. A batch dimension of both sides becomes a window that matches once.
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
def test_flops_of_products_written_as_convolutions(name: str) -> None:
    instruction, left, right, flops = CONVOLUTIONS[name]
    lines = ["ENTRY %main (a: f32[1]) -> f32[1] {", f"  %x = {left} parameter(0)", f"  %y = {right} parameter(1)"]
    assert Module("\n".join([*lines, f"  ROOT %z = {instruction}", "}"])).flops() == flops


def test_bytes_of_a_loop_count_the_slices_it_reads() -> None:
    """Nine trips, each reading one of nine rows of 64 bytes and an index, and writing the row; a copy on the chip."""
    text = """\
%slice (p0: f32[9,16], p1: s32[]) -> f32[1,16] {
  %p0 = f32[9,16]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,16]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,16}
}
%body (state: (s32[], f32[9,16], f32[1,16])) -> (s32[], f32[9,16], f32[1,16]) {
  %state = (s32[], f32[9,16]{1,0}, f32[1,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %rows = f32[9,16]{1,0} get-tuple-element(%state), index=1
  %one = s32[] constant(1)
  %next = s32[]{:S(6)} add(%i, %one)
  %row = f32[1,16]{1,0} fusion(%rows, %i), kind=kLoop, calls=%slice
  ROOT %result = (s32[], f32[9,16]{1,0}, f32[1,16]{1,0}) tuple(%next, %rows, %row)
}
%condition (state: (s32[], f32[9,16], f32[1,16])) -> pred[] {
  %state = (s32[], f32[9,16]{1,0}, f32[1,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(9)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}
ENTRY %main (start: (s32[], f32[9,16], f32[1,16])) -> (s32[], f32[9,16], f32[1,16]) {
  %start = (s32[], f32[9,16]{1,0}, f32[1,16]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[9,16]{1,0}, f32[1,16]{1,0}) while(%start), condition=%condition, body=%body
}"""
    add_bytes, row_bytes = 4 + 4, 64 + 4 + 64
    assert Module(text).bytes() == 9 * (add_bytes + row_bytes)


def test_bytes_of_asynchronous_copies_are_those_moved() -> None:
    """A row is read into on-chip memory, which is not counted, and a whole array is copied within main memory."""
    lines = [
        "ENTRY %main (a: s8[4,1024]) -> s8[4,1024] {",
        "  %x = s8[4,1024]{1,0} parameter(0)",
        "  %row = ((s8[4,1024]{1,0}), s8[1,1024]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[1:2], [0:1024]}",
        "  %done = s8[1,1024]{1,0:S(1)} slice-done(%row)",
        "  %copy = (s8[4,1024]{1,0}, s8[4,1024]{1,0}, u32[]{:S(2)}) copy-start(%x)",
        "  ROOT %copied = s8[4,1024]{1,0} copy-done(%copy)",
        "}",
    ]
    assert Module("\n".join(lines)).bytes() == 1024 + 2 * 4096


@settings(deadline=None)
@given(
    fixed=st.floats(0, 90),
    per_unit=st.floats(0.001, 5),
    exponent=st.floats(0.7, 1.3),
    start=st.integers(1, 4000),
    unit=st.sampled_from([1, 8, 64]),
)
def test_the_search_ends_at_a_size_that_fits(
    fixed: float, per_unit: float, exponent: float, start: int, unit: int
) -> None:
    """Memory grows about linearly. A refused compilation reports the memory needed, as here at odd sizes."""
    tried = []

    def needed(size: int) -> float:
        tried.append(size)
        need = fixed + per_unit * size**exponent
        if need > 100 and size % 2:
            raise DoesNotFitError("no", MemoryNeed(need, 100))
        return need

    size = largest_that_fits(needed, 100, start=start, unit=unit)
    assert size % unit == 0 or size < unit
    assert len(tried) <= MAX_COMPILES
    if size:
        assert fixed + per_unit * size**exponent <= 100


def test_the_search_finds_the_largest_size_of_linear_memory() -> None:
    assert largest_that_fits(lambda size: 10.0 + size, 100, start=16, unit=1) in range(86, 91)  # within 5% of 90
    assert largest_that_fits(lambda size: 1000.0, 100, start=16, unit=1) == 0


@given(
    fixed=st.floats(0, 9000),
    per_unit=st.floats(1, 500),
    error=st.floats(0.7, 1.4),
    guess=st.floats(0.3, 3),
    most=st.integers(1, 4000),
)
def test_with_a_known_slope_three_compilations_find_the_largest_size(
    fixed: float, per_unit: float, error: float, guess: float, most: int
) -> None:
    """If it is known to within some forty percent; a size of 1 always fits here."""
    tried = []

    def needed(size: int) -> float:
        tried.append(size)
        return fixed + per_unit * size

    best = min(most, int((9500 - fixed) / per_unit))
    start = max(1, min(int(guess * best), most))
    size = largest_that_fits(needed, 9500, start=start, most=most, per_unit=error * per_unit, max_compiles=3)
    assert size <= best
    assert size >= best / 1.05 - 2
    assert max(tried) <= most


def test_published_models_have_two_names() -> None:
    assert published("google/gemma-2-2b-it") == published("gemma2-2b") == PUBLISHED["gemma2-2b"]
    assert published("meta-llama/Llama-3.1-70B-Instruct") == PUBLISHED["llama3.1-70b"]
    assert published("mistral-7b") is None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_can_be_planned_without_their_weights(path: Path) -> None:
    assert model_config(load_config(path)).num_parameters > 5e8


def test_unknown_topologies_and_models_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"--topology v9:2x2: must begin with one of v4, v5e"):
        chip_of("v9:2x2")
    config = load_config(ROOT / "configs/gemma2_2b_gsm8k.yaml", {"model.path": "nowhere/mine"})
    with pytest.raises(UserError, match=r"model\.path \(nowhere/mine\): no such folder.*gemma2-2b"):
        model_config(config)


def test_bounds_of_a_round_whose_phases_take_a_second_each() -> None:
    config = load_config(
        ROOT / "configs/gemma2_2b_gsm8k.yaml",
        {"prune.max_traces": "1000", "train.micro_batches": "2", "think.until": "all"},
    )
    chip = CHIPS["v5e"]
    one_second = Cost(round(chip.flops), 0, Wires({}, 0.5, 0.25, 1000))  # waiting is not part of the bound
    names = ("think: prefill", "think: decode", "train step")
    phases = [Phase(name, "", None, one_second, tokens=2 * 8) for name in names]
    bounds = stage_bounds(config, phases, {"think": SLOTS, "evaluate": SLOTS}, 2, Assumptions(100, 160, 0.6), chip)
    seconds = {bound.stage: bound.seconds for bound in bounds}
    num_batches = math.ceil(100 * 100 / (640 * 0.95))  # of two blocks of 320 tokens
    assert seconds["think"] == pytest.approx(400 * 160 / 8 + num_batches, rel=1e-6)
    assert seconds["evaluate"] == seconds["think"]
    num_kept = 200  # one per question, on two shards
    assert seconds["train"] == pytest.approx(math.ceil(num_kept * 260 / (2 * 32 * 1024 * 0.95)), rel=1e-6)


@pytest.mark.parametrize("right_share", [0.3, 0.63, 0.9])
def test_expected_traces_of_a_round_that_asks_for_enough(right_share: float) -> None:
    """Against drawn questions, each asked until its first right trace or four times, until 2,000 are solved."""
    config = load_config(ROOT / "configs/gemma2_2b_gsm8k.yaml")
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(20):
        rates = rng.beta(right_share * SPREAD, (1 - right_share) * SPREAD, 7473)
        first = rng.geometric(np.maximum(rates, 1e-12))  # the first right sample, from 1
        solved = np.cumsum(first <= 4)
        counts.append(np.minimum(first, 4)[: np.searchsorted(solved, 2000) + 1].sum())
    assert expected_traces(config, 7473, right_share) == pytest.approx(np.mean(counts), rel=0.02)
    everything = load_config(ROOT / "configs/gemma2_2b_gsm8k.yaml", {"think.until": "all"})
    assert expected_traces(everything, 7473, right_share) == 29_892


@needs_libtpu
def test_plan_for_a_tpu_slice_on_a_machine_without_one(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    command = [sys.executable, "-m", "tpt_jax", "plan", "--config", str(ROOT / "configs/quickstart.yaml")]
    command += ["--topology", "v5e:2x2", "--model.compute_dtype", "bfloat16", "--train.sequence_length", "256"]
    command += ["--train.remat", "full", "--json", str(tmp_path / "plan.json")]
    command += ["--price_per_chip_hour", "1.2"]
    process = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240, check=False)
    assert process.returncode == 0, process.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    phases = {phase["name"]: phase for phase in plan["phases"]}
    assert list(phases) == ["reshard", "think: prefill", "think: decode", "train step"]
    decode, train = phases["think: decode"]["cost"], phases["train step"]["cost"]
    # 160 slots on four chips: two flops per weight and token, and attention.
    assert 1.8 < decode["flops"] / (plan["num_parameters"] * 40) < 4
    assert 1.0 < train["flops"] / train["least"] < 2.0
    assert plan["round"]["chip_hours"] == pytest.approx(plan["round"]["seconds"] * 4 / 3600)
    assert plan["round"]["price"] == pytest.approx(plan["round"]["chip_hours"] * 1.2)
    # At least: weights gathered in bf16, forward and backward, from the other three chips, and gradients scattered.
    assert sum(train["wires"]["sent"].values()) > 3 * 3 / 4 * plan["num_parameters"] * 2
    assert train["wires"]["waited_seconds"] > 0
    assert phases["train step"]["seconds"] == max(phases["train step"]["seconds_of_parts"].values())
    assert sum(decode["wires"]["sent"].values()) < 1000  # weights that stand still, and no tensor parallelism
    assert "total: " in process.stdout
    assert "at 1.2 per chip-hour" in process.stdout
    assert all(name in process.stdout for name in phases)


def test_out_of_memory_errors_report_the_need_and_other_errors_pass() -> None:
    """The text is that of XLA's TPU compiler."""
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (32.63G) "
        "exceeds available HBM (15.75G)."
    )
    with pytest.raises(DoesNotFitError, match=r"^32\.6 of 15\.75 GiB$") as error, explain_out_of_memory(str):
        raise jax.errors.JaxRuntimeError(text)
    assert error.value.need == MemoryNeed(32.63 * 2**30, 15.75 * 2**30)
    with pytest.raises(DoesNotFitError, match=r"^None$"), explain_out_of_memory(str):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), explain_out_of_memory(str):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")


def test_advice_for_a_sampler_that_does_not_fit() -> None:
    """3.5 slots too many on each of eight shards: 32 slots fewer."""
    layout = Layout(make_mesh(MeshConfig()), DECODE_RULES)
    model, shape = PUBLISHED["gemma2-2b"], dataclasses.replace(SLOTS, num_slots=64)
    need = MemoryNeed(2**34 + 3.5 * shape.bytes_per_slot(model, 2), 2**34)
    line = fewer_slots(need, "think", shape, model, layout, jnp.dtype("bfloat16"))
    assert line.startswith("think.num_slots (512): the sampler needs 16.3 of 16.00 GiB per device; try")
    assert "think.num_slots: 480, or think.cache_type: int8, or think.weights: int8" in line


def test_advice_for_a_train_step_that_does_not_fit() -> None:
    layout = Layout(make_mesh(MeshConfig()), TRAIN_RULES)
    line = suggest_smaller_step(MemoryNeed(2.0**35, 2.0**34), TrainConfig(rows=32), layout)
    assert "32.0 of 16.00 GiB" in line
    assert "train.remat: full, or train.rows: 16 with train.micro_batches: 2" in line
    smallest = TrainConfig(rows=8, remat="full", optimizer=OptimizerConfig(name="adafactor"))
    assert suggest_smaller_step(None, smallest, layout).endswith("try more devices")
