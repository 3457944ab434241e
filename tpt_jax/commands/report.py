"""`tpt report`: writes the HTML report of one or more runs."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR", help="several are drawn on one chart")
    parser.add_argument("--output", type=Path, help="the HTML file; report.html in the first folder if not given")


def main(args: argparse.Namespace) -> int:
    """Writes the report and prints where it is."""
    from tpt_jax.report import write_report

    output = args.output or args.run_dirs[0] / "report.html"
    write_report(args.run_dirs, output)
    print(output)
    return 0
