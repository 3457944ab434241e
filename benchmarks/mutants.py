"""Breaks the code in some forty ways, one at a time in a copy, and expects a test to notice each.

    python benchmarks/mutants.py [--only NAME ...] [--list]

Needs the `test` extra. Every mutant names the tests that must fail; they must pass on the unbroken copy first. Prints a
line a mutant and exits with 1 if one survives.
"""

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS = 300  # a mutant that makes its tests hang counts as killed


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
      file: below tpt_jax/.
      old, new: a text that stands in the file exactly once, and what replaces it.
      tests: pytest arguments, separated by spaces; at least one of these tests must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "interval with the population's variance",
        "evaluation.py",
        "ddof=1",
        "ddof=0",
        "tests/test_evaluate.py",
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="mutants whose names contain one of these texts")
    parser.add_argument("--list", action="store_true", help="print the names and run nothing")
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not args.only or any(text in mutant.name for text in args.only)]
    if args.list:
        print("\n".join(mutant.name for mutant in chosen))
        return 0
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "copy"
        copy_checkout(copy)
        if failed := [tests for tests in dict.fromkeys(mutant.tests for mutant in chosen) if not passes(copy, tests)]:
            sys.exit(f"these tests fail without a mutant: {'; '.join(failed)}")
        survivors = [mutant for mutant in chosen if not is_killed(copy, mutant)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed")
    return 1 if survivors else 0


def copy_checkout(target: Path) -> None:
    """Copies the files that git tracks, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in listed.splitlines():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)


def is_killed(copy: Path, mutant: Mutant) -> bool:
    """Runs the mutant's tests on the broken copy, and repairs it."""
    path = copy / "tpt_jax" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        sys.exit(f"{mutant.name}: {mutant.file} holds {mutant.old!r} {text.count(mutant.old)} times, not once")
    path.write_text(text.replace(mutant.old, mutant.new))
    started = time.monotonic()
    killed = not passes(copy, mutant.tests)
    path.write_text(text)
    print(f"{'killed  ' if killed else 'SURVIVED'} {time.monotonic() - started:4.0f} s  {mutant.name}", flush=True)
    return killed


def passes(copy: Path, tests: str) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", *tests.split()]
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):  # 1: tests failed
        sys.exit(f"pytest {tests}: status {done.returncode}\n{done.stdout.decode()[-2000:]}{done.stderr.decode()}")
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
