"""Model folders made to do harm: each ends in one line and status 2 within seconds, and runs nothing."""

import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, CommandHere, refused, write_json

from tpt_jax.errors import UserError
from tpt_jax.tokenizer import load_tokenizer, process, render

QUICKSTART = ROOT / "tpt_jax/quickstart/model"
MESSAGES = [{"role": "user", "content": "How many?"}]
MARK = "harmed"  # a file of this name appears in the test's folder if something was run that must not be

Change = Callable[[Path], object]
Tpt = CommandHere


def set_json(name: str, **values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | values)

    return change


def template(text: str) -> Change:
    return set_json("tokenizer_config.json", chat_template=text)


def config(**values: Any) -> Change:
    return set_json("config.json", **values)


def link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def pipe(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    os.mkfifo(folder / "tokenizer_config.json")


# A model's folder. `tpt sample --show_prompts` reads its config, tokenizer and template.

CATASTROPHE = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
GROWTH = [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40

FOLDERS: dict[str, tuple[Change, str]] = {
    "a template that multiplies text": (template("{{ 'a' * 10**10 }}"), "chat template: needs too much memory"),
    "a template that pads a number": (template("{{ '%10000000000d' % 1 }}"), "chat template: needs too much memory"),
    "a template that writes for ever": (
        template("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}"),
        "chat template: needs too much memory",
    ),
    "a template with a huge range": (template("{% for i in range(10**12) %}{% endfor %}"), "Range too big"),
    "a template that calls itself": (template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "RecursionError"),
    "a template that looks for types": (template("{{ ''.__class__.__mro__ }}"), "is unsafe"),
    "a template that renames types": (template("{% set n = namespace(__class__=1) %}"), "underscore"),
    "a template with an escape sequence": (template("{{ raise_exception('\x1b[2J\u202e') }}"), r"\x1b[2J\u202e"),
    "a catastrophic regular expression": (
        set_json("tokenizer.json", pre_tokenizer=CATASTROPHE),
        "tokenizer.json: the tokenizer: cannot encode a text",
    ),
    "a catastrophic normalizer": (
        set_json("tokenizer.json", normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}),
        "tokenizer.json: the tokenizer: cannot encode a text",
    ),
    "a tokenizer that is code": (
        set_json(
            "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        ),
        "Evil is code in the folder (auto_map), which is never run",
    ),
    "a tokenizer from a device": (link("tokenizer_config.json", "/dev/zero"), "outside of the folder"),
    "a config from a device": (link("config.json", "/dev/zero"), "config.json"),
    "settings from a device": (link("generation_config.json", "/dev/zero"), "outside of the folder"),
    "a pipe": (pipe, "tokenizer_config.json: is a device or a pipe"),
    "a link to a secret": (link("merges.txt", "/etc/passwd"), "merges.txt: is a link to /etc/passwd, outside"),
    "a link to a folder": (link("additional_chat_templates", "/etc"), "additional_chat_templates: is a link to /etc"),
    "a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers (1000000000) must be a whole number"),
    "negative width": (config(hidden_size=-1), "hidden_size (-1) must be a whole number from 1"),
    "no width": (config(hidden_size=0), "hidden_size (0) must be"),
    "width as text": (config(hidden_size="x"), "hidden_size ('x') must be"),
    "infinite width": (config(hidden_size=1e300), "hidden_size (1e+300) must be"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads (0) must be"),
    "a vocabulary of 10**15": (config(vocab_size=10**15), "vocab_size (1000000000000000) must be"),
    "half a layer": (config(num_hidden_layers=0.5), "num_hidden_layers (0.5) must be"),
    "layers null": (config(num_hidden_layers=None), "num_hidden_layers (None) must be"),
    "layers true": (config(num_hidden_layers=True), "num_hidden_layers (True) must be"),
    "epsilon NaN": (config(rms_norm_eps=float("nan")), "rms_norm_eps (nan) must be a number above 0"),
    "theta infinite": (config(rope_parameters={"rope_theta": float("inf")}), "rope_theta (inf) must be"),
    "factor 0": (config(rope_parameters={"rope_type": "linear", "factor": 0}), "factor (0) must be a number above 0"),
    "rope as text": (config(rope_parameters="x"), "rope_parameters ('x') must be an object"),
    "a type that is a list": (config(model_type=["a"]), "model_type (['a']) must be text"),
    "a type of 10 MB": (config(model_type="x" * 10**7), "model_type"),
    "a type with a line end": (config(model_type="a\n\x1b[31m"), r"model_type (a \x1b[31m) must be one of"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(QUICKSTART, tmp_path / "model")
    (tmp_path / "model/evil.py").write_text(f"open({str(tmp_path / MARK)!r}, 'w')")
    return tmp_path / "model"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_json(tmp_path / "prompts.jsonl", {"id": "a", "prompt": "What is 3 + 4?"})


@pytest.mark.parametrize("case", FOLDERS)
def test_a_model_folder(case: str, folder: Path, prompts: Path, tpt_here: Tpt) -> None:
    change, words = FOLDERS[case]
    change(folder)
    assert words in refused(tpt_here, "sample", "--show_prompts", "1", "--model", folder, "--prompts", prompts)
    assert not (folder.parent / MARK).exists()


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_that_loops_for_ever_on_one_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(folder)
    monkeypatch.setattr(process, "SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"prompt\.template: takes longer than 1 s on one text"):
        render(tokenizer, MESSAGES, "{% if messages[0].content == 'How many?' %}" + LOOP + "{% endif %}")
    assert time.monotonic() - started < 10
    monkeypatch.undo()
    assert render(tokenizer, MESSAGES, "{{ messages[0].content }}") == "How many?"  # in a new process


def test_a_normalizer_that_doubles_40_times(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs into the limit of time or of memory, whichever comes first on this machine."""
    set_json("tokenizer.json", normalizer={"type": "Sequence", "normalizers": GROWTH})(folder)
    monkeypatch.setattr(process, "SECONDS", 1.0)
    with pytest.raises(UserError, match=r"tokenizer\.json: the tokenizer: (takes longer|exceeds the memory limit)"):
        load_tokenizer(folder)


def test_a_process_that_was_killed_gets_a_successor(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert process._guarded is not None
    process._guarded._process.kill()
    assert render(tokenizer, MESSAGES, "{{ messages[0].content }}") == "How many?"


RICH_TEMPLATE = """{%- set state = namespace(count=0, names=[]) -%}
{% for message in messages %}
    {%- if loop.index > 3 %}{% break %}{% endif -%}
    {% generation %}{{ message['role'] | upper }}: {{ message.content | trim }}{% endgeneration %}

    {% set state.count = state.count + 1 %}
{% endfor %}
{{ bos_token }}{{ state.count }} {{ {'a': 'é<', 'b': [1, None]} | tojson }} {{ tools is none }} {{ dict(a=1)['a'] }}
{% if add_generation_prompt %}{{ eos_token }}{% endif %}{{ extra }}"""


@pytest.mark.parametrize("is_prompt", [True, False])
def test_templates_render_as_in_transformers(folder: Path, is_prompt: bool) -> None:
    tokenizer = load_tokenizer(folder)
    options: dict[str, Any] = {"add_generation_prompt": is_prompt, "extra": "x"}
    expected = tokenizer.apply_chat_template(MESSAGES * 5, chat_template=RICH_TEMPLATE, tokenize=False, **options)
    assert render(tokenizer, MESSAGES * 5, RICH_TEMPLATE, **options) == expected


def test_links_of_a_download_cache_work(folder: Path, prompts: Path, tpt_here: Tpt) -> None:
    cache = folder.parent / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots/0123"
    snapshot.mkdir(parents=True)
    for index, file in enumerate(sorted(folder.iterdir())):
        file.rename(cache / f"blobs/{index}")
        (snapshot / file.name).symlink_to(f"../../blobs/{index}")
    assert tpt_here("sample", "--show_prompts", "1", "--model", snapshot, "--prompts", prompts).returncode == 0
    (snapshot / "merges.txt").symlink_to("../../refs")
    assert "outside of the folder" in refused(
        tpt_here, "sample", "--show_prompts", "1", "--model", snapshot, "--prompts", prompts
    )


# Weights. `tpt eval` checks them before it compiles.


class Harm:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def only_pickled(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Harm(folder.parent / MARK)))

    return change


def header(size: int, text: bytes) -> Change:
    return lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + text)


def index_outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "../secret.safetensors"}})


HUGE = json.dumps({"a": {"dtype": "F32", "shape": [2**31, 2**20], "data_offsets": [0, 2**53]}}).encode()
WEIGHTS: dict[str, tuple[Change, str]] = {
    "pytorch_model.bin": (only_pickled("pytorch_model.bin"), "only pytorch_model.bin; download the safetensors"),
    "model.pt": (only_pickled("model.pt"), "has no model.safetensors"),
    "model.pkl": (only_pickled("model.pkl"), "has no model.safetensors"),
    "a pickle called safetensors": (
        lambda folder: (folder / "model.safetensors").write_bytes(pickle.dumps(Harm(folder.parent / MARK))),
        "not a complete safetensors file",
    ),
    "a header of a terabyte": (header(2**40, b"{}"), "not a complete safetensors file"),
    "a tensor of petabytes": (header(len(HUGE), HUGE), "not a complete safetensors file"),
    "a header of brackets": (header(10**6, b"[" * 10**6), "not a complete safetensors file"),
    "a link to something else": (link("model.safetensors", "/etc/passwd"), "not a complete safetensors file"),
    "a link to a device": (link("model.safetensors", "/dev/zero"), "model.safetensors"),
    "an index with a path": (index_outside, "lists '../secret.safetensors', which is not in the folder"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights(case: str, folder: Path, tpt_here: Tpt) -> None:
    change, words = WEIGHTS[case]
    change(folder)
    task = [f"--task.{split}={ROOT}/tpt_jax/library/project_template/{split}.jsonl" for split in ("train", "test")]
    assert words in refused(tpt_here, "eval", "--config", ROOT / "configs/own_task.yaml", "--model", folder, *task)
    assert not (folder.parent / MARK).exists()


def test_code_beside_a_known_model_is_not_run(folder: Path, prompts: Path, tpt_here: Tpt) -> None:
    config(auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})(folder)
    assert tpt_here("sample", "--show_prompts", "1", "--model", folder, "--prompts", prompts).returncode == 0
    assert not (folder.parent / MARK).exists()
