"""`tpt init`: writes a working project of one's own."""

import argparse
import shlex


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="new or empty")
    parser.add_argument("--name", help="of its runs; the folder's name if not given")
    parser.epilog = "README.md in the folder has the commands to go on with, in order."


def main(args: argparse.Namespace) -> None:
    import tpt_jax as tpt

    written = tpt.init_project(args.folder, args.name)
    print(f"wrote {', '.join(map(str, written))}")
    print(f"next: cd {shlex.quote(args.folder)} && tpt check-task --config config.yaml; README.md has the rest")
