"""Renders a sweep into one self-contained page: which arm helps, how sure that is, and what each one cost."""

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from tpt_jax.io.files import write_atomically
from tpt_jax.io.paths import to_path
from tpt_jax.loop.sweep_plan import SweepFolder, SweepPlan
from tpt_jax.report import words
from tpt_jax.report.charts import Layer, Line, Point, interval_rows, line_chart, stacked_bars
from tpt_jax.report.figures import PERCENT, ROUND_AXIS, time_scale
from tpt_jax.report.page import template
from tpt_jax.report.svg import Unit
from tpt_jax.report.sweep_read import ArmResult, SweepResult, read_sweep
from tpt_jax.report.sweep_words import findings, intervals_note, status

POINTS = Unit(lambda value: f"{100 * value:+.3g}".replace("-", words.MINUS) if value else "0", words.points)


def write_sweep_report(
    folder: SweepFolder, plan: SweepPlan, failures: Mapping[tuple[str, int], str] | None = None
) -> SweepResult:
    """Writes the page of a sweep, finished or not, and returns what it shows.

    Raises:
      UserError: a file of a run cannot be read.
    """
    result = read_sweep(folder, plan, failures)
    write_atomically(folder.report, render(result))
    return result


def render_sweep(path: str | os.PathLike[str]) -> str | None:
    """The page of a sweep's folder; None if the folder holds no sweep.

    Raises:
      UserError: a file in it cannot be read.
    """
    folder = SweepFolder(to_path(path))
    return render(read_sweep(folder, folder.read_plan())) if folder.plan_file.is_file() else None


def render(result: SweepResult) -> str:
    """The page as HTML; like a run's report, it loads nothing."""
    arms = [
        {
            "arm": arm,
            "status": status(arm),
            "settings": [(words.plain(key), words.plain(_as_text(value))) for key, value in arm.settings.items()],
            "reports": [(seed, "/".join(map(quote, path.split("/")))) for seed, path in arm.reports.items()],
            "failures": [(seed, words.plain(message, 400)) for seed, message in arm.failures.items()],
        }
        for arm in result.arms
    ]
    return template("sweep.html").render(
        title=words.plain(result.name),
        result=result,
        arms=arms,
        findings=findings(result),
        charts=[chart for chart in (_curves(result.arms), _differences(result), _costs(result.arms)) if chart],
    )


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _numbered(index: int, arm: ArmResult) -> str:
    """The name as in the table."""
    return f"{index + 1} {arm.name}"


def _curves(arms: Sequence[ArmResult]) -> Markup | None:
    lines = [
        Line(_numbered(color, arm), [Point(x, each.mean, each.interval) for x, each in enumerate(arm.curve)], color)
        for color, arm in enumerate(arms)
        if arm.curve
    ]
    if not lines:
        return None
    scope = "questions and seeds" if len(arms[0].seeds) > 1 else "questions"
    note = f"Error bars: 95% intervals of each rate over {scope}. To compare arms, see their differences."
    return line_chart("Pass@1 on held-out questions", lines, unit=PERCENT, x_name=ROUND_AXIS, note=note)


def _differences(result: SweepResult) -> Markup | None:
    rows = [
        (_numbered(color, arm), Point(color, arm.difference.mean, arm.difference.interval))
        for color, arm in enumerate(result.arms)
        if arm.difference is not None
    ]
    if not rows:
        return None
    title = "Pass@1 after the last round, difference to the first arm"
    return interval_rows(title, rows, unit=POINTS, x_name="percentage points", note=intervals_note(result))


def _costs(arms: Sequence[ArmResult]) -> Markup | None:
    shown = [arm for arm in arms if any(arm.runs.values())]
    if not shown:
        return None
    size, name = time_scale(max(arm.total("seconds") + arm.total("seconds_saved") for arm in shown))
    layers = [
        Layer(label, [arm.total(figure) / size for arm in shown], color)
        for label, figure, color in (("computed", "seconds", 0), ("taken over from other arms", "seconds_saved", 5))
    ]
    unit = Unit(words.number, lambda value: words.duration(value * size))
    labels = [str(arms.index(arm) + 1) for arm in shown]
    return stacked_bars(
        f"Time of each arm, in {name}", labels, layers, unit=unit, x_name="arm, as numbered in the table"
    )
