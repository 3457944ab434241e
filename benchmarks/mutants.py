"""Breaks the code in over a hundred ways, one at a time in a copy, and expects a test to notice each.

    python benchmarks/mutants.py [--only NAME ...] [--list]

Needs the `test` extra. Every mutant (mutant_list.py) names the tests that must fail; they must pass on the unbroken
copy first. Prints a line per mutant and exits with 1 if one survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent
SECONDS = 120  # a mutant that makes its tests hang counts as killed
SECONDS_UNBROKEN = 1200  # for all tests together


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="mutants whose names contain one of these texts")
    parser.add_argument("--list", action="store_true", help="print the names and run nothing")
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not args.only or any(text in mutant.name for text in args.only)]
    if args.list:
        print("\n".join(mutant.name for mutant in chosen))
        return 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "copy"
        copy_checkout(copy)
        for mutant in chosen:
            mutated(copy, mutant)  # exits if the mutant no longer fits its file
        if not passes(copy, [test for mutant in chosen for test in mutant.tests.split()], SECONDS_UNBROKEN):
            sys.exit("the tests fail without a mutant; run pytest")
        survivors = [mutant for mutant in chosen if not is_killed(copy, mutant)]
    minutes = (time.monotonic() - started) / 60
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed in {minutes:.0f} minutes")
    return 1 if survivors else 0


def copy_checkout(target: Path) -> None:
    """Copies the files that git tracks, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in listed.splitlines():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)


def mutated(copy: Path, mutant: Mutant) -> str:
    """The mutant's file with the fault in it."""
    text = (copy / "tpt_jax" / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        sys.exit(f"{mutant.name}: {mutant.file} holds {mutant.old!r} {text.count(mutant.old)} times, not once")
    return text.replace(mutant.old, mutant.new)


def is_killed(copy: Path, mutant: Mutant) -> bool:
    """Runs the mutant's tests on the broken copy, and repairs it."""
    path = copy / "tpt_jax" / mutant.file
    text = path.read_text()
    path.write_text(mutated(copy, mutant))
    started = time.monotonic()
    killed = not passes(copy, mutant.tests.split(), SECONDS)
    path.write_text(text)
    print(f"{'killed  ' if killed else 'SURVIVED'} {time.monotonic() - started:4.0f} s  {mutant.name}", flush=True)
    return killed


def passes(copy: Path, tests: Sequence[str], seconds: float) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", *dict.fromkeys(tests)]
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):  # 1: tests failed
        sys.exit(
            f"pytest {' '.join(tests)}: status {done.returncode}\n{done.stdout.decode()[-2000:]}{done.stderr.decode()}"
        )
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
