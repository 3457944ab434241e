"""`tpt sft`: fine-tunes a model on a file of traces."""

import argparse
from pathlib import Path

from tpt_jax.commands.arguments import add_config_arguments, add_host_arguments, joined_hosts, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--model", required=True, help="a Hugging Face folder or name, or a run's checkpoint")
    parser.add_argument("--traces", type=Path, required=True, help='JSON lines: {"id", "completion"}, ids of the task')
    parser.add_argument("--output", required=True, help="the checkpoint's folder, on a disk or gs://BUCKET/...")
    add_host_arguments(parser)


def main(args: argparse.Namespace) -> None:
    import tpt_jax as tpt

    config = read_config(args)
    with joined_hosts(args):
        tpt.finetune_file(config, args.model, args.traces, args.output)
