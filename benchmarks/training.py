"""Compares fine-tuning, of all weights and with LoRA, on a CPU with transformers' Trainer (and PEFT) and Tunix's
PeftTrainer (and qwix), in trace tokens per second.

    python benchmarks/training.py [--tunix_python PYTHON_OF_AN_ENVIRONMENT_WITH_google-tunix]

All systems train the same random LLaMA of 20M parameters (fp32) on the same 512 traces, with lengths like GSM8K's (mean
about 225 tokens, longest 512), for 20 AdamW steps of about equally many tokens. Ours packs the traces into 4 rows of
512. The Trainer gets in each step the traces that we pack into it, padded to the longest of them, so that losses can be
compared step by step. Tunix, which compiles for one shape, gets 9 traces per step, about as many as ours, padded to
512. Padding does not count. The systems run one after the other, each in its own process, first with all weights, then
with adapters of rank 16 of every matrix; the first steps, which include compilation, are shown separately. Adapters
start from each system's own random values, so their losses are close, not equal.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from systems import MODEL, compare, tunix_model

NUM_TRACES, MAX_TOKENS, NUM_ROWS, TRACES_PER_STEP = 512, 512, 4, 9
NUM_STEPS, NUM_WARM_UP_STEPS = 20, 3
LEARNING_RATE, BETAS = 1e-3, (0.9, 0.95)
RAMP_STEPS = 2  # as our warmup_fraction of 0.1 makes them
RANK, ALPHA = 16, 32
METHODS = ("full", "lora")

Trace = tuple[list[int], int]  # token ids, and the number of prompt tokens


def main() -> None:
    runs = compare(__file__, __doc__, write_workload, train)
    if runs is None:
        return
    print(f"{'method':8}{'system':14}{'tokens/s':>10}{'seconds':>9}{'ours is':>10}{'first steps':>13}{'last loss':>11}")
    for method in METHODS:
        rates = {system: rate(run[method]) for system, run in runs.items()}
        for system, results in runs.items():
            run, ratio = results[method], rates["ours"] / rates[system]
            numbers = f"{rates[system]:10.0f}{run['seconds']:9.1f}{ratio:9.2f}x{run['warm_up']:11.1f} s"
            print(f"{method:8}{system:14}{numbers}{run['losses'][-1]:11.4f}")
    for system, run in runs.items():
        print(f"{system}: a step with LoRA takes {rate(run['full']) / rate(run['lora']):.2f} of a full one's time")
    ours, theirs = (np.asarray(runs[system]["full"]["losses"]) for system in ("ours", "transformers"))
    print(f"largest relative difference between our losses and transformers': {np.abs(ours / theirs - 1).max():.1e}")


def train(system: str, folder: Path) -> dict[str, Any]:
    """One system's results by method."""
    return {method: globals()[f"train_{system}"](folder, method) for method in METHODS}


def rate(run: dict[str, Any]) -> float:
    """Trace tokens per second, after the first steps."""
    return sum(run["tokens"][NUM_WARM_UP_STEPS:]) / run["seconds"]


def write_workload(folder: Path) -> None:
    """Generates the traces, and chooses which of them each step trains on."""
    from tpt_jax.bench.workloads import long_tailed
    from tpt_jax.train.data import BatchShape, packed_batches

    rng = np.random.default_rng(0)
    prompts = np.clip(long_tailed(rng, NUM_TRACES, 95, 250), 30, None)
    completions = np.minimum(long_tailed(rng, NUM_TRACES, 155, 400), MAX_TOKENS - prompts)
    traces: list[Trace] = [
        (rng.integers(1, MODEL["vocab_size"], prompt + completion).tolist(), int(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    batches = packed_batches(examples(traces), BatchShape(1, NUM_ROWS, MAX_TOKENS), seed=0, num_epochs=1)
    steps = [[int(name) for name in batch.example_ids] for batch in batches[:NUM_STEPS]]
    (folder / "workload.json").write_text(json.dumps([traces, steps]))
    lengths = prompts + completions
    print(
        f"traces: mean {lengths.mean():.1f} tokens, longest {lengths.max()}; "
        f"{np.mean([len(step) for step in steps]):.1f} traces per step"
    )


def examples(traces: list[Trace]) -> list[Any]:
    from tpt_jax.prompts import Example

    return [Example(tuple(tokens), num_prompt, str(index)) for index, (tokens, num_prompt) in enumerate(traces)]


def read_workload(folder: Path) -> tuple[list[Trace], list[list[int]]]:
    traces, steps = json.loads((folder / "workload.json").read_text())
    return [(tokens, num_prompt) for tokens, num_prompt in traces], steps


class Clock:
    """Records the end time, loss and token count of each step."""

    def __init__(self) -> None:
        self._times = [time.perf_counter()]
        self._losses: list[float] = []
        self._tokens: list[int] = []

    def step(self, loss: float, tokens: int) -> None:
        self._times.append(time.perf_counter())
        self._losses.append(loss)
        self._tokens.append(tokens)

    def result(self) -> dict[str, Any]:
        start, warm, end = self._times[0], self._times[NUM_WARM_UP_STEPS], self._times[-1]
        return {"losses": self._losses, "tokens": self._tokens, "seconds": end - warm, "warm_up": warm - start}


def train_ours(folder: Path, method: str) -> dict[str, Any]:
    from tpt_jax.checkpoints.model_folder import ModelFolder
    from tpt_jax.config import LoRAConfig, MeshConfig, OptimizerConfig, TrainConfig
    from tpt_jax.runtime.mesh import make_mesh
    from tpt_jax.train.compile import compile_trainer
    from tpt_jax.train.fine_tuning import FineTuning

    traces, _ = read_workload(folder)
    optimizer = OptimizerConfig(learning_rate=LEARNING_RATE, beta1=BETAS[0], beta2=BETAS[1])
    lora = LoRAConfig(RANK, ALPHA) if method == "lora" else None
    config = TrainConfig(rows=NUM_ROWS, sequence_length=MAX_TOKENS, max_steps=NUM_STEPS, optimizer=optimizer, lora=lora)
    model, clock = ModelFolder.open(folder), Clock()
    program = compile_trainer(model.config, make_mesh(MeshConfig()), compute_dtype="float32", train=config)
    fit = FineTuning(program, lambda: model.load(program.layout, lora=lora), examples(traces), config, seed=0)
    for record in fit:
        clock.step(record.loss, record.packed_tokens)
    return clock.result()


def train_transformers(folder: Path, method: str) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    torch.set_num_threads(2)
    traces, steps = read_workload(folder)
    clock = Clock()

    def collate(items: list[list[int]]) -> dict[str, torch.Tensor]:
        batch = [traces[index] for index in items[0]]
        width = max(len(tokens) for tokens, _ in batch)
        ids = [tokens + [0] * (width - len(tokens)) for tokens, _ in batch]
        mask = [[1] * len(tokens) + [0] * (width - len(tokens)) for tokens, _ in batch]
        labels = [[-100] * start + tokens[start:] + [-100] * (width - len(tokens)) for tokens, start in batch]
        return {name: torch.tensor(x) for name, x in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))}

    class Timed(Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(steps)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            clock.step(float(loss), int(args[1]["attention_mask"].sum()) - len(args[1]["attention_mask"]))
            return loss

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=1,  # one item has all traces of a step
        max_steps=NUM_STEPS,
        learning_rate=LEARNING_RATE,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        lr_scheduler_type="cosine",
        warmup_steps=RAMP_STEPS,
        max_grad_norm=1.0,
        use_cpu=True,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
    )
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if method == "lora":
        import peft

        model = peft.get_peft_model(
            model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    dataset: Any = steps
    sys.stdout, stdout = sys.stderr, sys.stdout
    Timed(model=model, args=arguments, train_dataset=dataset, data_collator=collate).train()
    sys.stdout = stdout
    return clock.result()


def train_tunix(folder: Path, method: str) -> dict[str, Any]:
    import jax
    import optax
    from flax import nnx
    from tunix.sft import peft_trainer, utils  # pyright: ignore[reportMissingImports]

    traces, _ = read_workload(folder)
    clock = Clock()
    model, _ = tunix_model(folder)
    if method == "lora":
        import qwix  # pyright: ignore[reportMissingImports]

        matrices = ".*q_proj|.*k_proj|.*v_proj|.*o_proj|.*gate_proj|.*up_proj|.*down_proj"
        provider = qwix.LoraProvider(module_path=matrices, rank=RANK, alpha=ALPHA)
        model = qwix.apply_lora_to_model(model, provider, rngs=nnx.Rngs(0), **model.get_model_input())
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, RAMP_STEPS, NUM_STEPS)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, *BETAS, weight_decay=0.0))
    options = peft_trainer.TrainingConfig(eval_every_n_steps=10**6, max_steps=NUM_STEPS)
    trainer = peft_trainer.PeftTrainer(model, optimizer, options)

    def inputs(batch: Any) -> dict[str, jax.Array]:
        mask = batch.input_tokens != 0
        return {
            "input_tokens": batch.input_tokens,
            "input_mask": batch.input_mask,
            "positions": utils.build_positions_from_mask(mask),
            "attention_mask": utils.make_causal_attn_mask(mask),
        }

    def batches() -> Any:
        for step in range(NUM_STEPS):
            tokens = np.zeros((TRACES_PER_STEP, MAX_TOKENS), np.int32)
            mask = np.zeros(tokens.shape, bool)
            for row, (trace, start) in enumerate(traces[step * TRACES_PER_STEP :][:TRACES_PER_STEP]):
                tokens[row, : len(trace)] = trace
                mask[row, start : len(trace)] = True
            yield peft_trainer.TrainingInput(input_tokens=tokens, input_mask=mask)

    class Hooks:
        """Waits for each step's loss, as in the other systems."""

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *args, **kwargs: None

        def on_train_step_end(self, trainer: Any, step: int, loss: Any) -> None:
            first = (step - 1) * TRACES_PER_STEP
            batch = traces[first : first + TRACES_PER_STEP]
            clock.step(float(loss), sum(len(tokens) - 1 for tokens, _ in batch))

    trainer.with_gen_model_input_fn(inputs).with_training_hooks(Hooks())
    sys.stdout, stdout = sys.stderr, sys.stdout
    trainer.train(batches(), None)
    sys.stdout = stdout
    return clock.result()


if __name__ == "__main__":
    main()
