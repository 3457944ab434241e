"""`sample_file`: completions of a file of prompts, as `tpt sample`; a killed call resumes from its partial files."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.config import MeshConfig, PromptConfig, SamplingConfig, Seed
from tpt_jax.config_parsing import check_value, settings
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.io.files import checksum, parse_line, write_jsonl
from tpt_jax.io.paths import to_path
from tpt_jax.io.record_files import parse_id, read_records
from tpt_jax.library.sampling import sample_batches
from tpt_jax.loop.setup import plan_prompts
from tpt_jax.prompts import load_prompt
from tpt_jax.records import Trace
from tpt_jax.runtime import environment, hosts
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.runtime.one_at_a_time import own_output
from tpt_jax.runtime.sharding import TRAIN_RULES, Layout
from tpt_jax.terminal import say
from tpt_jax.think.sampler import compile_sampler
from tpt_jax.think.stop_strings import make_stop_strings

# Those that change the completions.
SAMPLING_SETTINGS = (
    *("num_samples", "temperature", "top_k", "top_p", "min_p"),
    *("max_prompt_tokens", "max_new_tokens", "cache_type", "weights"),
)
FIELDS = ("id", "sample", "completion", "token_ids", "logprob", "finish_reason")  # of an output line


def sample_file(
    model: str | os.PathLike[str],
    prompts: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    seed: int = 0,
    stop: Sequence[str] | None = None,
    template: str | None = None,
    plain: bool = False,
    tensor: int = 1,
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16",
    **options: Any,
) -> None:
    """Samples what is missing, then writes the output atomically, sorted by prompt and sample.

    Args:
      prompts: JSON lines, {"id", "prompt"}.
      output: JSON lines with FIELDS. Until it is complete, each host writes its traces to a file OUTPUT.partial*.
      stop: a completion ends before the first of these texts; if not given, those of the template, none with plain.
      template: the chat template, as `prompt.template` in a config.
      plain: continue each prompt itself, without chat template.
      tensor: devices over which each weight is split.
      options: as in `sample`.

    Raises:
      UserError: the output exists, or was started with other settings, or an input is missing or invalid.
      Stopped: the process was asked to stop; all finished traces are kept.
    """
    environment.prepare()
    prompts, output = Path(prompts), Path(output)
    check_value("seed", seed, Seed)
    with own_output(to_path(output)):
        if output.exists():
            raise UserError(f"{output}: exists already; give a new file, or remove it")
        config = settings(SamplingConfig, options, option="--")
        texts = read_prompts(prompts)
        asking = settings(PromptConfig, {"template": template, "stop": stop}, option="--")
        folder = ModelFolder.open(model)
        folder.check_weights()
        prompt = load_prompt(folder.path, template=asking.template, stop=() if plain and stop is None else asking.stop)
        stop_strings = make_stop_strings(prompt.stop, prompt.tokenizer, folder.config.vocab_size)
        if plain:
            say("sample: continuing each prompt as it stands")
        else:
            say(f"sample: asking with {prompt.template_name}; --plain continues each prompt as it stands")
        fixed = {
            "model": folder.name,
            **{name: getattr(config, name) for name in SAMPLING_SETTINGS},
            "seed": seed,
            "stop": list(prompt.stop),
            "template": asking.template,
            "plain": plain,
            "compute_dtype": compute_dtype,
            "prompts": checksum(prompts),
        }
        partial = PartialOutput(output, fixed)
        written = partial.read_own()
        done = {tuple(name) for host in hosts.all_gather("completions done", partial.names()) for name in host}
        mesh = make_mesh(MeshConfig(tensor=tensor))
        encode = prompt.plain_ids if plain else prompt.prompt_ids
        plan = plan_prompts(texts, encode, config, mesh, option="--", stop_strings=stop_strings)
        batches = sample_batches(
            lambda: compile_sampler(
                folder.config,
                mesh,
                compute_dtype=compute_dtype,
                shapes={"sample": plan.shape},
                stop_ids=prompt.stop_ids,
            ),
            prompt,
            plan,
            lambda: folder.load(Layout(mesh, TRAIN_RULES)),
            list(texts),
            config.temperature,
            seed=seed,
            stop_strings=stop_strings,
            done=done,
        )
        _write(partial, written, batches, list(texts))


def _write(
    partial: "PartialOutput", written: list[dict[str, Any]], batches: Iterable[list[Trace]], names: Sequence[str]
) -> None:
    """Appends this host's completions to its partial file; when all hosts are done the first one writes the output."""
    with partial.reopen(written) as file:
        for traces in batches:
            file.writelines(json.dumps({name: getattr(trace, name) for name in FIELDS}) + "\n" for trace in traces)
            file.flush()
    hosts.barrier("all completions sampled")
    if hosts.is_first():
        order = {name: index for index, name in enumerate(names)}
        write_jsonl(partial.output, sorted(partial.read_all(), key=lambda line: (order[line["id"]], line["sample"])))
        partial.remove()
    hosts.barrier("output written")


def read_prompts(path: Path) -> dict[str, str]:
    """Prompts by id; without ids they are numbered from 0.

    Raises:
      UserError: there are none, or more than 1% of the lines are invalid; names file and line.
    """
    prompts: dict[str, str] = {}

    def read(index: int, line: dict[str, Any]) -> None:
        text, name = line.get("prompt"), parse_id(line, index)
        if not isinstance(text, str):
            raise InvalidRecordError('lacks text under "prompt"; write {"id", "prompt"}')
        if name in prompts:
            raise InvalidRecordError(f"the id {name!r} belongs to an earlier prompt; make ids unique")
        prompts[name] = text

    read_records(path, read)
    if not prompts:
        raise UserError(f"{path}: holds no prompts")
    return prompts


@dataclasses.dataclass(frozen=True)
class PartialOutput:
    """The completions written so far, one file per host; its first line has the settings it was started with.

    Attributes:
      settings: everything that affects completions; a file with other settings cannot be resumed.
    """

    output: Path
    settings: Mapping[str, Any]

    def read_own(self) -> list[dict[str, Any]]:
        """The lines that this host has written, in an earlier process."""
        return self._read(self._own_path)

    def read_all(self) -> list[dict[str, Any]]:
        """The lines of all hosts, those of an earlier call included."""
        return [line for path in self._paths for line in self._read(path)]

    def names(self) -> list[tuple[str, int]]:
        """Id and sample of every completion written so far."""
        return [(line["id"], line["sample"]) for line in self.read_all()]

    def reopen(self, lines: Iterable[Mapping[str, Any]]) -> TextIO:
        """This host's file, rewritten with these lines and opened for appending."""
        write_jsonl(self._own_path, [self.settings, *lines])
        return self._own_path.open("a", encoding="utf-8")

    def remove(self) -> None:
        for path in self._paths:
            path.unlink()

    @property
    def _own_path(self) -> Path:
        return self.output.with_name(f"{self.output.name}.partial{hosts.filename_suffix()}")

    @property
    def _paths(self) -> list[Path]:
        return sorted(self.output.parent.glob(f"{self.output.name}.partial*"))

    def _read(self, path: Path) -> list[dict[str, Any]]:
        """The lines of a file, without a last one that a killed process left incomplete.

        Raises:
          UserError: the file was started with other settings.
        """
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        if len(lines) < 2:  # without completions, its settings bind nobody
            return []
        before, *completions = self._parse(path, lines)
        for name, value in self.settings.items():
            if before.get(name) != value:
                raise UserError(
                    f"{path}: was started with --{name} {before.get(name)}, not {value}; give the same again, or "
                    "remove the file"
                )
        return completions

    def _parse(self, path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(lines, start=1):
            try:
                yield parse_line(line.encode())
            except InvalidRecordError as error:
                raise UserError(f"{path}:{number}: {error}: the file is damaged; remove it to sample again") from error
