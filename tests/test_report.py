"""The report: made-up runs, whole, half-finished and broken; what a model wrote stays text."""

import html.parser
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tpt_jax.commands.main import main
from tpt_jax.errors import UserError
from tpt_jax.io.files import write_jsonl
from tpt_jax.records import JudgedTrace, Trace, Verdict
from tpt_jax.report import svg, words, write_report
from tpt_jax.report.headline import headline, paired_interval
from tpt_jax.report.read import read_runs
from tpt_jax.report.traces import ENTRIES_ON_A_SHELF, read_held_out

HOSTILE = (
    "</pre></script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "{{ 7 * 191 }}{% raw %}",
    "--><style>body{display:none}</style>",
    '"\' onmouseover=alert(1) x="',
    "\u202edesrever\u202c \x00 \x1b[31m \ud800 \u2028",
)
VOID = {"meta", "br"}


class Page(html.parser.HTMLParser):
    """What is on a page; fails where elements do not nest."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def judged(
    question: int, sample: int, *, right: bool, completion: str = "2 + 2 = 4\n#### 4", **verdict: Any
) -> JudgedTrace:
    finish_reason = verdict.pop("finish_reason", "stop")
    trace = Trace(f"q/{question}", sample, completion, tuple(range(5 + question)), -1.0, finish_reason)
    return JudgedTrace(trace, Verdict(**{"extracted": "4", "strict": right, "correct": right, **verdict}))


def write_traces(path: Path, traces: Iterable[JudgedTrace]) -> None:
    write_jsonl(path, (trace.to_json() for trace in traces))


def make_round(run: Path, index: int, *, num_right: int, metrics: Mapping[str, Any] | None = None) -> Path:
    """A round with 20 held-out questions of two samples, the first num_right of them right, and 8 to train on."""
    folder = run / "rounds" / f"{index:03}"
    held_out = [judged(number, sample, right=number < num_right) for number in range(20) for sample in range(2)]
    write_traces(folder / "traces/evaluate-00000.jsonl", held_out)
    questions = [{"id": f"q/{number}", "question": f"What is {number}?", "answer": "4"} for number in range(40)]
    write_jsonl(folder / "questions.jsonl", questions)
    if index > 0:
        thought = [
            judged(20, 0, right=True),
            judged(21, 0, right=False),
            judged(22, 0, right=True, strict=False),
            judged(23, 0, right=False, finish_reason="length", extracted=None, reason="no answer"),
            *(judged(number, 0, right=False, completion=text) for number, text in enumerate(HOSTILE, start=24)),
            judged(31, 0, right=False, completion="long " * 5_000),
        ]
        write_traces(folder / "traces/think-00000.jsonl", thought)
        write_traces(folder / "training.jsonl", thought[:1])
    rate = num_right / 20
    names = ("pass_at_1", "pass_at_k", "strict_pass_at_1", "strict_pass_at_k", "maj_at_k")
    found: dict[str, Any] = {"round": index, **dict.fromkeys(names, rate), "k": 2, "num_questions": 20}
    found |= {"num_samples": 2, "intervals": {name: [rate - 0.1, rate + 0.1] for name in names}, "mean_tokens": 14.5}
    verdicts = {
        "right, in the format asked for": num_right,
        "right, in another format": 3,
        "time limit": 40 - num_right,
    }
    found |= {
        "verdicts": {"evaluate": verdicts},
        "num_truncated": 1,
        "seconds": {"evaluate": 20.0, "train": 2.5},
        "compilations": 5,
    }
    if index > 0:
        found |= {"num_traces": 11, "num_correct": 2, "num_strict": 1, "num_kept": 1, "num_dropped": {"wrong": 9}}
        found |= {"mean_think_tokens": 30.0, "tokens": {"think": 900}}
    (folder / "metrics.json").write_text(json.dumps(found if metrics is None else metrics))
    return folder


def make_run(path: Path, *, name: str = "made up", num_right: Iterable[int] = (8, 12, 16)) -> Path:
    for index, right in enumerate(num_right):
        make_round(path, index, num_right=right)
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text(f"name: {name}\nnum_rounds: 2\ntask: {{name: gsm8k}}\nmodel: {{path: tiny}}\n")
    steps = [
        {"round": index, "phase": "train", "step": step, "loss": 1 / (step + 1)}
        for index in (1, 2)
        for step in range(300)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return path


def report(*runs: Path) -> Page:
    write_report(runs, runs[0] / "report.html")
    return Page(runs[0] / "report.html")


def test_the_page_shows_the_run(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run"))
    assert page.tags.count("figure") == 7
    assert "40.0%" in page.text
    assert "80.0%" in page.text
    assert "+40.0 points" in page.text
    assert "The model has become better" in page.text
    assert "8 of 20 went from wrong to right" in page.text
    assert "2 of 2 rounds done" in page.text
    assert "num_rounds: 2" in page.text
    for kind in ("right, kept", "wrong, not kept", "right, but not in the format asked for", "cut at the length limit"):
        assert f"Training questions: {kind}" in page.text
    assert page.source == report(tmp_path / "run").source  # the same traces are drawn each time


def test_verdicts_by_round_and_reason(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run"))
    assert "What the checker said of the held-out traces" in page.text
    assert "time limit322824" in page.text  # a row of the table
    assert "What the checker said of the traces sampled for training" not in page.text


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run"))
    assert "default-src 'none'" in dict(page.attributes)["content"] + page.source
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page.source)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "style", "action", "data")
        assert name != "href" or value.startswith("#")


def test_what_a_stranger_wrote_stays_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for folder in (run / "rounds").iterdir():
        questions = [
            {"id": f"q/{number}", "question": HOSTILE[number % 6], "answer": HOSTILE[0]} for number in range(40)
        ]
        write_jsonl(folder / "questions.jsonl", questions)
    hostile = [
        judged(number, 0, right=False, completion=text, extracted=text, reason=text)
        for number, text in enumerate(HOSTILE, start=20)
    ]
    write_traces(run / "rounds/002/traces/think-00000.jsonl", hostile)
    page = report(run)
    for text in HOSTILE[:5]:
        assert text in "".join(page.texts)  # parsed: as text
        assert text not in page.source or not set(text) & set("<\"'")  # as it is in the file: escaped
        assert not any(text in value for _, value in page.attributes)
    assert not {"script", "img"} & set(page.tags)
    assert page.tags.count("style") == 1
    assert "1337" not in page.source
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2028]", page.source)
    for shown in ("U+202E", "U+0000", "U+001B", "U+D800", "U+2028"):
        assert shown in page.text


def test_hostile_names_are_text_too(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name=f"'{HOSTILE[1]}{name}'") for name in "ab"]
    page = report(*runs)
    assert "img" not in page.tags
    assert f"{HOSTILE[1]}a" in page.text


def test_visible_text() -> None:
    assert words.visible("a < b\n\tc\u200d") == 'a &lt; b\n\tc<span class="odd">U+200D</span>'
    long = str(words.visible("x" * 9_000 + "end", limit=600))
    assert long.endswith("end")
    assert "8,403 characters left out" in long
    assert long.count("x") == 600 - 3


def test_very_long_traces_are_cut(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run"))
    assert "19,000 characters left out" in page.text
    assert page.source.count("long ") < 2 * words.LONGEST_TEXT / 5


@pytest.mark.parametrize(
    "missing", ["intervals", "seconds", "num_traces", "k", "pass_at_1", "mean_tokens", "num_dropped"]
)
def test_missing_keys_leave_a_dash(tmp_path: Path, missing: str) -> None:
    run = make_run(tmp_path / "run")
    for path in run.glob("rounds/*/metrics.json"):
        metrics = json.loads(path.read_text())
        metrics.pop(missing, None)
        path.write_text(json.dumps(metrics))
    assert words.DASH in report(run).text


def test_almost_nothing_is_there(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_right=())
    (run / "metrics.jsonl").unlink()
    assert "No round is finished yet." in report(run).text
    make_round(run, 0, num_right=3, metrics={})
    assert "No round is finished yet." in report(run).text
    folder = make_round(run, 0, num_right=3)
    page = report(run)
    assert "nothing to compare this with yet" in page.text
    assert "Held-out questions: right" in page.text
    (folder / "questions.jsonl").unlink()
    assert "q/2" in report(run).text
    (run / "config.yaml").write_text("- [not, a mapping")
    assert "not, a mapping" in report(run).text


def test_a_run_that_is_still_going(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "rounds/002/metrics.json").unlink()
    (run / "rounds/002/training.jsonl").unlink()
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"round": 2, "phase": "train", "loss": NaN}\n{"round": 2, "pha')
    page = report(run)
    assert "1 of 2 rounds done" in page.text
    assert "after round 1" in page.text
    assert "In 1 of 601 steps the loss was not a finite number" in page.text
    assert "Training questions: wrong " in page.text  # of round 2, of which pruning has said nothing yet


def test_two_runs_share_charts(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "pruned", name="pruned"), make_run(tmp_path / "all", name="all", num_right=(8, 9))]
    page = report(*runs)
    chart = page.source[page.source.index("<figure>") : page.source.index("</figure>")]
    assert chart.count("<polyline") == 2
    assert "pruned" in chart
    assert "all" in chart
    assert "After round 1, pruned is 15.0 points above all in Pass@1 (95% interval" not in page.text  # another round
    assert "After round 1, pruned is 15.0 points above all in Pass@1." in page.text
    assert page.tags.count("section") == 2


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("seed_0", "seed_1")]
    assert [run.label for run in read_runs(runs)] == ["seed_0", "seed_1"]
    assert "After round 2, seed_0 is 0.0 points above seed_1" in report(*runs).text


def test_paired_interval(tmp_path: Path) -> None:
    """Of 20 questions 8 became right: the differences are 1 eight times, 0 twelve times."""
    before, after = (read_held_out(make_round(tmp_path, index, num_right=8 * index + 8)) for index in (0, 1))
    low, high = paired_interval(before, after) or (0.0, 0.0)
    margin = 1.959964 * (20 * 0.4 * 0.6 / 19) ** 0.5 / 20**0.5
    assert (low, high) == pytest.approx((0.4 - margin, 0.4 + margin))
    other = make_round(tmp_path, 2, num_right=8)
    write_jsonl(other / "questions.jsonl", [{"id": f"q/{n}", "question": "other", "answer": "4"} for n in range(20)])
    assert paired_interval(before, read_held_out(other)) is None


@pytest.mark.parametrize(
    ("last", "sentence"), [(8, "This may be chance"), (9, "This may be chance"), (18, "better"), (0, "worse")]
)
def test_the_headline_is_honest(tmp_path: Path, last: int, sentence: str) -> None:
    (run,) = read_runs([make_run(tmp_path / "run", num_right=(8, last))])
    assert sentence in headline(run).sentence


def test_without_traces_the_intervals_are_compared(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", num_right=(8, 11))
    for part in path.glob("rounds/*/traces/*"):
        part.unlink()
    (run,) = read_runs([path])
    assert headline(run).sentence == "This may be chance: the two intervals overlap."
    report(path)


def test_few_traces_of_each_kind_from_all_rounds(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", num_right=(8, 9, 10))
    for index in (1, 2):
        many = (judged(number % 20, number, right=False) for number in range(200))
        write_traces(path / f"rounds/00{index}/traces/think-00000.jsonl", many)
    (run,) = read_runs([path])
    shelf = next(shelf for shelf in run.shelves if shelf.title == "Training questions: wrong, not kept")
    assert [entry.exhibits[0].round for entry in shelf.entries] == [1] * 3 + [2] * 3
    assert len({entry.exhibits[0].judged.trace.sample for entry in shelf.entries}) > ENTRIES_ON_A_SHELF / 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), "is not a run's folder"),
        (lambda run: run.rename(run.with_name("elsewhere")), "no such folder"),
        (lambda run: (run / "rounds/001/metrics.json").write_text("{"), "rounds/001/metrics.json: not JSON"),
        (lambda run: (run / "rounds/001/metrics.json").write_text("[]"), "not a JSON object"),
        (
            lambda run: (run / "rounds/000/traces/evaluate-00000.jsonl").write_text('{"id": 1}'),
            "trace 1 is not a judged",
        ),
        (lambda run: (run / "report.html").mkdir(), "is a folder"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], message: str
) -> None:
    run = make_run(tmp_path / "run")
    spoil(run)
    with pytest.raises(UserError, match=re.escape(message)):
        write_report([run], run / "report.html")
    assert main(["report", str(run)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert main(["report", str(run), "--output", str(tmp_path / "new" / "other.html")]) == 0
    assert (tmp_path / "new" / "other.html").read_text() == (run / "report.html").read_text()


def test_the_package_is_light() -> None:
    """The command line and the checker's processes import it at every start."""
    program = "import sys, tpt_jax.report.command; sys.exit(bool({'jinja2', 'yaml', 'jax'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 0.0), (0.5, 0.5), (0.452, 0.776), (0.0, 9_600.0), (3e-5, 4e-5), (-2, 7)]
)
def test_ticks_cover_the_range(low: float, high: float) -> None:
    ticks = svg.round_ticks(low, high)
    assert ticks[0] <= low + 1e-9
    assert high <= ticks[-1] + 1e-9
    assert 2 <= len(ticks) <= 7


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.25, "0.2 s"), (42, "42 s"), (109.4, "1 min 49 s"), (7_530, "2 h 05 min")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


def test_points_have_a_sign_and_no_negative_zero() -> None:
    assert [words.points(value) for value in (0.156, -0.0004, -0.02)] == ["+15.6", "+0.0", "−2.0"]


def test_charts_keep_within_their_picture(tmp_path: Path) -> None:
    """Many rounds and long names too."""
    page = report(make_run(tmp_path / "run", name="a" * 60, num_right=[*range(20), *range(20)]))
    viewed = [float(value) for name, value in page.attributes if name in ("x", "x1", "x2", "y", "y1", "y2")]
    assert min(viewed) >= 0
    assert max(viewed) <= svg.WIDTH
