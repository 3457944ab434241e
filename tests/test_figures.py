"""The curves of training steps and of sampling: against a clock, a report of memory and arithmetic by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import TINY

from tpt_jax.loop.figures import Progress, SamplingFigures, StepFigures
from tpt_jax.plan.chips import CHIPS, TPU_KINDS, peak_flops
from tpt_jax.plan.topology import tpu_devices
from tpt_jax.think.engine import Statistics
from tpt_jax.train.fine_tuning import StepRecord

MODEL = TINY["llama"]


def record(step: int, *lengths: int) -> StepRecord:
    return StepRecord(step, 9, loss=1.5, learning_rate=1e-3, grad_norm=2.0, tokens=7, lengths=lengths)


def clock(*times: float) -> Any:
    return iter(times).__next__


def mesh_of(kind: str, *reports: dict[str, int] | None) -> Any:
    devices = [SimpleNamespace(device_kind=kind, memory_stats=lambda report=report: report) for report in reports]
    return SimpleNamespace(devices=np.array(devices), size=len(devices), local_devices=devices)


def test_a_steps_rate_is_over_the_time_since_the_step_before() -> None:
    figures = StepFigures(MODEL, mesh_of("cpu", None, None), clock=clock(100.0, 104.0, 104.5))
    own = {"loss": 1.5, "learning_rate": 1e-3, "grad_norm": 2.0, "tokens": 7}
    assert figures(record(3, 30, 10)) == own  # the process has just started
    assert figures(record(4, 30, 10)) == {**own, "seconds": 4.0, "tokens_per_second": 10.0}
    assert figures(record(5, 20)) == {**own, "seconds": 0.5, "tokens_per_second": 40.0}


def test_mfu_is_the_flops_of_the_model_over_those_of_all_chips() -> None:
    figures = StepFigures(MODEL, mesh_of("TPU v5 lite", {}, {}), clock=clock(0.0, 2.0))
    figures(record(0, 5))
    L, D, N, K, H, F, V = 4, 32, 8, 2, 8, 48, 64  # noqa: N806
    matrices = (  # the output's table, layers, norms
        V * D + L * (D * N * H + 2 * D * K * H + N * H * D + 3 * D * F) + (2 * L + 1) * D
    )
    lengths = (30, 10)
    pairs = sum(length * (length + 1) // 2 for length in lengths)  # of a query and a key that it sees
    flops = 6 * matrices * sum(lengths) + 12 * L * N * H * pairs
    curves = figures(record(1, *lengths))
    assert curves["mfu"] == pytest.approx(flops / 2.0 / (2 * 197e12))
    assert "memory_gib_0" not in curves  # an empty report


def test_memory_is_that_of_each_device() -> None:
    reports = ({"bytes_in_use": 3 * 2**30, "peak_bytes_in_use": 5 * 2**30}, {"bytes_in_use": 2**29})
    curves = StepFigures(MODEL, mesh_of("a chip", *reports))(record(0, 5))
    memory = {name: value for name, value in curves.items() if "memory" in name}
    assert memory == {"memory_gib_0": 3.0, "peak_memory_gib_0": 5.0, "memory_gib_1": 0.5, "peak_memory_gib_1": 0.5}


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),
        ("Tesla T4", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_gpu_goes_by_its_whole_name(kind: str, flops: float | None) -> None:
    assert peak_flops(kind) == flops


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_tpus_are_known_by_the_names_that_libtpu_gives_them(topology: str) -> None:
    (kind,) = {device.device_kind for device in tpu_devices(topology)}
    assert TPU_KINDS[kind] == topology.partition(":")[0]
    assert peak_flops(kind) == CHIPS[TPU_KINDS[kind]].flops


def test_sampling_is_measured_between_points() -> None:
    figures = SamplingFigures(num_slots=8, clock=clock(0.0, 4.0, 5.0, 6.0, 15.0, 15.0))
    statistics = Statistics(num_tokens=300, num_steps=50)
    assert figures.due(statistics, Progress(2, 20)) is None  # after four seconds
    assert figures.due(statistics, Progress(3, 20)) == {
        "traces": 3,
        "expected_traces": 20,
        "tokens_per_second": 60.0,
        "slots_busy": 0.75,
    }
    later = Statistics(num_tokens=500, num_steps=75)
    assert figures.due(later, Progress(9, 20)) is None
    assert figures.due(later, Progress(9, 20), is_last=True) == {
        "traces": 9,
        "expected_traces": 20,
        "tokens_per_second": 20.0,
        "slots_busy": 1.0,
    }
    assert figures.due(later, Progress(9, 20), is_last=True) == {"traces": 9, "expected_traces": 20}
