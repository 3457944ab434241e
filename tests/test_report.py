"""The report of runs that are finished, unfinished or damaged; text written by a model stays text."""

import dataclasses
import html.parser
import math
import re
import statistics
import subprocess
import sys
import unittest.mock
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tpt_jax.commands.main import main
from tpt_jax.config import TrackersConfig
from tpt_jax.config_parsing import load_config
from tpt_jax.errors import UserError
from tpt_jax.evaluation import evaluate_traces
from tpt_jax.io.files import write_jsonl
from tpt_jax.io.paths import to_path
from tpt_jax.loop.metrics import MetricsLog
from tpt_jax.loop.monitors import WatchedAnswer, monitor, tally, to_metrics
from tpt_jax.loop.run_folder import RunFolder, Stage
from tpt_jax.prune.summary import count_labels
from tpt_jax.records import JudgedTrace, Question, Trace, Verdict
from tpt_jax.report import svg, words, write_report
from tpt_jax.report.headline import headline, paired_interval
from tpt_jax.report.read import STAGES, Run, read_runs
from tpt_jax.report.traces import QUESTIONS_PER_GROUP, read_held_out

CONFIG = load_config(Path(__file__).parent.parent / "configs" / "quickstart.yaml")
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
    """The parsed page; fails on elements that do not nest."""

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
    question: int, sample: int, *, correct: bool, completion: str = "2 + 2 = 4\n#### 4", **verdict: Any
) -> JudgedTrace:
    finish_reason = verdict.pop("finish_reason", "stop")
    trace = Trace(f"q/{question}", sample, completion, tuple(range(5 + question)), -1.0, finish_reason)
    return JudgedTrace(trace, Verdict(**{"extracted": "4", "strict": correct, "correct": correct, **verdict}))


def questions(text: str = "What is {}?") -> list[Question]:
    return [Question(f"q/{number}", text.replace("{}", str(number)), "4") for number in range(40)]


THINK = (
    judged(20, 0, correct=True),
    judged(21, 0, correct=False),
    judged(22, 0, correct=True, strict=False),
    judged(23, 0, correct=False, finish_reason="length", extracted=None, reason="no answer"),
    *(judged(number, 0, correct=False, completion=text) for number, text in enumerate(HOSTILE, start=24)),
    judged(31, 0, correct=False, completion="long " * 5_000),
)


def new_run(path: Path, name: str = "small run") -> RunFolder:
    folder = RunFolder(to_path(path))
    folder.begin(dataclasses.replace(CONFIG, name=name, num_rounds=2))
    return folder


def add_round(
    folder: RunFolder,
    index: int,
    num_correct: int,
    *,
    stages: Sequence[Stage] = STAGES,
    asked: Sequence[Question] = (),
    think: Iterable[JudgedTrace] = THINK,
    evaluation: Iterable[JudgedTrace] = (),
) -> None:
    """A round as the loop writes it, finished unless a stage is missing.

    By default, 20 held-out questions have two samples each, both correct for the first num_correct questions.
    """
    samples = [judged(number, sample, correct=number < num_correct) for number in range(20) for sample in range(2)]
    evaluation, think = [*(evaluation or samples)], [*think]
    facts: dict[Stage, dict[str, Any]] = {stage: {"seconds": 2.5} for stage in stages}
    folder.write_questions(index, asked or questions())
    if index > 0:
        folder.trace_writer(index, "think", 0).write(think)
        facts["think"] = {"seconds": 20.0, "tokens": 900}
    if index > 0 and "prune" in stages:
        folder.write_training(index, think[:1])
        facts["prune"] |= {
            "num_traces": 11,
            "num_correct": 2,
            "num_strict": 1,
            "num_kept": 1,
            "mean_think_tokens": 30.0,
            "train_pass_at_1": 0.2,
            "train_is_estimate": True,
            "difficulty": {"1": 1, "3-4": 2},
        }
    folder.write_stages(index, facts)
    if "evaluate" in stages:
        base = tally(map(WatchedAnswer.of, folder.traces(0, "evaluate"))) if index else {}
        folder.trace_writer(index, "evaluate", 0).write(evaluation)
        metrics = {
            "round": index,
            **dataclasses.asdict(evaluate_traces(evaluation, k=evaluation[-1].trace.sample + 1)),
            **to_metrics(monitor([*map(WatchedAnswer.of, evaluation)], base)),
            **(facts["prune"] if index else {"num_traces": 0}),
            "num_dropped": {"wrong": 9} if index else {},
            "verdicts": {**({"think": count_labels(think)} if index else {}), "evaluate": count_labels(evaluation)},
            "seconds": {stage: facts[stage]["seconds"] for stage in facts},
            "tokens": {stage: facts[stage]["tokens"] for stage in facts if "tokens" in facts[stage]},
            "compilations": 5,
        }
        folder.write_metrics(index, metrics)


def make_run(path: Path, *, name: str = "small run", num_correct: Iterable[int] = (8, 12, 16)) -> RunFolder:
    folder = new_run(path, name)
    for index, count in enumerate(num_correct):
        add_round(folder, index, count)
    steps = ({"round": index, "phase": "train", "loss": 1 / (step + 1)} for index in (1, 2) for step in range(300))
    write_jsonl(folder.metrics_log, steps)
    return folder


def report(*folders: RunFolder) -> Page:
    return Page(Path(write_report([folder.path for folder in folders])))


def read_run(folder: RunFolder) -> Run:
    return read_runs([folder])[0]


def change_metrics(folder: RunFolder, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    for index in folder.round_indices():
        folder.write_metrics(index, change(folder.metrics(index) or {}))


def test_the_page_shows_the_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    page = report(folder)
    assert page.tags.count("figure") == 10
    assert "Signs of collapse, against the base model" in page.text
    assert "first samples only" in page.text
    assert "Difficulty: how many samples" in page.text
    assert "40.0%" in page.text
    assert "80.0%" in page.text
    assert "+40.0 points" in page.text
    assert "The model improved" in page.text
    assert "8 of 20 went from wrong to correct" in page.text
    assert "2 of 2 rounds finished" in page.text
    assert "num_rounds: 2" in page.text
    kinds = ("correct, kept", "wrong, not kept", "correct, but not in the requested format", "truncated")
    for kind in kinds:
        assert f"Training questions: {kind}" in page.text
    assert page.source == report(folder).source  # the same traces are drawn each time


def test_verdicts_are_counted_by_round_and_reason(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run")
    evaluation = [judged(number, 0, correct=False, reason="time limit") for number in range(7)]
    add_round(folder, 0, 0, evaluation=evaluation)
    page = report(folder)
    assert "Verdicts on held-out traces" in page.text
    assert "Verdicts on traces sampled for training" not in page.text
    both_formats = [judged(7, 0, correct=True), judged(8, 0, correct=True, strict=False)]
    add_round(folder, 1, 0, evaluation=[*both_formats, *evaluation[:5]])
    page = report(folder)
    for row in ("correct, in the requested format01", "correct, in another format01", "time limit75"):
        assert row in page.text
    assert "Verdicts on traces sampled for training" in page.text


def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run"))
    assert "default-src 'none'" in page.source
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page.source)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "style", "action", "data")
        assert name != "href" or value.startswith("#")


def test_untrusted_text_is_escaped(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run")
    asked = [Question(f"q/{number}", HOSTILE[number % 6], HOSTILE[0]) for number in range(40)]
    hostile = [
        judged(number, 0, correct=False, completion=text, extracted=text, reason=text)
        for number, text in enumerate(HOSTILE, start=20)
    ]
    add_round(folder, 0, 8, asked=asked)
    add_round(folder, 1, 16, asked=asked, think=hostile)
    page = report(folder)
    for text in HOSTILE[:5]:
        assert text in "".join(page.texts)  # shown as text by the parser
        assert text not in page.source or not set(text) & set("<\"'")  # because it is escaped in the file
        assert not any(text in value for _, value in page.attributes)
    assert not {"script", "img"} & set(page.tags)
    assert page.tags.count("style") == 1
    assert "1337" not in page.source
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2028]", page.source)
    for shown in ("U+202E", "U+0000", "U+001B", "U+D800", "U+2028"):
        assert shown in page.text


def test_names_of_runs_are_escaped(tmp_path: Path) -> None:
    page = report(*(make_run(tmp_path / name, name=f"'{HOSTILE[1]}{name}'") for name in "ab"))
    assert "img" not in page.tags
    assert f"{HOSTILE[1]}a" in page.text


def test_visible_text() -> None:
    assert words.visible("a < b\n\tc\u200d") == 'a &lt; b\n\tc<span class="odd">U+200D</span>'
    long = str(words.visible("x" * 9_000 + "end", limit=600))
    assert long.endswith("end")
    assert "8,403 characters omitted" in long
    assert long.count("x") == 600 - 3


def test_long_traces_are_shortened(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run"))
    assert "19,000 characters omitted" in page.text
    num_shown = page.text.count("19,000 characters omitted")
    assert page.source.count("long ") == num_shown * words.MAX_CHARACTERS / 5


@pytest.mark.parametrize(
    "missing", ["intervals", "seconds", "num_traces", "k", "pass_at_1", "mean_tokens", "num_dropped", "verdicts"]
)
def test_missing_metrics_leave_a_dash(tmp_path: Path, missing: str) -> None:
    folder = make_run(tmp_path / "run")
    change_metrics(folder, lambda metrics: {name: value for name, value in metrics.items() if name != missing})
    assert words.DASH in report(folder).text


def test_a_run_that_has_just_started(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run")
    assert "No round has finished yet." in report(folder).text
    add_round(folder, 0, 3, stages=("train",))
    assert "No round has finished yet." in report(folder).text
    add_round(folder, 0, 3)
    page = report(folder)
    assert "No other round to compare with yet." in page.text
    assert "Held-out questions: correct" in page.text
    change_metrics(folder, lambda metrics: {})
    assert "No round has finished yet." in report(folder).text


def test_without_questions_their_ids_are_shown(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run")
    add_round(folder, 0, 3)
    folder.write_questions(0, [])
    assert "What is" not in report(folder).text
    assert "q/2" in report(folder).text


def test_a_broken_config_is_shown_anyway(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    folder.config_file.write_text("- [not, a mapping")
    assert "not, a mapping" in report(folder).text


def test_a_run_in_progress(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_correct=(8, 12))
    add_round(folder, 2, 16, stages=("think",))
    with folder.metrics_log.open("a") as log:
        log.write('{"round": 2, "phase": "train", "loss": NaN}\n{"round": 2, "pha')
    page = report(folder)
    assert "1 of 2 rounds finished" in page.text
    assert "after round 1" in page.text
    assert "The loss was not finite in 1 of 601 steps" in page.text
    assert "Training questions: wrong " in page.text  # of round 2, which is not pruned yet


def test_the_folder_of_an_evaluation(tmp_path: Path) -> None:
    folder = RunFolder(to_path(tmp_path / "run"), "eval")
    folder.begin(CONFIG)
    add_round(folder, 0, 8, stages=("evaluate",))
    page = report(folder)
    assert "40.0%" in page.text
    assert "rounds finished" not in page.text


def test_losses_come_from_the_log_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpt_jax.loop.metrics.EventFiles", unittest.mock.MagicMock())  # slow to import
    folder = new_run(tmp_path / "run")
    log = MetricsLog(folder.metrics_log, name="n", trackers=TrackersConfig(), is_kept=lambda line: True)
    for index, loss in ((1, 0.5), (1, 0.25), (2, 0.125)):
        log.log(index, "train", 0, {"loss": loss})
    log.log(2, "round", 2, {"pass_at_1": 0.5})
    log.close()
    assert read_run(folder).curves.points["loss"] == {1: [0.5, 0.25], 2: [0.125]}


def test_a_long_curve_is_thinned_while_it_is_read(tmp_path: Path) -> None:
    """Two rounds of many steps: each point is the mean of 8 steps of one round, the last of a round of what is left."""
    folder = new_run(tmp_path / "run")
    losses = {
        index: [float((step * 7919 + index) % 101) for step in range(count)] for index, count in ((1, 501), (2, 600))
    }
    lines = [
        {"round": index, "phase": "train", "step": step, "loss": math.nan if step in (8, 16) else loss}
        for index, of_round in losses.items()
        for step, loss in enumerate(of_round)
    ]
    write_jsonl(folder.metrics_log, lines)
    curve = read_run(folder).curves
    assert (curve.stride, curve.num_steps, curve.num_not_finite) == (8, {1: 501, 2: 600}, 4)
    for index, of_round in losses.items():
        steps = [step for step in range(len(of_round)) if step not in (8, 16)]
        groups = [
            [of_round[step] for step in steps if step // 8 == point] for point in range(math.ceil(len(of_round) / 8))
        ]
        assert curve.points["loss"][index] == pytest.approx([statistics.fmean(group) for group in groups])


def test_questions_of_both_splits_may_share_an_id(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run")
    asked = [Question("q/0", "to train on?", "4"), Question("q/0", "held out?", "5")]
    both = [judged(0, 0, correct=True)]
    add_round(folder, 0, 0, asked=asked[1:], evaluation=both)
    add_round(folder, 1, 0, asked=asked, think=both, evaluation=both)
    assert read_held_out(folder, 1).questions == {"q/0": asked[1]}
    (group,) = read_run(folder).groups
    assert [shown.question for shown in group.questions] == [asked[0]]


def test_unknown_verdicts_are_neither_correct_nor_wrong(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run")
    unknown = JudgedTrace(Trace("q/2", 0, "4"), Verdict.unreadable())
    evaluation = [judged(0, 0, correct=True), judged(1, 0, correct=False), unknown]
    add_round(folder, 0, 0, evaluation=evaluation)
    add_round(folder, 1, 0, evaluation=evaluation, think=[unknown])
    held_out = read_held_out(folder, 0)
    rates = [tally.num_correct / tally.num_samples for tally in held_out.tallies.values()]
    assert sum(rates) / len(rates) == (folder.metrics(0) or {})["pass_at_1"] == 0.5
    assert len(held_out.lengths) == 2
    assert [group.title for group in read_run(folder).groups] == ["Training questions: verdict unknown"]
    assert "? unknown" in report(folder).text


def test_two_runs_share_charts(tmp_path: Path) -> None:
    page = report(
        make_run(tmp_path / "pruned", name="pruned"), make_run(tmp_path / "all", name="all", num_correct=(8, 9))
    )
    chart = page.source[page.source.index("<figure>") : page.source.index("</figure>")]
    assert chart.count("<polyline") == 2
    assert "pruned" in chart
    assert "all" in chart
    # Without an interval: round 1 is not the last round of the first run.
    assert "After round 1, Pass@1 of pruned is 15.0 points above that of all." in page.text
    assert page.tags.count("section") == 2


def test_runs_that_share_a_name_are_labelled_by_folder(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name) for name in ("seed_0", "seed_1")]
    assert [run.label for run in read_runs(folders)] == ["seed_0", "seed_1"]
    assert "After round 2, Pass@1 of seed_0 is 0.0 points above that of seed_1" in report(*folders).text


def test_paired_interval(tmp_path: Path) -> None:
    """8 of 20 questions became correct: the difference is 1 eight times and 0 twelve times."""
    folder = make_run(tmp_path / "run", num_correct=(8, 16))
    before, after = (read_held_out(folder, index) for index in (0, 1))
    low, high = paired_interval(before, after) or (0.0, 0.0)
    margin = 1.959964 * (20 * 0.4 * 0.6 / 19) ** 0.5 / 20**0.5
    assert (low, high) == pytest.approx((0.4 - margin, 0.4 + margin))
    add_round(folder, 2, 8, asked=questions("Other question {}?"))
    assert paired_interval(before, read_held_out(folder, 2)) is None


@pytest.mark.parametrize(
    ("last", "sentence"),
    [(8, "may be due to chance"), (9, "may be due to chance"), (18, "improved"), (0, "got worse")],
)
def test_the_headline_claims_no_more_than_the_interval_allows(tmp_path: Path, last: int, sentence: str) -> None:
    assert sentence in headline(read_run(make_run(tmp_path / "run", num_correct=(8, last)))).sentence


def test_without_traces_the_two_intervals_are_compared(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_correct=(8, 11))
    for index in folder.round_indices():
        for path in (*folder.trace_files(index, "think"), *folder.trace_files(index, "evaluate")):
            path.unlink()
    sentence = "The change may be due to chance: the two 95% intervals overlap."
    assert headline(read_run(folder)).sentence == sentence
    report(folder)


def test_a_few_traces_of_each_kind_are_drawn_from_all_rounds(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run")
    add_round(folder, 0, 8)
    for index in (1, 2):
        add_round(folder, index, 9, think=[judged(number % 20, number, correct=False) for number in range(200)])
    group = next(group for group in read_run(folder).groups if group.title == "Training questions: wrong, not kept")
    assert [shown.traces[0].round for shown in group.questions] == [1] * 3 + [2] * 3
    assert len({shown.traces[0].judged.trace.sample for shown in group.questions}) > QUESTIONS_PER_GROUP / 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), "is not a run folder"),
        (lambda run: run.rename(run.with_name("elsewhere")), "no such folder"),
        (lambda run: (run / "rounds/001/metrics.json").write_text("{"), "rounds/001/metrics.json: not JSON"),
        (lambda run: (run / "rounds/001/metrics.json").write_text("[]"), "not a JSON object"),
        (
            lambda run: (run / "rounds/000/traces/evaluate-000-00000.jsonl").write_text('{"id": 1}'),
            "record 1 is not a judged trace",
        ),
        (lambda run: (run / "rounds/000/questions.jsonl").write_text('{"id": 1}'), "record 1 is not a question"),
        (lambda run: (run / "report.html").mkdir(), "is a folder"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], message: str
) -> None:
    run = tmp_path / "run"
    make_run(run)
    damage(run)
    with pytest.raises(UserError, match=re.escape(message)):
        write_report([run], run / "report.html")
    assert main(["report", str(run)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    make_run(run)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert main(["report", str(run), "--output", str(tmp_path / "new" / "other.html")]) == 0
    assert (tmp_path / "new" / "other.html").read_text() == (run / "report.html").read_text()


def test_the_command_line_imports_nothing_slow() -> None:
    modules = "tpt_jax.report, tpt_jax.commands.report"
    program = f"import sys, {modules}; sys.exit(bool({{'jinja2', 'yaml', 'jax'}} & set(sys.modules)))"
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


def test_points_have_a_sign_but_zero_is_never_negative() -> None:
    assert [words.points(value) for value in (0.156, -0.0004, -0.02)] == ["+15.6", "+0.0", "−2.0"]


def test_charts_stay_within_their_bounds(tmp_path: Path) -> None:
    """Even with many rounds and a long name."""
    page = report(make_run(tmp_path / "run", name="a" * 60, num_correct=[*range(20), *range(20)]))
    coordinates = [float(value) for name, value in page.attributes if name in ("x", "x1", "x2", "y", "y1", "y2")]
    assert min(coordinates) >= 0
    assert max(coordinates) <= svg.WIDTH
