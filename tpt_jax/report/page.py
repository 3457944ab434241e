"""Renders the runs into one self-contained page."""

import functools
from collections.abc import Sequence

import jinja2

from tpt_jax.report import words
from tpt_jax.report.figures import comparison_charts, run_charts
from tpt_jax.report.headline import comparison, facts, headline, progress
from tpt_jax.report.read import STAGES, Run

FILTERS = (
    "percent",
    "interval",
    "points",
    "points",
    "count",
    "number",
    "duration",
    "stage_of_model",
    "label",
    "visible",
)
MAX_NAMES_IN_TITLE = 3


@functools.cache  # a run writes its page after every round
def template(name: str) -> jinja2.Template:
    """A template of a page; its values are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tpt_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(words, name) for name in FILTERS}
    return environment.get_template(name)


def render(runs: Sequence[Run], refresh_seconds: int | None = None) -> str:
    """The report as HTML. It loads nothing from the network, and its security policy forbids that too.

    Args:
      refresh_seconds: how often the page loads itself again, while its run goes on; None for never.
    """
    return template("page.html").render(
        title=", ".join(run.label for run in runs) if len(runs) <= MAX_NAMES_IN_TITLE else f"{len(runs)} runs",
        runs=[
            {
                "run": run,
                "headline": headline(run),
                "facts": facts(run),
                "charts": run_charts(run, is_running=refresh_seconds is not None),
            }
            for run in runs
        ],
        refresh_seconds=refresh_seconds,
        progress=progress(runs[0]) if refresh_seconds else None,
        comparison=comparison(runs),
        comparison_charts=comparison_charts(runs) if len(runs) > 1 else [],
        stages=[stage for stage in STAGES if any(stage in result.seconds for run in runs for result in run.rounds)],
    )
