"""`tpt` before any verb: version, shell completion, and how fast the command starts."""

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from processes import ROOT, CommandHere, refused

from tpt_jax import __version__
from tpt_jax.commands.completion import _config_keys
from tpt_jax.config_parsing import flat, parse_config, plain_values

# Asks bash's completion what may follow these words.
ASK = """
source completion.bash
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_shtab_tpt
printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_the_version_says_what_runs_and_starts_no_device() -> None:
    lines = (
        "import sys",
        "from tpt_jax.commands.main import main",
        "try: main(['--version'])",
        "finally: assert 'jax' not in sys.modules",
    )
    python = ".".join(map(str, sys.version_info[:3]))
    expected = f"tpt_jax {metadata.version('tpt_jax')}, jax {metadata.version('jax')}, Python {python}\n"
    assert output(sys.executable, "-c", "\n".join(lines)) == expected


def output(*command: str, cwd: Path = ROOT) -> str:
    """Standard output of a process that has nothing to complain about."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bash's completion, a file and a folder."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "completion.bash").write_text(output(sys.executable, "-m", "tpt_jax", "completion", "bash"))
    (folder / "run.yaml").touch()
    (folder / "runs").mkdir()
    return folder


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("che",), {"check-task"}),
        (("completion", ""), {"bash", "zsh", "fish"}),
        (("bench", "tr"), {"train"}),
        (("run", "--train.optimizer.b"), {"--train.optimizer.beta1", "--train.optimizer.beta2"}),
        (("check-task", "--task.ch"), {"--task.checker"}),
        (("run", "--config", "run"), {"run.yaml", "runs"}),
        (("report", "run"), {"runs"}),
        (("export", "--dtype", "f"), {"float32"}),
    ],
)
def test_bash_completes(words: tuple[str, ...], expected: set[str], folder: Path) -> None:
    assert set(output("bash", "-c", ASK, "bash", "tpt", *words, cwd=folder).split()) == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_theirs(shell: str, tpt_here: CommandHere, tmp_path: Path) -> None:
    text = tpt_here("completion", shell).stdout
    assert "train.optimizer.beta1" in text
    if shutil.which(shell):
        (tmp_path / "completion").write_text(text)
        subprocess.run([shell, "-n", tmp_path / "completion"], check=True)


def test_every_key_of_a_config_is_completed() -> None:
    task = {"name": "file", "train": "a", "test": "b"}
    config = parse_config({"name": "x", "model": {"path": "y"}, "task": task, "think": {"max_samples": 8}})
    assert set(flat(plain_values(config))) <= set(_config_keys())
    assert not [key for key in _config_keys() if not re.fullmatch(r"[a-z_0-9.]+", key)]


def test_an_unknown_shell(tpt_here: CommandHere) -> None:
    assert "invalid choice: 'csh'" in refused(tpt_here, "completion", "csh")


def test_a_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], str(citation["version"])) == ("1.2.0", __version__)
    assert (
        citation["references"][0]["identifiers"][0]["value"].removeprefix("arXiv:") in (ROOT / "README.md").read_text()
    )


def test_an_sdist_takes_every_document_and_folder_that_it_names() -> None:
    lines = (line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines())
    named = {name for verb, *names in lines if verb in ("include", "graft") for name in names}
    assert not [name for name in named if not (ROOT / name).exists()]
    assert {path.name for path in ROOT.glob("*.md")} <= {*named, "README.md"}  # which setuptools adds itself
