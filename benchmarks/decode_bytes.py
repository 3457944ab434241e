"""Bytes of a decode step on a TPU against the least, weights and KV cache once, over head sizes, heads and slots.

Compiles the loop of decode steps ahead of time, for models of a few layers with a small vocabulary, so that each row
takes seconds and the KV cache decides. A single step would hide what a loop costs: a cache whose memory layout suits
the reads but not the writes is copied from one to the other in every iteration.

    python benchmarks/decode_bytes.py [--topology v5e:2x2] [--cache_type int8] [--weights int8] [--rows 64x8x256 ...]
"""

import argparse
import dataclasses
import functools
import math

from tpt_jax.plan.topology import prepare_environment, tpu_devices

prepare_environment()  # before JAX is imported

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from tpt_jax.config import MeshConfig
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.inference import abstract_inference_parameters
from tpt_jax.models.published import PUBLISHED
from tpt_jax.plan.hlo import Module
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import DECODE_RULES, Layout
from tpt_jax.think.reshard import abstract_copy
from tpt_jax.think.shard_specs import (
    abstract_prompts,
    abstract_queue,
    abstract_slots,
    map_over_shards,
    prompt_specs,
    queue_specs,
    slot_specs,
)
from tpt_jax.think.slot_program import on_platform
from tpt_jax.think.slots import decode_step, start
from tpt_jax.think.state import Prompts, Queue, Slots, SlotShape

NUM_STEPS, LENGTH = 32, 1024
# head size x key-value heads x slots on a chip
ROWS = (
    *("64x1x512", "64x3x64", "64x8x16", "64x8x128", "64x8x512", "96x1x256", "96x8x128"),
    *("128x1x512", "128x8x16", "128x8x256", "256x1x512", "256x4x64", "256x8x128"),
)


def tiny(head_dim: int, num_kv_heads: int) -> ModelConfig:
    return ModelConfig(
        "llama",
        vocab_size=1024,
        embed_dim=512,
        num_layers=4,
        num_heads=4 * num_kv_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        mlp_dim=1024,
        attention_scale=head_dim**-0.5,
    )


def bytes_per_step(config: ModelConfig, shape: SlotShape, layout: Layout) -> tuple[float, int]:
    """Bytes that a step moves in a loop of steps on one device, and the least."""
    shape = dataclasses.replace(on_platform(shape, config, "tpu"), num_live_lengths=1)
    graph, abstract = abstract_inference_parameters(config, layout.mesh)
    specs = slot_specs(config, shape, layout)
    run_start = map_over_shards(functools.partial(start, graph=graph, shape=shape), layout, (P(), P()), specs)
    weights = abstract_copy(abstract, layout, jnp.dtype("bfloat16"), shape.weights)
    prefix = jax.ShapeDtypeStruct((0,), jnp.int32, sharding=layout.replicated)
    prompts, queue = abstract_prompts(shape, config.vocab_size, layout), abstract_queue(shape, layout)
    slots = abstract_slots(jax.eval_shape(run_start, weights, prefix), specs, layout)

    def run(parameters: nnx.State, prompts: Prompts, queue: Queue, slots: Slots, *, layout: Layout) -> Slots:
        model = nnx.merge(graph, parameters)

        def has_work(carry: tuple[jax.Array, Slots]) -> jax.Array:
            return (carry[0] < NUM_STEPS) & ~carry[1].done.all()

        def step(carry: tuple[jax.Array, Slots]) -> tuple[jax.Array, Slots]:
            options = {"shape": shape, "stop_ids": (0,), "layout": layout}
            return carry[0] + 1, decode_step(model, prompts, queue, carry[1], **options)

        return jax.lax.while_loop(has_work, step, (jnp.int32(0), slots))[1]

    mapped = map_over_shards(run, layout, (P(), prompt_specs(layout), queue_specs(layout), specs), specs)
    jitted = jax.jit(mapped, donate_argnums=3, out_shardings=jax.tree.map(lambda x: x.sharding, slots))
    module = Module(str(jitted.lower(weights, prompts, queue, slots).compile().as_text()))
    least = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves((weights, slots.caches))
    )
    return module.bytes() / NUM_STEPS, least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--cache_type", choices=("compute", "int8"), default="compute")
    parser.add_argument("--weights", choices=("compute", "int8"), default="compute")
    parser.add_argument(
        "--rows", nargs="+", default=ROWS, help="HEAD_DIMxKV_HEADSxSLOTS, or a published model as NAMExSLOTS"
    )
    args = parser.parse_args()
    layout = Layout(make_mesh(MeshConfig(), tpu_devices(args.topology)), DECODE_RULES)
    print(f"{'head dim x heads x slots':28}{'MB a step':>12}{'least':>12}{'ratio':>8}")
    for row in args.rows:
        *model, slots = row.split("x")
        config = PUBLISHED[model[0]] if model[0] in PUBLISHED else tiny(*map(int, model))
        shape = SlotShape(
            num_slots=int(slots),
            num_questions=8,
            num_traces=32,
            num_prefix_tokens=0,
            max_prompt_tokens=LENGTH // 2,
            max_new_tokens=LENGTH // 2,
            cache_type=args.cache_type,
            weights=args.weights,
        )
        moved, least = bytes_per_step(config, shape, layout)
        print(f"{row:28}{moved / 1e6:12,.1f}{least / 1e6:12,.1f}{moved / least:8.3f}", flush=True)


if __name__ == "__main__":
    main()
