"""The page: what was read of the runs, through the template, into one self-contained text."""

from collections.abc import Sequence

import jinja2

from tpt_jax.report import words
from tpt_jax.report.figures import STAGES, comparison_charts, run_charts
from tpt_jax.report.headline import comparison, facts, headline
from tpt_jax.report.read import Run

FILTERS = ("percent", "interval", "count", "figure", "duration", "round_name", "visible")


def render(runs: Sequence[Run]) -> str:
    """The report as HTML. Nothing in it reaches the network, and its policy forbids that besides."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tpt_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(words, name) for name in FILTERS}
    return environment.get_template("page.html").render(
        title=", ".join(run.label for run in runs) if len(runs) <= 3 else f"{len(runs)} runs",
        runs=[{"run": run, "headline": headline(run), "facts": facts(run), "charts": run_charts(run)} for run in runs],
        comparison=comparison(runs),
        comparison_charts=comparison_charts(runs) if len(runs) > 1 else [],
        stages=[stage for stage in STAGES if any(stage in each.seconds for run in runs for each in run.rounds)],
    )
