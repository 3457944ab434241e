"""Measures the host memory needed to load a large checkpoint (random bf16 weights in several files).

    python benchmarks/big_checkpoint.py --gigabytes 2

Loads the checkpoint in one process with eight emulated devices, then in two processes with four each, like the hosts of
a pod. Emulated devices keep their arrays in host memory, so a host should need its fp32 shards and little more. Only
anonymous memory counts (RssAnon in /proc/self/status), not cached file pages, which the system can drop at any time.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

NUM_LAYERS, VOCAB_SIZE, HEAD_DIM, NUM_FILES = 8, 32_000, 128, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--host", type=int, nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read(Path(args.read), *args.host)
        return
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), args.gigabytes)
        for num_hosts in (1, 2):
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            flags = f"--xla_force_host_platform_device_count={8 // num_hosts}"
            env = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": flags,
                "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            }
            command = [sys.executable, __file__, "--read", name, "--host", str(port), str(num_hosts)]
            hosts = [subprocess.Popen([*command, str(index)], env=env) for index in range(num_hosts)]
            statuses = [host.wait() for host in hosts]
            if any(statuses):
                sys.exit("loading the checkpoint failed")


def write(folder: Path, gigabytes: float) -> None:
    """Writes a LLaMA checkpoint of about this size, its layers spread over several files, one file at a time."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    weights_per_layer = gigabytes * 1e9 / 2 / NUM_LAYERS
    width = int((weights_per_layer / 16) ** 0.5 / 1024 + 0.5) * 1024  # a layer has about 16 x width^2 weights
    heads = width // HEAD_DIM
    square, wide = (width, width), (4 * width, width)
    layer = {
        **{f"self_attn.{name}_proj": square for name in "qkvo"},
        "mlp.gate_proj": wide,
        "mlp.up_proj": wide,
        "mlp.down_proj": wide[::-1],
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    config = {
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": HEAD_DIM,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    weight_map = {}
    for number in range(NUM_FILES):
        shapes = {
            f"model.layers.{index}.{name}.weight": shape
            for index in range(number, NUM_LAYERS, NUM_FILES)
            for name, shape in layer.items()
        }
        if number == 0:
            shapes |= {"model.embed_tokens.weight": (VOCAB_SIZE, width), "lm_head.weight": (VOCAB_SIZE, width)}
            shapes["model.norm.weight"] = (width,)
        tensors = {
            name: (random.standard_normal(shape, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
            for name, shape in shapes.items()
        }
        file = f"model-{number + 1:05}-of-{NUM_FILES:05}.safetensors"
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def read(folder: Path, port: int, num_hosts: int, host: int) -> None:
    """Loads the checkpoint in the training layout and prints this host's peak memory."""
    import jax

    from tpt_jax.config import MeshConfig
    from tpt_jax.models.huggingface_import import load_parameters, read_model_config
    from tpt_jax.runtime import hosts
    from tpt_jax.runtime.mesh import make_mesh
    from tpt_jax.runtime.sharding import TRAIN_RULES, Layout

    if num_hosts > 1:
        hosts.join(hosts.Coordinator(f"localhost:{port}", num_hosts, host))
    config = read_model_config(folder)
    layout = Layout(make_mesh(MeshConfig(tensor=2)), TRAIN_RULES)
    before, started = anonymous_memory(), time.monotonic()
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    parameters = load_parameters(folder, config, layout)
    done.set()
    watcher.join()
    leaves = jax.tree.leaves(parameters)
    share = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    largest = max(leaf.nbytes for leaf in leaves)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(
        f"host {host} of {num_hosts}: checkpoint {size / 1e9:.2f} GB; fp32 shards of this host {share / 1e9:.2f} GB, "
        f"peak memory {(peak - before) / 1e9:.2f} GB, {(peak - before - share) / 1e9:.2f} GB above the shards; "
        f"largest parameter (all hosts) {largest / 1e9:.2f} GB; {time.monotonic() - started:.0f} s",
        flush=True,
    )
    hosts.barrier("checkpoint loaded")


def anonymous_memory() -> int:
    """Bytes of this process's memory that are not backed by a file."""
    match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None  # Linux only
    return int(match[1]) * 1024


if __name__ == "__main__":
    main()
