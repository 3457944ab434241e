"""Compares a real checkpoint's logits and greedy completions with transformers, in fp32 and in bfloat16."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from real_checkpoints import GEMMA, ask

import tpt_jax as tpt

NUM_PROMPTS, NUM_COMPLETIONS, MAX_NEW_TOKENS = 20, 12, 48
TOLERANCE = 1e-4  # largest relative difference of logits in fp32

Logits = Callable[[Sequence[int]], np.ndarray]  # from token ids to [T, V]


def compare(folder: Path, name: str, questions: list[dict[str, str]]) -> bool:
    """Prints the figures of a model; whether its logits and completions equal transformers' in fp32.

    Differences of logits are relative: the largest one of a prompt over the largest logit of transformers in fp32, the
    worst of all prompts; and the root mean square of all differences over that of the logits.
    """
    prompts = transformers_prompts(folder, name, [ask(name, each["question"]) for each in questions[:NUM_PROMPTS]])
    largest, mean = logit_differences(folder, prompts)
    num_equal = equal_completions(folder, name, questions[:NUM_COMPLETIONS], prompts[:NUM_COMPLETIONS])
    print(f"{name}: {len(prompts)} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens")
    print(f"{'logits, against transformers in fp32':40}{'largest':>10}{'mean':>10}")
    for label in largest:
        print(f"  {label:38}{largest[label]:10.1e}{mean[label]:10.1e}")
    print(f"greedy completions of {MAX_NEW_TOKENS} tokens, fp32: {num_equal} of {NUM_COMPLETIONS} equal", flush=True)
    return largest["ours, fp32"] <= TOLERANCE and num_equal == NUM_COMPLETIONS


def transformers_prompts(folder: Path, name: str, texts: Sequence[str]) -> list[list[int]]:
    """The prompts as transformers' own tokenizer makes them."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if name == GEMMA:
        return [tokenizer(text)["input_ids"] for text in texts]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in texts
    ]


def logit_differences(folder: Path, prompts: Sequence[Sequence[int]]) -> tuple[dict[str, float], dict[str, float]]:
    """The largest and the mean difference of each system's logits; prompt by prompt, since a vocabulary is large."""
    reference = transformers_logits(folder, "float32")
    systems = {
        "ours, fp32": our_logits(folder, "float32", max(map(len, prompts))),
        "ours, bfloat16": our_logits(folder, "bfloat16", max(map(len, prompts))),
        "transformers, bfloat16": transformers_logits(folder, "bfloat16"),
    }
    largest, squares = dict.fromkeys(systems, 0.0), dict.fromkeys(systems, 0.0)
    total = 0.0
    for prompt in prompts:
        expected = reference(prompt)
        total += float(np.square(expected, dtype=np.float64).sum())
        for label, logits in systems.items():
            difference = np.abs(logits(prompt) - expected)
            largest[label] = max(largest[label], float(difference.max() / np.abs(expected).max()))
            squares[label] += float(np.square(difference, dtype=np.float64).sum())
    return largest, {label: (square / total) ** 0.5 for label, square in squares.items()}


def transformers_model(folder: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def transformers_logits(folder: Path, dtype: str) -> Logits:
    import torch

    model = transformers_model(folder, dtype)

    def logits(prompt: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([list(prompt)])).logits[0].float().numpy()

    return logits


def our_logits(folder: Path, dtype: str, length: int) -> Logits:
    """Compiled once, for prompts padded to `length`."""
    from flax import nnx

    from tpt_jax.models.transformer import abstract_parameters
    from tpt_jax.runtime.sharding import TRAIN_RULES, Layout

    model = tpt.load_model(folder)
    layout = Layout(model.mesh, TRAIN_RULES)
    graph, _ = abstract_parameters(model.folder.config)
    parameters = jax.tree.map(lambda weight: weight.astype(dtype), model.parameters)

    @jax.jit
    def forward(parameters: nnx.State, tokens: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
        decoder = nnx.merge(graph, parameters)
        return decoder.logits(decoder(tokens, positions, segments, layout=layout))

    def logits(prompt: Sequence[int]) -> np.ndarray:
        tokens, segments = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
        tokens[0, : len(prompt)], segments[0, : len(prompt)] = prompt, 1
        positions = np.arange(length, dtype=np.int32)[None]
        return np.asarray(forward(parameters, tokens, positions, segments))[0, : len(prompt)]

    return logits


def equal_completions(
    folder: Path, name: str, questions: list[dict[str, str]], prompts: Sequence[Sequence[int]]
) -> int:
    """How many greedy completions in fp32 equal transformers', token by token; each system makes its own prompts."""
    model = tpt.load_model(folder, compute_dtype="float32")
    traces = tpt.sample(
        model,
        [ask(name, each["question"]) for each in questions],
        plain=name == GEMMA,
        stop=(),
        temperature=0.0,
        num_samples=1,
        max_new_tokens=MAX_NEW_TOKENS,
        num_slots=len(questions),
    )
    ours = [trace.token_ids for trace in traces]
    del model, traces
    gc.collect()
    return sum(a == b for a, b in zip(ours, transformers_completions(folder, prompts), strict=True))


def transformers_completions(folder: Path, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Without the token that ends the turn."""
    import torch

    model = transformers_model(folder, "float32")
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends)
    completions = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}
        completion = model.generate(ids, **options)[0, len(prompt) :].tolist()
        completions.append(tuple(completion[:-1] if completion[-1] in ends else completion))
    return completions
