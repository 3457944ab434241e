"""`tpt sample`: completions of a file of prompts."""

import argparse
from pathlib import Path

from tpt_jax.commands.arguments import (
    accept_overrides,
    add_host_arguments,
    fraction,
    joined_hosts,
    non_negative,
    not_empty,
    positive,
    positive_or_auto,
    read_config,
    seed,
)
from tpt_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a Hugging Face folder or name, or a run's checkpoint")
    parser.add_argument("--prompts", type=Path, help='JSON lines: {"id", "prompt"}')
    parser.add_argument("--output", type=Path, help="the completions, JSON lines")
    parser.add_argument(
        "--show_prompts",
        type=positive,
        nargs="?",
        const=3,
        metavar="N",
        help="only print the first N prompts (3) as the model reads them: of --prompts, or of the run in --config",
    )
    parser.add_argument("--config", type=Path, help="with --show_prompts: a run's YAML file, whose keys can be set")
    accept_overrides(parser)
    parser.add_argument("--num_samples", type=positive, default=1, help="completions of each prompt")
    parser.add_argument("--temperature", type=non_negative, default=0.8, help="0 is greedy decoding")
    parser.add_argument("--top_k", type=positive, help="only sample from the k likeliest tokens")
    parser.add_argument("--top_p", type=fraction, default=1.0, help="only from the likeliest tokens that sum to p")
    parser.add_argument(
        "--min_p", type=fraction, default=0.0, help="only from tokens at least p times as likely as the likeliest"
    )
    parser.add_argument("--max_new_tokens", type=positive, default=512)
    parser.add_argument("--max_prompt_tokens", type=positive, default=1024, help="longer prompts are skipped")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        type=not_empty,
        help='end before this text; repeatable; by default the next "Question:" if the model has no chat template',
    )
    parser.add_argument("--template", help="a Jinja chat template, or a file with one; or plain: Question: ... Answer:")
    parser.add_argument("--plain", action="store_true", help="continue the prompt itself, without chat template")
    parser.add_argument(
        "--num_slots", type=positive_or_auto, default=64, help="completions sampled concurrently; auto: as many as fit"
    )
    parser.add_argument("--tensor", type=positive, default=1, help="devices over which each weight is split")
    parser.add_argument("--compute_dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--cache_type", choices=("compute", "int8"), default="compute", help="type of the KV cache")
    parser.add_argument("--weights", choices=("compute", "int8"), default="compute", help="type of the weights")
    add_host_arguments(parser)


def main(args: argparse.Namespace) -> None:
    import tpt_jax as tpt

    if (args.overrides or args.config) and not (args.config and args.show_prompts):
        options = ", ".join(f"--{name}" for name in (*args.overrides, *(["config"] if args.config else [])))
        raise UserError(f"{options}: only with --show_prompts --config FILE; tpt sample --help lists the options")
    if args.show_prompts:
        _show_prompts(args)
        return
    _require(args, "model", "prompts", "output")
    with joined_hosts(args):
        tpt.sample_file(
            args.model,
            args.prompts,
            args.output,
            num_samples=args.num_samples,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            min_p=args.min_p,
            max_new_tokens=args.max_new_tokens,
            max_prompt_tokens=args.max_prompt_tokens,
            seed=args.seed,
            stop=args.stop,
            template=args.template,
            plain=args.plain,
            num_slots=args.num_slots,
            tensor=args.tensor,
            compute_dtype=args.compute_dtype,
            cache_type=args.cache_type,
            weights=args.weights,
        )


def _require(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(args, name) is None:
            raise UserError(f"--{name}: missing; tpt sample --help lists the options")


def _show_prompts(args: argparse.Namespace) -> None:
    import tpt_jax as tpt

    if args.config is not None:
        lines = tpt.show_run_prompts(read_config(args), args.show_prompts)
    elif args.model is not None and args.prompts is not None:
        lines = tpt.show_file_prompts(
            args.model, args.prompts, args.show_prompts, template=args.template, plain=args.plain
        )
    else:
        raise UserError("--show_prompts: needs --config FILE, or --model DIR and --prompts F.jsonl")
    for line in lines:
        print(line)
