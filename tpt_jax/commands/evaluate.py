"""`tpt eval`: Pass@k of a model, as JSON on standard output."""

import argparse
import dataclasses
import json

from tpt_jax.commands.arguments import add_config_arguments, add_host_arguments, joined_hosts, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--model", required=True, help="a Hugging Face folder or name, or a run's checkpoint")
    parser.add_argument("--run_dir", help="keep the judged traces in this folder, and resume from there")
    add_host_arguments(parser)


def main(args: argparse.Namespace) -> None:
    import tpt_jax as tpt

    config = read_config(args)
    with joined_hosts(args):
        figures = tpt.evaluate_checkpoint(config, args.model, args.run_dir)
        if figures is not None:
            print(json.dumps(dataclasses.asdict(figures), indent=2))
