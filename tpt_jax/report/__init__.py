"""The HTML report of one or more runs: one file that opens offline, with what the model wrote shown as text."""

from collections.abc import Sequence

from tpt_jax.io.paths import AnyPath


def write_report(run_dirs: Sequence[AnyPath], output: AnyPath) -> None:
    """Writes the report of one run, or of several side by side; a run that is still going is shown as far as it is.

    Raises:
      UserError: a folder is not a run's, a file in it cannot be read, or the output is a folder.
    """
    # Imported here: the command line imports this package at every start, and so do the checker's processes.
    from tpt_jax.errors import UserError
    from tpt_jax.io.files import write_atomically
    from tpt_jax.report.page import render
    from tpt_jax.report.read import read_runs

    if output.is_dir():
        raise UserError(f"{output}: is a folder; give the name of an HTML file to write")
    write_atomically(output, render(read_runs(run_dirs)))
