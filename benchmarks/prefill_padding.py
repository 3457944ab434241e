"""How much of prefill is padding: prompts padded to the longest, as before, and one after the other, as now.

    python benchmarks/prefill_padding.py MODEL_FOLDER --questions FILE.jsonl [FILE.jsonl ...]

Prompts are those of `tpt run` in the order of the file, without the prefix that all share; longer ones than
--max_prompt_tokens are left out, as a run does. A batch takes as many of the next prompts as fit.
"""

import argparse
import json
from pathlib import Path

from tpt_jax.prompts import load_prompt
from tpt_jax.think.sampling_plan import common_prefix
from tpt_jax.think.state import SlotShape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--questions", type=Path, nargs="+", required=True, help='JSON lines with "question"')
    parser.add_argument("--max_prompt_tokens", type=int, default=512)
    args = parser.parse_args()
    prompt = load_prompt(args.model)
    print(f"{'questions':32}{'prompts':>8}{'mean':>6}{'longest':>9}{'padded rows':>13}{'packed':>8}   share of padding")
    for path in args.questions:
        questions = [json.loads(line)["question"] for line in path.read_text(encoding="utf-8").splitlines()]
        prompts = [prompt.prompt_ids(question) for question in questions]
        fitting = [ids for ids in prompts if len(ids) <= args.max_prompt_tokens]
        shared = len(common_prefix(fitting))
        lengths = [len(ids) - shared for ids in fitting]
        rows = 1 - sum(lengths) / (len(lengths) * max(lengths))
        packed = 1 - sum(lengths) / sum(batch_sizes(lengths))
        figures = f"{len(lengths):8}{sum(lengths) / len(lengths):6.0f}{max(lengths):9}{rows:13.0%}{packed:8.0%}"
        print(f"{path.name:32}{figures}")


def batch_sizes(lengths: list[int]) -> list[int]:
    """Tokens computed by each prefill batch, the small last one included."""
    shape = SlotShape(
        num_slots=64,
        num_questions=len(lengths),
        num_traces=len(lengths),
        num_prefix_tokens=0,
        max_prompt_tokens=max(lengths),
        max_new_tokens=1,
        tile=8,
    )
    few, many = shape.prefill_batches
    sizes, left = [], list(lengths)
    while left:
        size = few if sum(left[: shape.prefills_per_batch]) <= few else many
        sizes.append(size)
        filled = 0
        while left and filled + left[0] <= size:
            filled += left.pop(0)
    return sizes


if __name__ == "__main__":
    main()
