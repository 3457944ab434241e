"""The layering: an upper room may import a lower one, never the reverse, and what must stay light stays light."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tpt_jax"

# From the bottom up; a module may import those of its own room and of rooms further down.
ROOMS = (
    ("errors", "arguments", "paths", "files", "records", "terminal", "hlo", "prune.boxes"),
    ("lines", "prune.checkers", "prune.conclusion", "prune.programs"),
    ("tasks",),
    ("config",),
    ("prune", "evaluate"),
    ("hosts", "preemption", "mesh", "sharding", "prompts"),
    ("models",),
    (
        "think.cache",
        "think.sampling",
        "think.state",
        "think.slots",
        "think.compile",
        "think.parts",
        "train.data",
        "train.linear_cross_entropy",
        "train.loss",
        "train.optimizer",
        "train.step",
    ),
    ("memory", "program"),
    ("think", "train", "seal", "checkpoint", "run_dir", "metrics", "report", "bench"),
    ("stages",),
    ("loop", "plan", "quickstart"),
    ("verbs", "sft"),
    ("cli",),
)
WITHOUT_JAX = (
    "errors",
    "records",
    "config",
    "tasks",
    "evaluate",
    "cli",
    "report.command",
    "think.command",
    "plan.command",
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") or "__init__"


def imports(path: Path) -> set[str]:
    """Modules of the package that a file names in its imports, those inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("tpt_jax") for alias in node.names), f"{path}: import from tpt_jax"
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tpt_jax"):
            base = (node.module or "").removeprefix("tpt_jax").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                is_module = (PACKAGE / inner.replace(".", "/")).with_suffix(".py").is_file() or not base
                found.add(inner if is_module else base)
    return found


MODULES = {module_name(path): imports(path) for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> int:
    """The most specific room that names the module or a folder above it."""
    names = [".".join(module.split(".")[:length]) for length in range(module.count(".") + 1, 0, -1)]
    for name in names:
        for height, members in enumerate(ROOMS):
            if name in members:
                return height
    raise AssertionError(f"{module} has no room; give it one")


def test_no_cycle() -> None:
    graphlib.TopologicalSorter(MODULES).prepare()


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__init__"])
def test_no_import_goes_up(module: str) -> None:
    higher = {other for other in MODULES[module] if room(other) > room(module)}
    assert not higher


def test_light_modules_import_no_jax() -> None:
    light = [*WITHOUT_JAX, *(name for name in MODULES if name.startswith(("prune.", "tasks.")))]
    program = f"import sys; import {', '.join(f'tpt_jax.{name}' for name in light)}; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
