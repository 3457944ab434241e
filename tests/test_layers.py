"""The layering: an upper room may import a lower one, never the reverse, and what must stay light stays light."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tpt_jax"

# From the bottom up. A room is a folder, or a file beside the folders. It may import rooms of lower levels only, so
# rooms of one level do not know each other.
LEVELS = (
    ("errors", "records", "terminal"),
    ("io",),
    ("checks", "evaluation"),
    ("tasks", "prune"),
    ("config",),
    ("runtime", "prompts"),
    ("models",),
    ("checkpoints",),
    ("think", "train"),
    ("plan",),
    ("bench", "loop"),
    ("report",),
    ("library", "quickstart"),
    ("commands",),
    ("__init__", "__main__"),
)
WITHOUT_JAX = (
    "errors",
    "records",
    "config",
    "evaluation",
    "commands.main",
    "loop.run_folder",
    "report.page",
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


def room(module: str) -> str:
    return module.partition(".")[0]


def level(module: str) -> int:
    for height, rooms in enumerate(LEVELS):
        if room(module) in rooms:
            return height
    raise AssertionError(f"{module} is in no room; give {room(module)} a level")


def test_no_cycle() -> None:
    graphlib.TopologicalSorter(MODULES).prepare()


@pytest.mark.parametrize("module", list(MODULES))
def test_a_room_imports_lower_rooms_only(module: str) -> None:
    others = {other for other in MODULES[module] if room(other) != room(module)}
    assert not {other for other in others if level(other) >= level(module)}


def test_light_modules_import_no_jax() -> None:
    light = [*WITHOUT_JAX, *(name for name in MODULES if name.startswith(("checks.", "io.", "prune.", "tasks.")))]
    program = f"import sys; import {', '.join(f'tpt_jax.{name}' for name in light)}; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
