"""`tpt run`: all rounds of a config that are not done yet."""

import argparse

from tpt_jax.commands.arguments import add_config_arguments, add_host_arguments, joined_hosts, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--run_dir", help="the run folder, on a disk or gs://BUCKET/...; runs/NAME if not given")
    add_host_arguments(parser)


def main(args: argparse.Namespace) -> None:
    import tpt_jax as tpt
    from tpt_jax.runtime import hosts

    config = read_config(args)
    with joined_hosts(args):
        run = tpt.run(config, run_dir=args.run_dir)
        if hosts.is_first():
            print(f"report: {run.report}")
