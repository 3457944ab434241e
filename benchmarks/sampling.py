"""Compares sampling on a CPU with transformers' generate and Tunix's Sampler, in useful tokens per second.

    python benchmarks/sampling.py [--tunix_python PYTHON_OF_AN_ENVIRONMENT_WITH_google-tunix]

All systems use the same random LLaMA (fp32) and 64 prompts x 8 samples, and end each trace at the same length, drawn
from a long-tailed distribution (mean about 60, longest 256). A static batch runs until its longest trace ends; tokens
beyond a trace's length are not counted. The systems run one after the other, each in its own process. Each does all the
work twice and is timed the second time; the first time, which includes compilation, is shown separately. Tunix samples
greedily, its fastest mode; the others sample at temperature 1.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from systems import EOS, MODEL, compare, tunix_model

BATCH = 64  # concurrent traces, for all systems
NUM_PROMPTS, NUM_SAMPLES, MAX_TOKENS = 64, 8, 256

Workload = tuple[list[list[int]], list[int]]  # prompts, and a length for each trace, grouped by prompt


def main() -> None:
    runs = compare(__file__, __doc__, write_workload, measure)
    if runs is None:
        return
    ours = runs["ours"]["tokens"] / runs["ours"]["seconds"]
    print(f"{'system':14}{'tokens/s':>10}{'seconds':>9}{'ours is':>10}{'first run':>12}")
    for system, run in runs.items():
        rate = run["tokens"] / run["seconds"]
        print(f"{system:14}{rate:10.0f}{run['seconds']:9.1f}{ours / rate:9.2f}x{run['warm_up']:10.1f} s")


def write_workload(folder: Path) -> None:
    """Draws prompts and trace lengths."""
    from tpt_jax.bench.workloads import long_tailed

    rng = np.random.default_rng(0)
    prompt_lengths = rng.integers(20, 61, NUM_PROMPTS)
    prompts = [rng.integers(1, MODEL["vocab_size"], length).tolist() for length in prompt_lengths]
    lengths = long_tailed(rng, NUM_PROMPTS * NUM_SAMPLES, 60, MAX_TOKENS).tolist()
    (folder / "workload.json").write_text(json.dumps([prompts, lengths]))
    print(f"trace lengths: mean {np.mean(lengths):.1f}, longest {max(lengths)}")


def measure(system: str, folder: Path) -> dict[str, float]:
    """Tokens and seconds of the second of two identical runs; warm_up is the seconds of the first, with compilation."""
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
    """Static batches of the prompt and length of each trace."""
    prompts, lengths = workload
    rows = [prompt for prompt in prompts for _ in range(NUM_SAMPLES)]
    return [(rows[start : start + BATCH], lengths[start : start + BATCH]) for start in range(0, len(rows), BATCH)]


def prepare_ours(folder: Path, workload: Workload) -> Callable[[], None]:
    from tpt_jax.checkpoints.model_folder import ModelFolder
    from tpt_jax.config import MeshConfig
    from tpt_jax.runtime.mesh import make_mesh
    from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
    from tpt_jax.think.engine import Engine
    from tpt_jax.think.requests import FixedSchedule, Request
    from tpt_jax.think.sampler import compile_sampler
    from tpt_jax.think.state import SlotShape

    prompts, lengths = workload
    model, layout = ModelFolder.open(folder), Layout(make_mesh(MeshConfig()), TRAIN_RULES)
    shape = SlotShape(
        num_slots=BATCH,
        num_questions=len(prompts),
        num_traces=len(lengths),
        num_prefix_tokens=0,
        max_prompt_tokens=max(map(len, prompts)),
        max_new_tokens=MAX_TOKENS,
    )
    samples = tuple(range(NUM_SAMPLES))
    requests = [
        Request(str(row), tuple(prompt), samples, tuple(lengths[row * NUM_SAMPLES :][:NUM_SAMPLES]))
        for row, prompt in enumerate(prompts)
    ]
    stop = (model.config.vocab_size,)
    program = compile_sampler(
        model.config, layout.mesh, compute_dtype="float32", shapes={"bench": shape}, stop_ids=stop
    )
    parameters = program.reshards["bench"](model.load(layout))
    engine: Any = Engine(program.slots["bench"], NumberTokenizer(), (), 1)  # pyright: ignore[reportArgumentType]

    def run() -> None:
        finished = engine.sample(parameters, FixedSchedule(requests, 1), seed=0, round_index=0, temperature=1.0)
        sampled = {(trace.id, trace.sample): len(trace.token_ids) for traces in finished for trace in traces}
        assert [sampled[str(row), sample] for row in range(NUM_PROMPTS) for sample in samples] == lengths

    return run


def prepare_transformers(folder: Path, workload: Workload) -> Callable[[], None]:
    import torch
    from transformers import AutoModelForCausalLM, StoppingCriteria

    torch.set_num_threads(2)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None

    class FixedLengths(StoppingCriteria):
        def __init__(self, ends: Any):
            self.ends = ends

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full_like(self.ends, input_ids.shape[1]) >= self.ends

    def run() -> None:
        for rows, lengths in batches(workload):
            width = max(map(len, rows))
            ids = torch.tensor([[EOS] * (width - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=max(lengths),
                stopping_criteria=[FixedLengths(width + torch.tensor(lengths))],
                pad_token_id=EOS,
            )
            assert out.shape[1] == width + max(lengths)

    with torch.no_grad():
        return run


def prepare_tunix(folder: Path, workload: Workload) -> Callable[[], None]:
    from tunix.generate.sampler import CacheConfig, Sampler  # pyright: ignore[reportMissingImports]

    model, config = tunix_model(folder)
    width = 64
    cache = CacheConfig(width + MAX_TOKENS, config.num_layers, config.num_kv_heads, config.head_dim)
    sampler = Sampler(model, NumberTokenizer(), cache)

    def run() -> None:
        for rows, lengths in batches(workload):
            sampler(
                [" ".join(map(str, row)) for row in rows],
                max_generation_steps=max(lengths),
                max_prompt_length=width,
                eos_tokens=[MODEL["vocab_size"]],
            )

    return run


class NumberTokenizer:
    """A tokenizer whose text is space-separated token ids."""

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
