"""The HTML report of one or more runs: one file that opens offline and shows what the model wrote as plain text."""

import os
from collections.abc import Sequence

from tpt_jax.io.paths import to_path
from tpt_jax.report.show import Report

AnyName = str | os.PathLike[str]


def write_report(run_dirs: AnyName | Sequence[AnyName], output: AnyName | None = None) -> Report:
    """Writes the report of one run, of several together, or of a sweep: `write_report("runs/a").show()` in a notebook.

    Unfinished runs are shown up to their current state.

    Args:
      run_dirs: a run folder or several, or one sweep's folder.
      output: the HTML file; by default report.html in the first folder.

    Raises:
      UserError: a folder is not a run folder, a file in it cannot be read, or the output is a folder.
    """
    # Imported here: the command line imports this package at every start.
    from tpt_jax.errors import UserError
    from tpt_jax.io.files import write_atomically
    from tpt_jax.loop.run_folder import RunFolder
    from tpt_jax.report.page import render
    from tpt_jax.report.read import read_runs
    from tpt_jax.report.sweep_page import render_sweep

    run_dirs = [run_dirs] if isinstance(run_dirs, str | os.PathLike) else run_dirs
    path = to_path(run_dirs[0]) / "report.html" if output is None else to_path(output)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of an HTML file to write")
    page = render_sweep(run_dirs[0]) if len(run_dirs) == 1 else None
    write_atomically(path, page or render(read_runs([RunFolder.open_existing(run_dir) for run_dir in run_dirs])))
    return Report(path)
