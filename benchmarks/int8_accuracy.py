"""Compares next-token distributions under int8 weights and an int8 KV cache with those in fp32.

The reference answers of GSM8K are fed to a real model, so that all variants predict the same tokens from the same
texts. An int8 weight equals the weight that it stands for (tests/test_int8.py), and so does an int8 key or value: one
forward pass with rounded weights, keys and values gives what sampling would see. bfloat16 is shown for comparison.

    python benchmarks/int8_accuracy.py FOLDER [FOLDER ...] --questions test.jsonl [--num_questions 40]
"""

import argparse
import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tpt_jax as tpt
from tpt_jax.library.tasks import as_question_set
from tpt_jax.models import transformer
from tpt_jax.models.decoding_weights import quantize, summed_axes
from tpt_jax.models.transformer import abstract_parameters
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout

# name -> int8 weights, int8 cache, compute type
VARIANTS = {
    "fp32": (False, False, "float32"),
    "bfloat16": (False, False, "bfloat16"),
    "int8 weights": (True, False, "float32"),
    "int8 cache": (False, True, "float32"),
    "int8 weights and cache": (True, True, "float32"),
}
LENGTH_STEP = 128  # texts are padded to a multiple of it: few compilations


def rounded(x: jax.Array, summed: tuple[int, ...]) -> jax.Array:
    """An array after int8."""
    stored = quantize(x, summed)
    return (stored.values.astype(jnp.float32) * jnp.expand_dims(stored.scale, summed)).astype(x.dtype)


def round_weights(parameters: nnx.State) -> nnx.State:
    def round_weight(weight: nnx.Variable) -> nnx.Variable:
        summed = summed_axes(weight)
        return weight.replace(rounded(weight.get_value(), summed)) if summed else weight

    return jax.tree.map(round_weight, parameters, is_leaf=lambda node: isinstance(node, nnx.Variable))


@contextlib.contextmanager
def rounded_cache() -> Iterator[None]:
    """Rounds keys and values, as the cache does: a vector of each token and head has a scale of its own.

    In the cache a token's own key and value are not rounded before the next step; here they are.
    """
    exact = transformer.self_attention

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, *args: Any, **options: Any) -> jax.Array:
        return exact(query, rounded(key, (3,)), rounded(value, (3,)), *args, **options)

    transformer.self_attention = attend
    try:
        yield
    finally:
        transformer.self_attention = exact


def make_forward(model: tpt.Model, variant: str) -> Any:
    """A function from the tokens [T] of a text and the positions [A] to predict from, to log-probabilities [A, V]."""
    int8_weights, int8_cache, dtype = VARIANTS[variant]
    graph, _ = abstract_parameters(model.folder.config)
    layout = Layout(model.mesh, TRAIN_RULES)
    parameters = jax.jit(round_weights)(model.parameters) if int8_weights else model.parameters
    parameters = jax.tree.map(lambda weight: weight.astype(dtype), parameters)

    @jax.jit
    def forward(parameters: nnx.State, tokens: jax.Array, columns: jax.Array) -> jax.Array:
        with rounded_cache() if int8_cache else contextlib.nullcontext():
            decoder = nnx.merge(graph, parameters)
            positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
            hidden = decoder(tokens, positions, jnp.ones_like(tokens), layout=layout)
            return jax.nn.log_softmax(decoder.logits(hidden[0, columns]))

    return lambda tokens, columns: forward(parameters, tokens, columns)


def read_texts(model: tpt.Model, questions: Path, count: int) -> list[tuple[list[int], int]]:
    """Token ids of each question with its reference answer, and the length of its prompt."""
    lines = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()[:count]]
    prompt = model.prompt(as_question_set([line["question"] for line in lines]))
    texts = []
    for line in lines:
        start = prompt.prompt_ids(line["question"])
        answer = prompt.completion_ids(" " * prompt.is_plain + re.sub(r"<<.*?>>", "", line["answer"]))
        texts.append(([*start, *answer], len(start)))
    return texts


def compare(folder: Path, questions: Path, count: int) -> None:
    """Prints a line for each variant."""
    model = tpt.load_model(folder, compute_dtype="float32")
    texts = read_texts(model, questions, count)
    figures = {name: [] for name in VARIANTS}
    forwards = {name: make_forward(model, name) for name in VARIANTS}
    for ids, start in texts:
        exact: np.ndarray | None = None
        for name, forward in forwards.items():
            logprobs = predict(forward, ids, start)
            exact = logprobs if exact is None else exact
            figures[name].append(measures(exact, logprobs, np.asarray(ids[start:])))
    num_tokens = sum(len(ids) - start for ids, start in texts)
    print(f"{folder.name}: {count} GSM8K questions, {num_tokens:,} tokens of reference answers")
    print(f"{'':24}{'KL (nats)':>12}{'99% of KL':>12}{'same greedy':>14}{'top-1 right':>14}{'nats/token':>12}")
    for name, parts in figures.items():
        kl, same, right, loss = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        print(
            f"{name:24}{kl.mean():12.2e}{np.quantile(kl, 0.99):12.2e}{same.mean():14.2%}{right.mean():14.2%}"
            f"{loss.mean():12.4f}",
            flush=True,
        )


def predict(forward: Any, ids: Sequence[int], start: int) -> np.ndarray:
    """Log-probabilities [A, V] before each token of the answer."""
    length = -(-len(ids) // LENGTH_STEP) * LENGTH_STEP
    tokens = np.zeros((1, length), np.int32)
    tokens[0, : len(ids)] = ids
    columns = np.minimum(np.arange(start - 1, start - 1 + length), len(ids) - 2).astype(np.int32)[:length]
    return np.asarray(forward(tokens, columns))[: len(ids) - start]


def measures(exact: np.ndarray, logprobs: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, ...]:
    """For each token: KL(exact, variant), whether the greedy tokens are the same, whether it is right, its loss."""
    divergence = (np.exp(exact) * (exact - logprobs)).sum(axis=-1)
    greedy = logprobs.argmax(axis=-1)
    loss = -np.take_along_axis(logprobs, answer[:, None], axis=-1)[:, 0]
    return divergence, greedy == exact.argmax(axis=-1), greedy == answer, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="Hugging Face checkpoints")
    parser.add_argument("--questions", type=Path, required=True, help='JSON lines with "question" and "answer"')
    parser.add_argument("--num_questions", type=int, default=40)
    args = parser.parse_args()
    for folder in args.folders:
        compare(folder, args.questions, args.num_questions)


if __name__ == "__main__":
    main()
