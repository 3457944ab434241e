"""`tpt plan`: plans a run on a TPU slice, on a machine without a TPU."""

import argparse
from pathlib import Path

from tpt_jax.commands.arguments import add_config_arguments, fraction, positive, positive_number, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--topology", required=True, help="the TPU slice: v5e:2x4, v6e:8x8, v5p:4x4x4, ...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--fit", action="store_true", help="find the most slots and rows that fit; takes minutes")
    parser.add_argument(
        "--mean_prompt_tokens", type=positive, help="tokens per prompt; half of think.max_prompt_tokens if not given"
    )
    parser.add_argument(
        "--mean_new_tokens", type=positive, help="tokens per trace; a third of think.max_new_tokens if not given"
    )
    parser.add_argument(
        "--right_share", type=fraction, default=0.6, help="assumed share of right traces; 0.6 if not given"
    )
    parser.add_argument(
        "--price_per_chip_hour", type=positive_number, metavar="PRICE", help="also say what a round costs, at least"
    )


def main(args: argparse.Namespace) -> int:
    """Prints the plan; 1 if something does not fit."""
    from tpt_jax.plan.topology import prepare_environment

    config = read_config(args)
    prepare_environment()  # before JAX is imported
    from tpt_jax.plan.printout import print_plan
    from tpt_jax.runtime import environment

    environment.prepare(keep_programs=False)  # programs of absent devices cannot be loaded again
    fits = print_plan(
        config,
        args.topology,
        mean_prompt_tokens=args.mean_prompt_tokens,
        mean_new_tokens=args.mean_new_tokens,
        right_share=args.right_share,
        search=args.fit,
        price=args.price_per_chip_hour,
        json_path=args.json,
    )
    return 0 if fits else 1
