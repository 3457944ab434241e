"""Why master weights are fp32: at the paper's learning rate of 1e-6 a bf16 weight does not move.

    python benchmarks/master_weights.py [--num_steps 100 --learning_rate 1e-6]

The quickstart's model is trained on its own kind of problems, at a constant rate, forward and backward pass in bf16
both times: once with AdamW on fp32 weights, of which the pass uses a bf16 copy, once with the same AdamW, moments in
fp32, on weights that are stored in bf16. Shown: how many of the stored weights differ from those at the start, how many
of the bf16 weights that the pass uses do, and the loss of all the problems before and after.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tpt_jax.checkpoints.model import ModelFolder
from tpt_jax.config import LossConfig, MeshConfig
from tpt_jax.models.transformer import Transformer, abstract_parameters
from tpt_jax.prompts import load_prompt
from tpt_jax.quickstart.corpus import worked_solutions
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
from tpt_jax.tasks.gsm_symbolic import GsmSymbolicConfig
from tpt_jax.train.data import Batch, BatchShape, packed_batches
from tpt_jax.train.linear_cross_entropy import linear_cross_entropy
from tpt_jax.train.loss import token_loss

TASK = GsmSymbolicConfig(name="gsm_symbolic", templates=(43, 10, 58), max_number=40, num_train=10, num_test=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_steps", type=int, default=100)
    parser.add_argument("--learning_rate", type=float, default=1e-6)
    args = parser.parse_args()
    folder = ModelFolder.open("quickstart")
    layout = Layout(make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]), TRAIN_RULES)
    prompt = load_prompt(folder.path, "")
    texts = worked_solutions(TASK, 400, 0.0, 0)
    examples = [prompt.example(text.prompt, prompt.completion_ids(text.completion)) for text in texts]
    batches = [batch.arrays for batch in list(packed_batches(examples, BatchShape(1, 16, 192), seed=0, num_epochs=1))]
    graph, _ = abstract_parameters(folder.config)

    def loss(parameters: nnx.State, batch: Batch) -> jax.Array:
        model: Transformer = nnx.merge(graph, parameters)
        tokens, targets, weights, positions, segment_ids = (
            getattr(batch, name)[0] for name in ("tokens", "targets", "loss_weights", "positions", "segment_ids")
        )
        hidden = model(tokens, positions, segment_ids, layout=layout, compute_dtype=jnp.dtype("bfloat16"))
        options: Any = {"layout": layout, "cap": None, "token_loss": token_loss(LossConfig()), "saves": "flops"}
        return linear_cross_entropy(hidden, model.output_table, targets, weights, **options) / weights.sum()

    optimizer = optax.adamw(args.learning_rate, 0.9, 0.95, weight_decay=0.0, mu_dtype=jnp.float32)
    loss_of = jax.jit(loss)

    @jax.jit
    def step(parameters: nnx.State, state: Any, batch: Batch) -> tuple[nnx.State, Any]:
        gradients = jax.tree.map(lambda x: x.astype(jnp.float32), jax.grad(loss)(parameters, batch))
        updates, state = optimizer.update(gradients, state, jax.tree.map(lambda x: x.astype(jnp.float32), parameters))
        # The update is rounded to the weight's type with the sum, as a bf16 optimizer does.
        return jax.tree.map(lambda weight, update: (weight + update).astype(weight.dtype), parameters, updates), state

    start = folder.load(layout)
    print(f"{'weights':10}{'stored moved':>14}{'used moved':>12}{'loss before':>13}{'after':>10}")
    for dtype in ("float32", "bfloat16"):
        first = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), start)
        parameters, state = first, optimizer.init(jax.tree.map(lambda x: x.astype(jnp.float32), first))
        before = np.mean([float(loss_of(parameters, batch)) for batch in batches])
        for index in range(args.num_steps):
            parameters, state = step(parameters, state, batches[index % len(batches)])
        after = np.mean([float(loss_of(parameters, batch)) for batch in batches])
        shares = [moved(first, parameters, kind) for kind in (dtype, "bfloat16")]
        print(f"{dtype:10}{shares[0]:14.1%}{shares[1]:12.1%}{before:13.5f}{after:10.5f}")


def moved(before: nnx.State, after: nnx.State, dtype: str) -> float:
    """The share of weights that differ, once both are in this type."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    differ = [(old.astype(dtype) != new.astype(dtype)) for old, new in pairs]
    return float(sum(int(leaf.sum()) for leaf in differ) / sum(leaf.size for leaf in differ))


if __name__ == "__main__":
    main()
