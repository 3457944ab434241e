"""`tpt export`: writes a run's checkpoint as a Hugging Face folder, and pushes it to the Hub."""

import argparse

from tpt_jax.commands.arguments import add_host_arguments, joined_hosts
from tpt_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a run's checkpoint")
    parser.add_argument("--output", help="the folder to write; --push alone needs none")
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="upload it to this repository on the Hugging Face Hub: a new one, or that of an earlier push of the same "
        "run; the token is HF_TOKEN, or that of `hf auth login`",
    )
    parser.add_argument("--private", action="store_true", help="only the owner sees a new repository")
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

    if args.output is None and args.push is None:
        raise UserError("--output: missing; give the folder to write, or --push OWNER/NAME")
    with joined_hosts(args):
        url = tpt.export_checkpoint(
            args.checkpoint, args.output, args.dtype, adapter=args.adapter, push_to=args.push, private=args.private
        )
        loader = "peft.AutoPeftModelForCausalLM" if args.adapter else "transformers.AutoModelForCausalLM"
        if args.output is not None:
            say(f"{args.output}: written; {loader}.from_pretrained({args.output!r}) loads it")
        if url is not None:
            say(f"{url}: pushed; {loader}.from_pretrained({args.push!r}) loads it")
