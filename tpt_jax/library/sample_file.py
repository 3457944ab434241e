"""`tpt sample`: completions of a file of prompts; what a killed one has sampled is kept and gone on from."""

import argparse
import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tpt_jax.commands.arguments import fraction, non_negative, not_empty, positive, seed
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.files import digest, write_jsonl
from tpt_jax.io.record_files import id_of, read_records
from tpt_jax.records import Trace

# What decides which traces come out, and so what a file that was begun can be gone on with.
SETTINGS = (
    *("model", "num_samples", "temperature", "top_k", "top_p", "min_p", "max_new_tokens", "seed", "stop", "plain"),
    *("max_prompt_tokens", "compute_dtype", "cache_type"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a Hugging Face folder or a run's checkpoint")
    parser.add_argument("--prompts", type=Path, help='JSON lines: {"id", "prompt"}')
    parser.add_argument("--output", type=Path, help="the completions, JSON lines")
    parser.add_argument(
        "--show_prompts",
        type=positive,
        nargs="?",
        const=3,
        metavar="N",
        help="only print the first N prompts (3) as the model reads them: of --prompts, or of the run that --config is",
    )
    parser.add_argument("--config", type=Path, help="with --show_prompts: a run's YAML file, whose keys can be set")
    parser.add_argument("--num_samples", type=positive, default=1, help="completions of each prompt")
    parser.add_argument("--temperature", type=non_negative, default=0.8, help="0 takes the likeliest token")
    parser.add_argument("--top_k", type=positive, help="draw from the k likeliest tokens only")
    parser.add_argument("--top_p", type=fraction, default=1.0, help="from the likeliest that together reach p")
    parser.add_argument(
        "--min_p", type=fraction, default=0.0, help="from those at least p times as likely as the first"
    )
    parser.add_argument("--max_new_tokens", type=positive, default=512)
    parser.add_argument(
        "--max_prompt_tokens", type=positive, default=1024, help="longer prompts are left out and named"
    )
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", type=not_empty, help="end before this text; repeatable"
    )
    parser.add_argument("--plain", action="store_true", help="continue the prompt as it stands, without chat template")
    parser.add_argument("--num_slots", type=positive, default=64, help="completions sampled side by side")
    parser.add_argument("--tensor", type=positive, default=1, help="devices over which each weight is split")
    parser.add_argument("--compute_dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--cache_type", choices=("compute", "int8"), default="compute", help="of keys and values")


def main(args: argparse.Namespace) -> int:
    """Samples what is missing, then writes the output, ordered by prompt and sample, whole or not at all."""
    from tpt_jax.runtime import hosts

    for name in ("model", "prompts", "output"):
        if getattr(args, name) is None:
            raise UserError(f"--{name}: missing; tpt sample --help tells what to give")
    if args.output.exists():
        raise UserError(f"{args.output}: exists already; give a new file, or remove it")
    prompts = read_prompts(args.prompts)
    settings = {name: getattr(args, name) for name in SETTINGS}
    settings["prompts"] = digest(args.prompts)
    own = args.output.with_name(f"{args.output.name}.partial{hosts.filename_suffix()}")
    lines = read_partial(own, settings)
    done = {tuple(name) for of_host in hosts.all_gather("what is done", _names(args, settings)) for name in of_host}
    with _reopened(own, settings, lines) as file:
        for traces in _sampled(args, prompts, done):
            file.writelines(json.dumps(_line(trace)) + "\n" for trace in traces)
            file.flush()
    hosts.barrier("all is sampled")
    if hosts.is_first():
        lines = [line for path in _partials(args) for line in read_partial(path, settings)]
        order = {name: place for place, name in enumerate(prompts)}
        write_jsonl(args.output, sorted(lines, key=lambda line: (order[line["id"]], line["sample"])))
        for path in _partials(args):
            path.unlink()
    hosts.barrier("all is written")
    return 0


def _partials(args: argparse.Namespace) -> list[Path]:
    """What hosts, of this command or of an earlier one, have written so far."""
    return sorted(args.output.parent.glob(f"{args.output.name}.partial*"))


def _names(args: argparse.Namespace, settings: dict[str, Any]) -> list[tuple[str, int]]:
    lines = [line for path in _partials(args) for line in read_partial(path, settings)]
    return [(line["id"], line["sample"]) for line in lines]


def read_prompts(path: Path) -> dict[str, str]:
    """Prompts by id; without ids, a prompt's number (from 0) is its id.

    Raises:
      UserError: there are none, or more than 1% are no prompts, named by file and line.
    """
    prompts: dict[str, str] = {}

    def read(index: int, line: dict[str, Any]) -> None:
        text, name = line.get("prompt"), id_of(line, index)
        if not isinstance(text, str):
            raise InvalidRecordError('lacks a text under "prompt"; write {"id", "prompt"}')
        if name in prompts:
            raise InvalidRecordError(f"the id {name!r} is that of an earlier prompt; make ids unique")
        prompts[name] = text

    read_records(path, read)
    if not prompts:
        raise UserError(f"{path}: holds no prompts")
    return prompts


def read_partial(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What an earlier process has sampled; a last line that it did not finish writing is left out.

    Raises:
      UserError: it was begun with other settings.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    if not lines:
        return []
    begun = json.loads(lines[0])
    different = [name for name in settings if begun.get(name) != settings[name]]
    if different:
        name = different[0]
        raise UserError(
            f"{path}: was begun with --{name} {begun.get(name)}, not {settings[name]}; "
            "give what it was begun with, or remove it"
        )
    return [json.loads(line) for line in lines[1:]]


def _reopened(path: Path, settings: dict[str, Any], lines: Iterable[dict[str, Any]]) -> TextIO:
    """The file with just the lines that are whole, to be written on."""
    write_jsonl(path, [settings, *lines])
    return path.open("a", encoding="utf-8")


def _line(trace: Trace) -> dict[str, Any]:
    names = ("id", "sample", "completion", "token_ids", "logprob", "finish_reason")
    return {name: getattr(trace, name) for name in names}


def _sampled(args: argparse.Namespace, prompts: dict[str, str], done: set[Any]) -> Iterator[list[Trace]]:
    from tpt_jax.checkpoints.model import ModelFolder
    from tpt_jax.config import MeshConfig
    from tpt_jax.prompts import load_prompt
    from tpt_jax.runtime import hosts, preemption
    from tpt_jax.runtime.mesh import make_mesh
    from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
    from tpt_jax.terminal import percent, progress, say
    from tpt_jax.think.engine import Engine, Statistics, plan_sampling
    from tpt_jax.think.sampler import compile_sampler
    from tpt_jax.think.sampling import Filters

    model = ModelFolder.open(args.model)
    prompt = load_prompt(model.path)
    encode = prompt.plain_ids if args.plain else prompt.prompt_ids
    mesh = make_mesh(MeshConfig(tensor=args.tensor))
    ids = {name: encode(text) for name, text in prompts.items()}
    plan = plan_sampling(
        ids,
        num_samples=args.num_samples,
        max_prompt_tokens=args.max_prompt_tokens,
        max_new_tokens=args.max_new_tokens,
        num_slots=args.num_slots,
        num_shards=Layout(mesh, TRAIN_RULES).batch_ways,
        num_questions=None,
        filters=Filters(args.top_k, args.top_p, args.min_p),
        cache_type=args.cache_type,
        option="--",
    )
    shape = dataclasses.replace(plan.shape, shows_running=bool(args.stop))
    too_long = [name for name in ids if name not in plan.prompt_ids]
    if too_long:
        say(f"{len(too_long)} prompts are left out, longer than --max_prompt_tokens: {', '.join(too_long[:5])}")
    requests = plan.requests(list(ids), done)
    num_left = sum(len(request.samples) for request in requests)
    if not num_left:
        return
    program = compile_sampler(
        model.config, mesh, compute_dtype=args.compute_dtype, shapes={"sample": shape}, stop_ids=prompt.stop_ids
    )
    parameters = model.load(Layout(mesh, TRAIN_RULES))
    decoding = program.reshard(parameters)
    del parameters  # sampling needs the fp32 weights no more
    engine = Engine(program.slots["sample"], prompt, plan.prefix, program.layout.batch_ways, tuple(args.stop))
    batches = engine.sample(
        decoding,
        requests,
        seed=args.seed,
        round_index=0,
        temperature=args.temperature,
        should_stop=preemption.should_stop,
    )
    with progress("sample", len(done) + num_left, "completions", len(done)) as advance, preemption.saves_first():
        for traces in batches:
            advance(len(traces) * hosts.count())  # the others are about as far
            yield traces
    figures = Statistics.together(hosts.all_gather("figures", dataclasses.asdict(engine.statistics)))
    say(
        f"{figures.num_tokens:,} tokens, {figures.num_tokens / figures.seconds:,.0f}/s, "
        f"slots {percent(figures.occupancy(shape.num_slots), 0)} busy, device idle {figures.idle_share:.1%}"
    )
