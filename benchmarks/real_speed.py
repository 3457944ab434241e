"""Speed of sampling and training of a real checkpoint on a CPU, beside transformers, in fp32.

Every measurement is a process of its own. Sampling: one trace for each of 64 questions of GSM8K, with the same prompts
and lengths in both systems, at temperature 1; reading the prompts counts in the time, but not in the tokens. In the row
"equal" all traces are as long and sampled at once, which suits transformers' static batch best. In "mixed" lengths are
long-tailed, like a model's, and 16 traces are sampled at once: a static batch runs until its longest trace ends.
Training: AdamW steps on worked answers of GSM8K, each on the traces that we pack into its rows; transformers gets them
one in a row, padded to the longest of the step. Padding does not count.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from real_checkpoints import ask

from tpt_jax.prompts import Example

NUM_TRACES, MEAN_TOKENS, MAX_TOKENS = 64, 48, 128  # of sampling
AT_ONCE = {"sample equal": 64, "sample mixed": 16}
NUM_STEPS, NUM_WARM_UP_STEPS, NUM_ROWS, SEQUENCE_LENGTH = 6, 2, 2, 512  # of training
LEARNING_RATE, BETAS = 1e-5, (0.9, 0.95)
SYSTEMS = ("ours", "transformers")
KINDS = (*AT_ONCE, "train")


def compare(folder: Path, questions: Path, models: Sequence[str]) -> None:
    """Measures one system after the other, and prints a line for each kind of work."""
    print(f"{'model':16}{'tokens/s, fp32':16}{'ours':>8}{'transformers':>14}{'ratio':>8}")
    for model in models:
        for kind in KINDS:
            rates = {system: _measure_in_process(folder, questions, model, kind, system) for system in SYSTEMS}
            ratio = rates["ours"] / rates["transformers"]
            print(f"{model:16}{kind:16}{rates['ours']:8.0f}{rates['transformers']:14.0f}{ratio:7.2f}x", flush=True)


def _measure_in_process(folder: Path, questions: Path, *names: str) -> float:
    script = Path(__file__).with_name("real_models.py")
    command = [sys.executable, str(script), "speed", str(folder), "--questions", str(questions), "--measure", *names]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure(model: str, kind: str, system: str, folder: Path, questions: list[dict[str, str]]) -> float:
    """Tokens per second of one system, after a warm-up that includes its compilation."""
    if kind == "train":
        return {"ours": train_ours, "transformers": train_transformers}[system](
            folder / model, examples(folder / model, model, questions)
        )
    lengths = trace_lengths(kind)
    prepare = {"ours": prepare_ours, "transformers": prepare_transformers}[system]
    run = prepare(folder / model, prompts(folder / model, model, questions), lengths, AT_ONCE[kind])
    run()
    started = time.perf_counter()
    run()
    return sum(lengths) / (time.perf_counter() - started)


# Sampling.


def trace_lengths(kind: str) -> list[int]:
    from tpt_jax.bench.workloads import long_tailed

    if kind == "sample equal":
        return [MEAN_TOKENS] * NUM_TRACES
    return long_tailed(np.random.default_rng(0), NUM_TRACES, MEAN_TOKENS, MAX_TOKENS).tolist()


def prompts(folder: Path, model: str, questions: list[dict[str, str]]) -> list[list[int]]:
    from real_parity import transformers_prompts

    return transformers_prompts(folder, model, [ask(model, each["question"]) for each in questions[:NUM_TRACES]])


def prepare_ours(folder: Path, prompts: list[list[int]], lengths: list[int], num_slots: int) -> Callable[[], None]:
    from sampling import NumberTokenizer

    from tpt_jax.checkpoints.model_folder import ModelFolder
    from tpt_jax.config import MeshConfig
    from tpt_jax.runtime.mesh import make_mesh
    from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
    from tpt_jax.think.engine import Engine
    from tpt_jax.think.requests import FixedSchedule, Request
    from tpt_jax.think.sampler import compile_sampler
    from tpt_jax.think.sampling_plan import common_prefix
    from tpt_jax.think.state import SlotShape

    model, layout = ModelFolder.open(folder), Layout(make_mesh(MeshConfig()), TRAIN_RULES)
    prefix = common_prefix(prompts)
    shape = SlotShape(
        num_slots=num_slots,
        num_questions=len(prompts),
        num_traces=len(prompts),
        num_prefix_tokens=len(prefix),
        max_prompt_tokens=max(map(len, prompts)) - len(prefix),
        max_new_tokens=max(lengths),
    )
    requests = [
        Request(str(row), tuple(prompt), (0,), (length,))
        for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    nothing_stops = (model.config.vocab_size,)
    program = compile_sampler(
        model.config, layout.mesh, compute_dtype="float32", shapes={"bench": shape}, stop_ids=nothing_stops
    )
    parameters = program.reshards["bench"](model.load(layout))
    engine: Any = Engine(program.slots["bench"], NumberTokenizer(), prefix, 1)  # pyright: ignore[reportArgumentType]

    def run() -> None:
        finished = engine.sample(parameters, FixedSchedule(requests, 1), seed=0, round_index=0, temperature=1.0)
        assert sum(len(trace.token_ids) for traces in finished for trace in traces) == sum(lengths)

    return run


def prepare_transformers(folder: Path, prompts: list[list[int]], lengths: list[int], batch: int) -> Callable[[], None]:
    import torch
    from real_parity import transformers_model

    model = transformers_model(folder, "float32")
    model.generation_config.eos_token_id = None
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}

    def run() -> None:
        for start in range(0, len(prompts), batch):
            rows, longest = prompts[start : start + batch], max(lengths[start : start + batch])
            width = max(map(len, rows))
            ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            out = model.generate(ids, attention_mask=mask, max_new_tokens=longest, **options)
            assert out.shape[1] == width + longest

    return run


# Training.


def examples(folder: Path, model: str, questions: list[dict[str, str]]) -> list[Example]:
    """Worked answers of GSM8K as this project trains on them."""
    from tpt_jax.prompts import load_prompt

    prompt = load_prompt(folder)
    return [
        prompt.example(each["question"], prompt.completion_ids(each["answer"]), str(index))
        for index, each in enumerate(questions[:200])
    ]


def train_ours(folder: Path, examples: list[Example]) -> float:
    from tpt_jax.checkpoints.model_folder import ModelFolder
    from tpt_jax.config import MeshConfig, OptimizerConfig, TrainConfig
    from tpt_jax.runtime.mesh import make_mesh
    from tpt_jax.train.compile import compile_trainer
    from tpt_jax.train.fine_tuning import FineTuning

    optimizer = OptimizerConfig(learning_rate=LEARNING_RATE, beta1=BETAS[0], beta2=BETAS[1])
    config = TrainConfig(rows=NUM_ROWS, sequence_length=SEQUENCE_LENGTH, max_steps=NUM_STEPS, optimizer=optimizer)
    model = ModelFolder.open(folder)
    program = compile_trainer(model.config, make_mesh(MeshConfig()), compute_dtype="float32", train=config)
    fit = FineTuning(program, lambda: model.load(program.layout), examples, config, seed=0)
    return _rate(record.packed_tokens for record in fit)


def train_transformers(folder: Path, examples: list[Example]) -> float:
    """A plain loop: forward, backward, clip, AdamW."""
    import torch
    from real_parity import transformers_model

    from tpt_jax.train.data import BatchShape, packed_batches

    model = transformers_model(folder, "float32")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0)
    packed = packed_batches(examples, BatchShape(1, NUM_ROWS, SEQUENCE_LENGTH), seed=0, num_epochs=1)

    def steps() -> Iterator[int]:
        for index in range(NUM_STEPS):
            batch = packed[index]
            assert batch is not None
            chosen = [examples[int(name)] for name in batch.example_ids]
            width = max(len(each.tokens) for each in chosen)
            padding = [width - len(each.tokens) for each in chosen]
            pairs = list(zip(chosen, padding, strict=True))
            ids = [[*each.tokens, *[0] * pad] for each, pad in pairs]
            mask = [[1] * len(each.tokens) + [0] * pad for each, pad in pairs]
            labels = [
                [*[-100] * each.num_prompt, *each.tokens[each.num_prompt :], *[-100] * pad] for each, pad in pairs
            ]
            arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            model(**{name: torch.tensor(rows) for name, rows in arrays.items()}).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            yield sum(len(each.tokens) - 1 for each in chosen)

    return _rate(steps())


def _rate(tokens_of_steps: Iterator[int]) -> float:
    """Tokens per second of the steps after the first ones."""
    tokens, started = 0, 0.0
    for index, count in enumerate(tokens_of_steps):
        if index == NUM_WARM_UP_STEPS - 1:
            started = time.perf_counter()
        elif index >= NUM_WARM_UP_STEPS:
            tokens += count
    return tokens / (time.perf_counter() - started)
