"""Shared by the comparisons with other systems: a random LLaMA, and a process for each system."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SYSTEMS = ("ours", "transformers", "tunix")
EOS = 0  # used as padding; ends no trace
MODEL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 8192,
    "hidden_size": 448,
    "intermediate_size": 1216,
    "num_hidden_layers": 8,
    "num_attention_heads": 7,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "dtype": "float32",
}


def compare(
    script: str, doc: str | None, write_workload: Callable[[Path], None], run: Callable[[str, Path], dict[str, Any]]
) -> dict[str, dict[str, Any]] | None:
    """Runs each system in turn in a process of its own and returns their results.

    In such a process it runs the one system, prints its result and returns None.

    Args:
      script: file to run for each system, with the Python of its environment.
      write_workload: writes the common workload into the model's folder.
      run: runs one system on the folder's model and workload, and returns its result.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tunix_python", default=None, help="Python with google-tunix; without it Tunix is skipped")
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.system:
        print(json.dumps(run(args.system, args.folder)))
        return None
    pythons = {"ours": sys.executable, "transformers": sys.executable, "tunix": args.tunix_python}
    runs = {}
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name))
        write_workload(Path(name))
        for system in (system for system in SYSTEMS if pythons[system]):
            command = [pythons[system], script, "--system", system, "--folder", name]
            process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs[system] = json.loads(process.stdout.splitlines()[-1])
    return runs


def write_model(folder: Path) -> None:
    """Writes the model in Hugging Face format."""
    from tpt_jax.config import MeshConfig
    from tpt_jax.models.huggingface_config import from_huggingface
    from tpt_jax.models.huggingface_export import save_parameters
    from tpt_jax.models.transformer import initialize_parameters
    from tpt_jax.runtime.mesh import make_mesh
    from tpt_jax.runtime.sharding import TRAIN_RULES, Layout

    config = from_huggingface(MODEL)
    layout = Layout(make_mesh(MeshConfig()), TRAIN_RULES)
    save_parameters(folder, config, initialize_parameters(config, layout, seed=0), dtype="float32")
    (folder / "config.json").write_text(json.dumps(MODEL))
    print(f"{config.num_parameters / 1e6:.1f}M parameters")


def tunix_model(folder: Path) -> tuple[Any, Any]:
    """The same model in Tunix, and its config."""
    import jax.numpy as jnp
    from tunix.models.llama3 import model as llama3  # pyright: ignore[reportMissingImports]
    from tunix.models.llama3.params import create_model_from_safe_tensors  # pyright: ignore[reportMissingImports]

    config = llama3.ModelConfig(
        num_layers=MODEL["num_hidden_layers"],
        vocab_size=MODEL["vocab_size"],
        embed_dim=MODEL["hidden_size"],
        hidden_dim=MODEL["intermediate_size"],
        num_heads=MODEL["num_attention_heads"],
        head_dim=MODEL["head_dim"],
        num_kv_heads=MODEL["num_key_value_heads"],
        rope_theta=int(MODEL["rope_theta"]),
        norm_eps=MODEL["rms_norm_eps"],
        weight_tying=True,
    )
    return create_model_from_safe_tensors(str(folder), config, dtype=jnp.float32), config
