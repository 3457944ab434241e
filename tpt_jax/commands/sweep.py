"""`tpt sweep`: runs of configs that differ in some settings, compared with each other."""

import argparse
import shlex

from tpt_jax.commands.arguments import add_config_arguments, add_host_arguments, joined_hosts, positive
from tpt_jax.errors import UserError

VALUES = "values are YAML, separated by , or ; outside of brackets and quotes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help=f"a key and its values; with several --vary, every combination is an arm; {VALUES}",
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="'NAME: KEY=V KEY=V'",
        help="an arm with these settings; with --vary, one arm for each combination",
    )
    parser.add_argument(
        "--seeds",
        type=positive,
        help="runs of each arm, with the config's seed and the next ones; the file's number, or 1, if not given",
    )
    parser.add_argument(
        "--sweep_dir", help="the sweep's folder, on a disk or gs://BUCKET/...; sweeps/NAME if not given"
    )
    add_host_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Prints the table after every arm; 1 if a run failed."""
    import tpt_jax as tpt
    from tpt_jax.runtime import hosts

    vary, arms = parse_vary(args.vary), parse_arms(args.arm)
    with joined_hosts(args):
        sweep = tpt.sweep(
            args.config, vary=vary, arms=arms, seeds=args.seeds, sweep_dir=args.sweep_dir, **args.overrides
        )
        if hosts.is_first():
            print(f"report: {sweep.report}")
    return 1 if sweep.failures else 0


def parse_vary(options: list[str]) -> dict[str, list[str]]:
    """["train.rows=8,16"] as {"train.rows": ["8", "16"]}.

    Raises:
      UserError: an option is not KEY=VALUES, a key is given twice, or a value is empty.
    """
    from tpt_jax.loop.sweep_plan import split_values

    vary: dict[str, list[str]] = {}
    for option in options:
        key, equals, values = option.partition("=")
        if not equals or not key:
            raise UserError(f"--vary ({option!r}): write KEY=V1,V2")
        if key in vary:
            raise UserError(f"{key}: is varied twice; give all its values in one --vary")
        vary[key] = split_values(values)
    return vary


def parse_arms(options: list[str]) -> dict[str, dict[str, str]]:
    """["small: train.rows=8 num_rounds=1"] as {"small": {"train.rows": "8", "num_rounds": "1"}}.

    Raises:
      UserError: an option is not NAME: KEY=V ..., or a name or key is given twice.
    """
    arms: dict[str, dict[str, str]] = {}
    for option in options:
        name, colon, settings = option.partition(":")
        name = " ".join(name.split())
        try:
            words = [word.partition("=") for word in shlex.split(settings)]
        except ValueError as error:
            raise UserError(f"--arm ({option!r}): a quote is open at the end; close it") from error
        keys = [key for key, _, _ in words]
        if not colon or not name or not all(key and equals for key, equals, _ in words):
            raise UserError(f"--arm ({option!r}): write 'NAME: KEY=V KEY=V', with quotes around values with spaces")
        if name in arms or len(set(keys)) < len(keys):
            raise UserError(f"--arm ({option!r}): {'the name' if name in arms else 'a key'} is given twice")
        arms[name] = {key: value for key, _, value in words}
    return arms
