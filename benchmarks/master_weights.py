"""Shows why master weights are fp32: at the paper's learning rate of 1e-6, bf16 weights do not change.

    python benchmarks/master_weights.py [--num_steps 100 --learning_rate 1e-6]

Trains the quickstart model on problems of its own task at a constant learning rate, with forward and backward passes in
bf16: first with fp32 master weights, then with weights stored in bf16. AdamW and its fp32 moments are the same. Prints
the share of stored weights that changed, the share of their bf16 copies that changed, and the loss on all problems
before and after.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tpt_jax.checkpoints.model_folder import ModelFolder
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
        options: Any = {"layout": layout, "cap": None, "token_loss": token_loss(LossConfig()), "exchanges": "tokens"}
        return linear_cross_entropy(hidden, model.output_table, targets, weights, **options) / weights.sum()

    optimizer = optax.adamw(args.learning_rate, 0.9, 0.95, weight_decay=0.0, mu_dtype=jnp.float32)
    jitted_loss = jax.jit(loss)

    @jax.jit
    def step(parameters: nnx.State, state: Any, batch: Batch) -> tuple[nnx.State, Any]:
        gradients = jax.tree.map(lambda x: x.astype(jnp.float32), jax.grad(loss)(parameters, batch))
        updates, state = optimizer.update(gradients, state, jax.tree.map(lambda x: x.astype(jnp.float32), parameters))
        # The sum is rounded to the weight's dtype, as in a bf16 optimizer.
        return jax.tree.map(lambda weight, update: (weight + update).astype(weight.dtype), parameters, updates), state

    base = folder.load(layout)
    print(f"{'weights':10}{'stored moved':>14}{'bf16 moved':>12}{'loss before':>13}{'after':>10}")
    for dtype in ("float32", "bfloat16"):
        initial = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), base)
        parameters, state = initial, optimizer.init(jax.tree.map(lambda x: x.astype(jnp.float32), initial))
        before = np.mean([float(jitted_loss(parameters, batch)) for batch in batches])
        for index in range(args.num_steps):
            parameters, state = step(parameters, state, batches[index % len(batches)])
        after = np.mean([float(jitted_loss(parameters, batch)) for batch in batches])
        shares = [share_moved(initial, parameters, compared) for compared in (dtype, "bfloat16")]
        print(f"{dtype:10}{shares[0]:14.1%}{shares[1]:12.1%}{before:13.5f}{after:10.5f}")


def share_moved(before: nnx.State, after: nnx.State, dtype: str) -> float:
    """The share of weights that differ when both are cast to this dtype."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    differ = [(old.astype(dtype) != new.astype(dtype)) for old, new in pairs]
    return float(sum(int(leaf.sum()) for leaf in differ) / sum(leaf.size for leaf in differ))


if __name__ == "__main__":
    main()
