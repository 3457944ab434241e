"""The report while a run goes on, and in a notebook."""

import dataclasses
import html.parser
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.display import HTML
from test_report import CONFIG, HOSTILE, Page, add_round, make_run, new_run

from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.report import write_report
from tpt_jax.report.live import SECONDS_BETWEEN_PAGES, LivePage
from tpt_jax.report.show import Inline, Report

REFRESH = ("http-equiv", "refresh")


class Clock:
    """A clock that a test sets; pages take no time."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def log_line(folder: RunFolder, **line: Any) -> None:
    with folder.metrics_log.open("a") as log:
        log.write(json.dumps(line) + "\n")


def page_of(folder: RunFolder) -> Page:
    return Page(Path(folder.report))


def test_the_page_follows_the_run_and_refreshes_until_its_end(tmp_path: Path) -> None:
    folder, clock, shown = new_run(tmp_path / "run"), Clock(), []
    add_round(folder, 0, 8)
    live = LivePage(folder, shown.append, clock)
    live.write()
    assert REFRESH in page_of(folder).attributes
    assert "The run goes on." in page_of(folder).text
    log_line(
        folder, round=1, phase="think", step=3, traces=3, expected_traces=12, tokens_per_second=1500.0, slots_busy=0.5
    )
    live.update()
    assert len(shown) == 1  # too early
    clock.now += SECONDS_BETWEEN_PAGES
    live.update()
    assert "Round 1 thinks: 3 of 12 traces, 1,500 tokens/s, 50.0% of slots busy." in page_of(folder).text
    assert ("value", "0.25") in page_of(folder).attributes
    for step, loss in enumerate((2.0, 1.0, 0.5)):
        curves = {"loss": loss, "learning_rate": 1e-3 * loss, "grad_norm": 3 * loss, "tokens_per_second": 900.0}
        log_line(folder, round=1, phase="train", step=step, **curves)
    clock.now += SECONDS_BETWEEN_PAGES
    live.update()
    page = page_of(folder)
    assert "Round 1 trains: 3 steps, loss 0.5, 900 tokens/s." in page.text
    for curve in ("From 2 to 0.5.", "From 0.002 to 0.0005.", "From 6 to 1.5.", "From 900 to 900."):
        assert curve in page.text
    assert "progress" not in page.tags
    assert page.source == shown[-1]
    add_round(folder, 1, 12)
    live.write(is_last=True)
    page = page_of(folder)
    assert REFRESH not in page.attributes
    assert "Running." not in page.text
    assert len(shown) == 4


def test_pages_that_take_long_are_written_seldom(tmp_path: Path) -> None:
    folder, clock = make_run(tmp_path / "run"), Clock()

    def slow(page: str) -> None:
        clock.now += 3.0

    live = LivePage(folder, slow, clock)
    live.write()
    for wait, is_due in ((149.0, False), (1.0, True)):  # three seconds are 2% of 150
        clock.now += wait
        written = Path(folder.report).stat().st_mtime_ns
        live.update()
        assert (Path(folder.report).stat().st_mtime_ns > written) == is_due


def test_a_page_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, clock = make_run(tmp_path / "run"), Clock()
    live = LivePage(folder, clock=clock)
    live.write()
    Path(folder.report).unlink()
    Path(folder.report).mkdir()
    for _ in range(2):
        clock.now += 1000.0
        live.update()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("report: ")
    with pytest.raises(IsADirectoryError):
        live.write(is_last=True)


class Frame(html.parser.HTMLParser):
    """What a notebook gets."""

    def __init__(self, shown: Any):
        super().__init__()
        assert isinstance(shown, HTML)
        self.tags: list[str] = []
        self.frame: dict[str, str | None] = {}
        self.feed(str(shown.data))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.frame |= dict(attrs)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is displayed, as if in a notebook."""
    shown: list[Any] = []

    def display(data: Any, *, display_id: bool) -> Any:
        shown.append(data)
        return SimpleNamespace(update=shown.append)

    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr("IPython.display.display", display)
    return shown


def test_a_notebook_shows_the_page_in_a_sandbox(tmp_path: Path, notebook: list[Any]) -> None:
    folder = make_run(tmp_path / "run")
    folder.begin(dataclasses.replace(CONFIG, name=HOSTILE[0]))
    report = write_report(folder.path)
    report.show(height=300)
    frame = Frame(notebook[0])
    assert frame.tags == ["div", "iframe"]  # nothing of the page is outside the frame
    assert frame.frame["sandbox"] == ""
    base, policy = '<base href="about:srcdoc">', "Content-Security-Policy"  # the policy would forbid the base
    head, _, rest = (frame.frame["srcdoc"] or "").partition(f"\n{base}")
    assert head + rest == Path(report).read_text()
    assert policy in rest
    assert policy not in head
    assert "height: 300px" in (frame.frame["style"] or "")


def test_a_running_page_is_shown_in_one_place(notebook: list[Any]) -> None:
    inline = Inline()
    inline("<p>1</p>")
    inline("<p>2</p>")
    assert [Frame(shown).frame["srcdoc"] for shown in notebook] == ["<p>1</p>", "<p>2</p>"]


@pytest.mark.parametrize("shell", [None, SimpleNamespace()], ids=["Python", "IPython in a terminal"])
def test_elsewhere_the_path_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: Any
) -> None:
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    report = write_report([make_run(tmp_path / "run").path])
    report.show()
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'report.html'}\n"
    assert isinstance(report, Report)
    Inline()("<p>")
    assert capsys.readouterr().out == ""
