"""Sampling on a CPU beside transformers' generate and Tunix's Sampler: useful tokens a second, in one run.

    python benchmarks/sampling.py [--tunix_python PYTHON_OF_AN_ENVIRONMENT_WITH_google-tunix]

The same random LLaMA (fp32), the same 64 prompts x 8 samples, the same length for each trace: a cap, drawn from a
long-tailed distribution (mean about 60, longest 256), that ends the trace wherever it is. A static batch runs until its
longest trace ends; tokens beyond a trace's cap are not counted. Each system runs in a process of its own, one after the
other, does all the work twice, and is timed the second time; the first, compilation included, is shown apart. Tunix
samples greedily, its fastest way; the others at temperature 1.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from systems import EOS, MODEL, compare, tunix_model

BATCH = 64  # traces side by side, for all three
NUM_PROMPTS, NUM_SAMPLES, LONGEST = 64, 8, 256

Workload = tuple[list[list[int]], list[int]]  # prompts, and a cap for each trace, samples of a prompt together


def main() -> None:
    runs = compare(__file__, __doc__, write_workload, measure)
    if runs is None:
        return
    ours = runs["ours"]["tokens"] / runs["ours"]["seconds"]
    print(f"{'system':14}{'tokens/s':>10}{'seconds':>9}{'ours is':>10}{'first time':>12}")
    for system, run in runs.items():
        rate = run["tokens"] / run["seconds"]
        print(f"{system:14}{rate:10.0f}{run['seconds']:9.1f}{ours / rate:9.2f}x{run['warm_up']:10.1f} s")


def write_workload(folder: Path) -> None:
    """Prompts and caps."""
    from tpt_jax.bench.workloads import long_tailed

    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 61, NUM_PROMPTS)
    prompts = [rng.integers(1, MODEL["vocab_size"], length).tolist() for length in lengths]
    caps = long_tailed(rng, NUM_PROMPTS * NUM_SAMPLES, 60, LONGEST).tolist()
    (folder / "workload.json").write_text(json.dumps([prompts, caps]))
    print(f"caps: mean {np.mean(caps):.1f}, longest {max(caps)}")


def measure(system: str, folder: Path) -> dict[str, float]:
    """Tokens, and seconds of the second of two equal runs; the first one's, compilation included, as warm_up."""
    workload: Workload = json.loads((folder / "workload.json").read_text())
    prepare: Callable[[Path, Workload], Callable[[], None]] = globals()[f"prepare_{system}"]
    started = time.perf_counter()
    run = prepare(folder, workload)
    run()
    warm_up = time.perf_counter() - started
    started = time.perf_counter()
    run()
    return {"tokens": sum(workload[1]), "seconds": time.perf_counter() - started, "warm_up": warm_up}


def batches(workload: Workload) -> list[tuple[list[list[int]], list[int]]]:
    """For static batches: prompts, one a trace, and caps."""
    prompts, caps = workload
    rows = [prompt for prompt in prompts for _ in range(NUM_SAMPLES)]
    return [(rows[start : start + BATCH], caps[start : start + BATCH]) for start in range(0, len(rows), BATCH)]


def prepare_ours(folder: Path, workload: Workload) -> Callable[[], None]:
    from tpt_jax.checkpoints.model import ModelFolder
    from tpt_jax.config import MeshConfig
    from tpt_jax.runtime.mesh import make_mesh
    from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
    from tpt_jax.think.engine import Engine, Request
    from tpt_jax.think.sampler import compile_sampler
    from tpt_jax.think.state import SlotShape

    prompts, caps = workload
    model, layout = ModelFolder.open(folder), Layout(make_mesh(MeshConfig()), TRAIN_RULES)
    shape = SlotShape(
        num_slots=BATCH,
        num_questions=len(prompts),
        num_traces=len(caps),
        num_prefix_tokens=0,
        max_prompt_tokens=max(map(len, prompts)),
        max_new_tokens=LONGEST,
    )
    samples = tuple(range(NUM_SAMPLES))
    requests = [
        Request(str(row), tuple(prompt), samples, tuple(caps[row * NUM_SAMPLES :][:NUM_SAMPLES]))
        for row, prompt in enumerate(prompts)
    ]
    stop = (model.config.vocab_size,)
    program = compile_sampler(
        model.config, layout.mesh, compute_dtype="float32", shapes={"bench": shape}, stop_ids=stop
    )
    parameters = program.reshard(model.load(layout))
    engine: Any = Engine(program.slots["bench"], Numbers(), (), 1)  # pyright: ignore[reportArgumentType]

    def run() -> None:
        done = engine.sample(parameters, requests, seed=0, round_index=0, temperature=1.0)
        lengths = {(trace.id, trace.sample): len(trace.token_ids) for traces in done for trace in traces}
        assert [lengths[str(row), sample] for row in range(NUM_PROMPTS) for sample in samples] == caps

    return run


def prepare_transformers(folder: Path, workload: Workload) -> Callable[[], None]:
    import torch
    from transformers import AutoModelForCausalLM, StoppingCriteria

    torch.set_num_threads(2)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None

    class Caps(StoppingCriteria):
        def __init__(self, ends: Any):
            self.ends = ends

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full_like(self.ends, input_ids.shape[1]) >= self.ends

    def run() -> None:
        for rows, caps in batches(workload):
            width = max(map(len, rows))
            ids = torch.tensor([[EOS] * (width - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=max(caps),
                stopping_criteria=[Caps(width + torch.tensor(caps))],
                pad_token_id=EOS,
            )
            assert out.shape[1] == width + max(caps)

    with torch.no_grad():
        return run


def prepare_tunix(folder: Path, workload: Workload) -> Callable[[], None]:
    from tunix.generate.sampler import CacheConfig, Sampler  # pyright: ignore[reportMissingImports]

    model, config = tunix_model(folder)
    width = 64
    cache = CacheConfig(width + LONGEST, config.num_layers, config.num_kv_heads, config.head_dim)
    sampler = Sampler(model, Numbers(), cache)

    def run() -> None:
        for rows, caps in batches(workload):
            sampler(
                [" ".join(map(str, row)) for row in rows],
                max_generation_steps=max(caps),
                max_prompt_length=width,
                eos_tokens=[MODEL["vocab_size"]],
            )

    return run


class Numbers:
    """A tokenizer whose tokens are written as numbers."""

    def text(self, ids: object) -> str:
        return ""

    def encode(self, text: str) -> list[int]:
        return [int(number) for number in text.split()]

    def decode(self, ids: list[int]) -> str:
        return ""

    def bos_id(self) -> None:
        return None

    def eos_id(self) -> int:
        return EOS

    def pad_id(self) -> int:
        return EOS


if __name__ == "__main__":
    main()
