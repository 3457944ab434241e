"""`tpt report`: writes the HTML report of one or more runs, or of a sweep."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="a run folder, several to compare, or a sweep's")
    parser.add_argument("--output", help="the HTML file (default: report.html in the first folder)")


def main(args: argparse.Namespace) -> int:
    """Writes the report and prints its path."""
    from tpt_jax.report import write_report

    print(write_report(args.run_dirs, args.output))
    return 0
