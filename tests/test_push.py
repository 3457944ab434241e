"""Model cards, and pushing to a server that plays the Hugging Face Hub."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_hub import FakeHub, fetching_from, serve
from processes import EASY_TASK, TPT, CommandHere, process_environment, refused
from safetensors.numpy import load_file

import tpt_jax as tpt
from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.config_parsing import load_config
from tpt_jax.errors import MachineError, UserError
from tpt_jax.io.model_cards import escaped, fenced, read_metadata
from tpt_jax.io.paths import to_path
from tpt_jax.library.model_card import make_card
from tpt_jax.loop.run_folder import RunFolder

MODEL = Path(__file__).parent.parent / "tpt_jax/quickstart/model"
BASE_CARD = "---\nlicense: other\nlicense_name: tiny terms\nlicense_link: LICENSE\n---\n# Tiny\n"
WRITES = ("POST", "PUT")
# Of huggingface_hub's own upload, by git-lfs's protocol.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """With a base model, as alice sees it."""
    (tmp_path / "card").write_text(BASE_CARD)
    with serve() as hub:
        fetching_from(hub, tmp_path / "cache", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_alice")
        hub.add("alice/tiny", {path.name: path for path in MODEL.iterdir()} | {"README.md": tmp_path / "card"})
        yield hub


def make_run(folder: Path, **settings: Any) -> Path:
    """A run's folder after round 1, whose checkpoint is a Hugging Face folder; returns the checkpoint."""
    (folder.parent / "easy.yaml").write_text(EASY_TASK)
    config = load_config(folder.parent / "easy.yaml", settings)
    run = RunFolder(to_path(folder))
    run.begin(config)
    for index, rate in enumerate((0.25, 0.5)):
        metrics = {
            "round": index,
            "num_questions": 16,
            "num_samples": 4,
            "pass_at_1": rate,
            "strict_pass_at_1": rate / 2,
            "intervals": {"pass_at_1": [rate - 0.125, rate + 0.125], "strict_pass_at_1": [0.0, rate]},
            "paired": {"pass_at_1": [0.25, 0.125, 0.375]} if index else {},
        }
        run.write_metrics(index, metrics)
    shutil.copytree(MODEL, run.checkpoint(1))
    return Path(run.checkpoint(1))


@pytest.fixture
def checkpoint(hub: FakeHub, tmp_path: Path) -> Path:
    """Of a run whose base model has been fetched."""
    model = ModelFolder.open("alice/tiny")
    version = model.name.partition("@")[2]
    return make_run(tmp_path / "run", **{"model.path": "alice/tiny", "model.version": version})


def test_a_pushed_model_loads_by_its_name_with_the_same_weights(hub: FakeHub, checkpoint: Path, tmp_path: Path) -> None:
    """The command as a user starts it."""
    environment = process_environment() | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_alice",
    }
    command = [*TPT, "export", "--checkpoint", checkpoint, "--output", tmp_path / "out", "--push", "alice/better"]
    done = subprocess.run(
        [*map(str, command), "--private"], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"{hub.url}/alice/better: pushed; transformers.Auto")
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.files("alice/better") == written
    assert hub.repositories["model", "alice/better"].private
    assert len(hub.paths("PUT", "/lfs/")) == 1

    loaded = ModelFolder.open("alice/better")
    weights, original = (load_file(folder / "model.safetensors") for folder in (Path(loaded.path), MODEL))
    assert weights.keys() == original.keys()
    assert all((weights[name] == original[name]).all() for name in original)


def test_the_card_says_what_the_model_is(hub: FakeHub, checkpoint: Path) -> None:
    card = make_card(ModelFolder.open(checkpoint), "float32")
    version = hub.repositories["model", "alice/tiny"].commits[-1][0]
    made = card.metadata["tpt_jax"]
    assert card.metadata == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["think-prune-train", "tpt_jax", "arxiv:2504.18116"],
        "base_model": "alice/tiny",
        "base_model_relation": "finetune",
        "license": "other",
        "license_name": "tiny terms",
        "license_link": "LICENSE",
        "tpt_jax": {"version": tpt.__version__, "base": f"hf://alice/tiny@{version}", "run": made["run"], "round": 1},
    }
    for text in (
        "[alice/tiny](https://huggingface.co/alice/tiny) after 1 round of [Think, Prune, Train]",
        "| base model | 25.0% | 12.5 to 37.5% | 12.5% | 0.0 to 25.0% |",
        "| after round 1 | 50.0% | 37.5 to 62.5% | 25.0% | 0.0 to 50.0% |",
        "Change of Pass@1 since the base model: +25.0 points (95% interval +12.5 to +37.5, paired by question).\n",
        "tpt export --checkpoint RUN_DIR/checkpoints/001 --output FOLDER",
        "under its licence, whose card says: tiny terms",
    ):
        assert text in card.text
    assert str(checkpoint.parent.parent) not in card.text
    assert os.path.abspath("configs") not in card.text  # where the task's files are
    recipe = yaml.safe_load(card.text.partition("```yaml\n")[2].partition("\n```")[0])
    assert recipe["task"]["train"] == "train.jsonl"
    assert recipe["train"]["rows"] == 4

    of_adapter = make_card(ModelFolder.open(checkpoint), "float32", adapter=True)
    assert of_adapter.metadata["library_name"] == "peft"
    assert of_adapter.metadata["base_model_relation"] == "adapter"
    assert "AutoPeftModelForCausalLM.from_pretrained(NAME" in of_adapter.text
    assert "tpt export --checkpoint RUN_DIR/checkpoints/001 --adapter --output FOLDER" in of_adapter.text


def test_a_card_without_a_run_says_less(hub: FakeHub, tmp_path: Path) -> None:
    card = make_card(ModelFolder.open("alice/tiny"), "bfloat16")
    assert card.metadata["base_model"] == "alice/tiny"
    assert card.metadata["license_name"] == "tiny terms"
    assert card.metadata["tpt_jax"]["run"] is None
    assert "## Held-out" not in card.text
    shutil.copytree(MODEL, tmp_path / "secret/mine")
    alone = make_card(ModelFolder.open(tmp_path / "secret/mine"), "bfloat16")
    assert "base_model" not in alone.metadata
    assert "# mine, exported" in alone.text
    assert "secret" not in alone.text + str(alone.metadata)


HOSTILE = (
    "a](javascript:alert(1))[b",
    "<script>alert(1)</script>",
    "![x](http://evil/x.png)",
    "`` ``` `````\n---\nlicense: mit",
    "| a | b |\n|---|",
    "\u202edesrever \x1b[31m \u2028# Title",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_strange_names_stay_text_in_the_card(hub: FakeHub, tmp_path: Path, text: str) -> None:
    name = " ".join(text.split())
    checkpoint = make_run(tmp_path / "run", **{"name": name, "prompt": {"instruction": text}})
    folder = tmp_path / "out"
    folder.mkdir()
    card = make_card(ModelFolder.open(checkpoint), "float32")
    card.write(folder)
    assert read_metadata(folder / "README.md") == card.metadata
    head, _, rest = card.text.partition("```\ntpt run")
    assert not any(each in head for each in ("<script", "](javascript", "![x]", "\u202e", "\x1b", "\u2028"))
    fence, block = rest.partition("config.yaml`:\n\n")[2].split("yaml\n", 1)
    assert set(fence) == {"`"}
    recipe, ending, _ = block.partition(f"\n{fence}\n")
    assert ending
    assert yaml.safe_load(recipe)["prompt"]["instruction"] == text
    assert fence not in recipe


def test_pieces_of_markdown() -> None:
    assert escaped("a_b <c> [d](e)\n# f") == r"a\_b &lt;c&gt; \[d\]\(e\) \# f"
    assert fenced("```") == "````\n```\n````\n"


@pytest.mark.parametrize(
    "text",
    ["", "---\n", "no card", "---\n- a\n---\n", "---\na: [\n---\n", "---\nx: !!python/object:os.system a\n---\n"],
)
def test_a_card_that_cannot_be_read_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert read_metadata(tmp_path / "README.md") == {}
    assert read_metadata(tmp_path / "none") == {}


def export(tpt_here: CommandHere, checkpoint: Path, name: str) -> None:
    done = tpt_here("export", "--checkpoint", checkpoint, "--push", name)
    assert done.returncode == 0, done.stderr


def test_a_later_push_of_the_same_run_is_a_commit_that_keeps_the_users_files(
    hub: FakeHub, checkpoint: Path, tpt_here: CommandHere
) -> None:
    export(tpt_here, checkpoint, "alice/better")
    repository = hub.repositories["model", "alice/better"]
    first = repository.commits[-1][1]
    old = {"notes.md": MODEL / "config.json", "model-00001-of-00002.safetensors": MODEL / "config.json"}
    hub.add("alice/better", first | old)
    export(tpt_here, checkpoint, "alice/better")
    assert len(repository.commits) == 4  # created, pushed, the user's, pushed
    assert hub.files("alice/better").keys() == first.keys() | {"notes.md"}


def test_nothing_is_changed_in_a_repository_that_is_not_ours(
    hub: FakeHub, checkpoint: Path, tmp_path: Path, tpt_here: CommandHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_folder("bob/model", MODEL)
    export(tpt_here, checkpoint, "alice/better")
    hub.repositories["model", "alice/empty"] = type(hub.repositories["model", "alice/better"])(private=True)
    hub.add("alice/empty", {".gitattributes": MODEL / "config.json"})
    others = make_run(tmp_path / "others", **{"model.path": "quickstart", "seed": 7})
    hub.requests.clear()
    for name, token, source, message in (
        ("alice/tiny", "hf_alice", checkpoint, "exists already, and is not from an earlier push of this run"),
        ("alice/better", "hf_alice", others, "not from an earlier push of this run; nothing was changed: give another"),
        ("alice/better", "hf_alice", MODEL, "not from an earlier push of this run"),
        ("bob/model", "hf_alice", checkpoint, "belongs to alice, who may not write to bob; give alice/model, or"),
        ("bob/new", "hf_alice", checkpoint, "belongs to alice, who may not write to bob"),
        ("alice/new", "hf_nobody", checkpoint, "the Hub refuses the token; set HF_TOKEN to a valid one"),
        ("alice/new", None, checkpoint, "--push alice/new: there is no token; set HF_TOKEN"),
        ("better", "hf_alice", checkpoint, "--push ('better'): not the name of a repository; write OWNER/NAME"),
    ):
        if token is None:
            monkeypatch.delenv("HF_TOKEN")
        else:
            monkeypatch.setenv("HF_TOKEN", token)
        line = refused(tpt_here, "export", "--checkpoint", source, "--push", name, "--output", tmp_path / "out")
        assert message in line
        assert not (tmp_path / "out").exists()
        monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert not [request for request in hub.requests if request[0] in WRITES]
    assert "--output: missing" in refused(tpt_here, "export", "--checkpoint", checkpoint)
    export(tpt_here, checkpoint, "alice/empty")  # as a push that was killed leaves it


def test_push_of_a_folder(hub: FakeHub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between attempts
    tpt.load_model(checkpoint).export(tmp_path / "out")
    assert read_metadata(tmp_path / "out/README.md").get("license_link") is not None
    assert tpt.push(tmp_path / "out", "alice/better") == f"{hub.url}/alice/better"
    assert json.loads(hub.files("alice/better")["config.json"])["dtype"] == "float32"
    with pytest.raises(UserError, match=r"has no README\.md by tpt_jax; give a folder that `tpt export` wrote"):
        tpt.push(MODEL, "alice/better")
    hub.dies = True
    with pytest.raises(MachineError, match=r"^hf://alice/better: \S+ cannot be reached \(\w+: [^)]*\)$"):
        tpt.push(tmp_path / "out", "alice/better")
