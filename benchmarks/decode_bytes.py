"""Bytes of a decode step on a TPU against the least, weights and KV cache once, over head sizes, heads and slots.

Compiles ahead of time, for models of a few layers with a small vocabulary, so that each row takes seconds and the KV
cache decides.

    python benchmarks/decode_bytes.py [--topology v5e:2x2] [--cache_type int8] [--weights int8] [--rows 64x8x256 ...]
"""

import argparse

from tpt_jax.plan.topology import prepare_environment, tpu_devices

prepare_environment()  # before JAX is imported

import jax.numpy as jnp

from tpt_jax.config import MeshConfig
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.published import PUBLISHED
from tpt_jax.plan.hlo import Module
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.sharding import DECODE_RULES, Layout
from tpt_jax.think.cost_probes import NUM_DECODE_STEPS, compile_decode_steps, least_step_bytes
from tpt_jax.think.slot_program import compile_slots
from tpt_jax.think.state import SlotShape

LENGTH = 1024
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
    """Bytes that a decode step moves on one device, and the least."""
    program = compile_slots(config, layout, jnp.dtype("bfloat16"), shape, stop_ids=(0,))
    module = Module(str(compile_decode_steps(config, layout, program).as_text()))
    return module.bytes() / NUM_DECODE_STEPS, least_step_bytes(program)


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
            num_live_lengths=1,
        )
        moved, least = bytes_per_step(config, shape, layout)
        print(f"{row:28}{moved / 1e6:12,.1f}{least / 1e6:12,.1f}{moved / least:8.3f}", flush=True)


if __name__ == "__main__":
    main()
