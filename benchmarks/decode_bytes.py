"""What one decoding step moves in a TPU chip's memory, and what its program needs, compiled ahead of time.

    python benchmarks/decode_bytes.py --topology v5e:2x4 --model gemma2-2b --num_slots 64 --length 1024
    python benchmarks/decode_bytes.py --topology v6e:4x4 --model llama3.1-70b --tensor 8 --num_slots 64 --length 1024

Needs libtpu (the extra "tpu") and no TPU. Slots are those of a chip that holds a whole copy of the weights, or of the
`tensor` chips that share one. Bytes are counted by tpt_jax/hlo.py; the least is all weights and the whole cache, once.
"""

import argparse
import os
import re
import time
from collections import Counter

# Keep libtpu from looking for a TPU and its metadata.
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from tpt_jax.mesh import AXES
from tpt_jax.models.config import PUBLISHED
from tpt_jax.sharding import DECODE_RULES, Layout
from tpt_jax.think.bench import compile_step, step_bytes
from tpt_jax.think.compile import compile_slots
from tpt_jax.think.state import SlotShape

GIB = 2**30
COLLECTIVES = re.compile(r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--model", choices=PUBLISHED, default="gemma2-2b")
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--num_slots", type=int, default=64)
    parser.add_argument("--length", type=int, default=1024, help="positions of a sequence, a quarter of them prompt")
    parser.add_argument("--cache_type", choices=("compute", "int8"), default="compute")
    args = parser.parse_args()
    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    sizes = (1, len(devices) // args.tensor, args.tensor)
    mesh = Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    layout = Layout(mesh, DECODE_RULES)
    config = PUBLISHED[args.model]
    prompt = args.length // 4
    shape = SlotShape(
        num_slots=args.num_slots,
        num_questions=128,
        num_traces=1024,
        num_prefix_tokens=0,
        max_prompt_tokens=prompt,
        max_new_tokens=args.length - prompt + 1,
        cache_type=args.cache_type,
    )
    started = time.monotonic()
    step = compile_step(config, layout, jnp.dtype("bfloat16"), shape, shape.cache_length)
    counted, ideal = step_bytes(step)
    kinds = Counter(COLLECTIVES.findall(str(step[0].as_text())))
    print(f"{args.model}, {args.topology}, mesh {dict(mesh.shape)}, {args.num_slots} slots of {shape.cache_length}")
    print(f"a step: {counted / 1e9:.2f} GB a chip; the least {ideal / 1e9:.2f} GB; ratio {counted / ideal:.3f}")
    print(f"its collectives: {dict(kinds) or 'none'} (compiled in {time.monotonic() - started:.0f} s)")
    started = time.monotonic()
    memory = compile_slots(config, layout, jnp.dtype("bfloat16"), shape, stop_ids=(1,)).decode_chunk.memory_analysis()
    assert memory is not None  # a TPU's compiler always tells
    print(
        f"the whole sampling program: {memory.argument_size_in_bytes / GIB:.2f} GiB of arguments, "
        f"{memory.temp_size_in_bytes / GIB:.2f} GiB of temporaries a chip "
        f"(compiled in {time.monotonic() - started:.0f} s)"
    )


if __name__ == "__main__":
    main()
