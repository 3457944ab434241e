"""Two small real checkpoints, made from packages of the Python index, and how tpt_jax does on them beside transformers.

    pip install 'tpt_jax[bench]'
    python benchmarks/real_models.py make FOLDER
    python benchmarks/real_models.py parity FOLDER --questions GSM8K.jsonl
    python benchmarks/real_models.py speed FOLDER --questions GSM8K.jsonl

`make` writes FOLDER/gemma3_270m (Gemma 3 270M, a base model; Gemma Terms of Use) and FOLDER/smollm2_135m
(SmolLM2-135M-Instruct; Apache-2.0), about 0.8 GB, with their licences; it downloads 0.35 GB. `parity` compares logits
and greedy completions, and exits with 1 if they differ by more than rounding. `speed` compares sampling and training.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from real_checkpoints import MODELS

from tpt_jax.errors import UserError


def main() -> int:
    """0: done; 1: parity failed; 2: a mistake in the input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("make", "parity", "speed"):
        verb = verbs.add_parser(name)
        verb.add_argument("folder", type=Path)
        if name != "make":
            verb.add_argument("--questions", type=Path, required=True, help='JSON lines with "question" and "answer"')
            verb.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
        if name == "speed":
            verb.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        return VERBS[args.verb](args)
    except UserError as error:
        print(f"real_models.py: {error}", file=sys.stderr)
        return 2


def make(args: argparse.Namespace) -> int:
    from real_checkpoints import make_checkpoints

    make_checkpoints(args.folder)
    return 0


def parity(args: argparse.Namespace) -> int:
    from real_parity import compare

    questions = read_questions(args.questions)
    results = [compare(model_folder(args.folder, name), name, questions) for name in args.models]
    return 0 if all(results) else 1


def speed(args: argparse.Namespace) -> int:
    from real_speed import compare, measure

    questions = read_questions(args.questions)
    if args.measure:
        model, kind, system = args.measure
        print(json.dumps(measure(model, kind, system, args.folder, questions)))
        return 0
    for name in args.models:
        model_folder(args.folder, name)
    compare(args.folder, args.questions, args.models)
    return 0


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {"make": make, "parity": parity, "speed": speed}


def model_folder(folder: Path, name: str) -> Path:
    """A model that `make` has written."""
    if not (folder / name / "config.json").is_file():
        raise UserError(f"{folder}: holds no {name}; run first: python benchmarks/real_models.py make {folder}")
    return folder / name


def read_questions(path: Path) -> list[dict[str, str]]:
    """The questions of GSM8K, with worked answers."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{"question": line["question"], "answer": line["answer"]} for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--questions {path}: give GSM8K's train.jsonl or test.jsonl ({error})") from error


if __name__ == "__main__":
    # The threads of torch and JAX are those of the cores that this process may use.
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    sys.exit(main())
