"""`tpt export`: writes a run's checkpoint as a Hugging Face folder."""

import argparse

from tpt_jax.commands.arguments import add_host_arguments, joined_hosts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a run's checkpoint")
    parser.add_argument("--output", required=True, help="the folder to write")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the written weights; bfloat16 halves the file and rounds small changes away, so a short training may "
        "be lost in it",
    )
    parser.add_argument(
        "--adapter", action="store_true", help="only the adapters that train.lora trained, for PEFT; otherwise merged"
    )
    add_host_arguments(parser)


def main(args: argparse.Namespace) -> None:
    import tpt_jax as tpt
    from tpt_jax.terminal import say

    with joined_hosts(args):
        tpt.export_checkpoint(args.checkpoint, args.output, args.dtype, adapter=args.adapter)
        loader = "peft.AutoPeftModelForCausalLM" if args.adapter else "transformers.AutoModelForCausalLM"
        say(f"{args.output}: written; {loader}.from_pretrained({args.output!r}) loads it")
