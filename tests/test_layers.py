"""The layering in BUILD.md's figure: a room only imports lower rooms, and rooms marked * never import JAX."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tpt_jax"
FIGURE = (PACKAGE.parent / "BUILD.md").read_text().split("```")[1]

# The rooms of each line of the figure, from the bottom up; a star marks those that import no JAX.
LEVELS = [re.findall(r"\w+(?: \*)?", line[:43]) for line in reversed(FIGURE.splitlines()) if line[:43].strip(" -")]
ROOMS_WITHOUT_JAX = [room.removesuffix(" *") for level in LEVELS for room in level if room.endswith("*")]

# Other modules that must be quick to import: the library's calls without JAX, and the run folder that reports read.
MODULES_WITHOUT_JAX = (
    "loop.run_folder",
    "library.judging",
    "library.judge_file",
    "library.check_task",
    "library.init_project",
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") or "__init__"


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import) and any(alias.name.startswith("tpt_jax") for alias in node.names):
            assert [alias.name for alias in node.names] == ["tpt_jax"], f"{path}: write from tpt_jax... import"
            found.add("__init__")
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
    """The folder or file that a module is in; the package's own module offers the library's calls."""
    return {"__init__": "library", "__main__": "commands"}.get(module, module.partition(".")[0])


def level(module: str) -> int:
    for height, rooms in enumerate(LEVELS):
        if room(module) in [name.removesuffix(" *") for name in rooms]:
            return height
    raise AssertionError(f"{module}: BUILD.md's figure lacks the room {room(module)}")


def test_the_figure_has_every_room() -> None:
    drawn = [name.removesuffix(" *") for rooms in LEVELS for name in rooms]
    assert sorted(drawn) == sorted({room(module) for module in MODULES})


def test_no_cycle() -> None:
    graphlib.TopologicalSorter(MODULES).prepare()


@pytest.mark.parametrize("module", list(MODULES))
def test_a_room_imports_lower_rooms_only(module: str) -> None:
    others = {other for other in MODULES[module] if room(other) != room(module)}
    assert not {other for other in others if level(other) >= level(module)}


def test_rooms_without_jax_import_none() -> None:
    light = [module for module in MODULES if room(module) in ROOMS_WITHOUT_JAX and not module.startswith("__")]
    names = ", ".join(f"tpt_jax.{module}" for module in (*light, *MODULES_WITHOUT_JAX))
    subprocess.run([sys.executable, "-c", f"import sys, {names}; sys.exit('jax' in sys.modules)"], check=True)
