"""Configs, questions, traces and settings made to do harm: each ends in one line, and nothing outside is touched."""

import gzip
import os
import re
from pathlib import Path

import pytest
from processes import PROJECT, ROOT, CommandHere, refused, write_json
from test_report import Page, add_round, new_run
from test_tpu_scripts import SETTINGS, Cloud, error_line

from tpt_jax.config_parsing import read_tree
from tpt_jax.errors import MAX_MESSAGE, one_line
from tpt_jax.io import record_formats
from tpt_jax.loop.sweep_plan import make_plan
from tpt_jax.records import JudgedTrace, Question, Trace, Verdict
from tpt_jax.report import write_report

OWN = f"""
name: x
model: {{path: quickstart}}
task: {{name: file, train: {PROJECT}/train.jsonl, test: {PROJECT}/test.jsonl}}
"""
MARK = "harmed"  # a file of this name appears in the test's folder if something was run that must not be

Tpt = CommandHere


# YAML, in configs and in files of questions


def bomb(opening: str, closing: str, key: str = "") -> str:
    """Anchors, each of which stands for ten of the one before."""
    levels = [f"a0: &a0 {opening}{key.format(0)}1{closing}"]
    for level in range(1, 12):
        uses = ", ".join(f"{key.format(use)}*a{level - 1}" for use in range(10))
        levels.append(f"a{level}: &a{level} {opening}{uses}{closing}")
    return "\n".join(levels)


LIST_BOMB, DICT_BOMB = bomb("[", "]"), bomb("{", "}", "k{}: ")
MERGE_BOMB = "\n".join(
    ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12)]
)
CONFIGS: dict[str, tuple[str, str]] = {
    "a tag": (f"{OWN}seed: !!python/object/apply:os.mkdir [{MARK}]\n", "could not determine a constructor for the tag"),
    "a bomb of lists": (f"{LIST_BOMB}\n{OWN}think: *a11\n", "aliases stand for"),
    "a bomb of mappings": (f"{DICT_BOMB}\n{OWN}think: *a11\n", "aliases stand for"),
    "a bomb of merges": (f"{MERGE_BOMB}\n{OWN}think: *a11\n", "aliases stand for"),
    "an anchor in itself": (f"{OWN}think: &a {{b: *a}}\n", "an anchor contains an alias to itself"),
    "deep nesting": (f"{OWN}think: {'[' * 5000}{']' * 5000}\n", "nested too deeply"),
    "a number of 10,000 digits": (f"{OWN}seed: {'9' * 10000}\n", "a value cannot be read"),
    "a day that does not exist": (f"{OWN}seed: 2024-99-99\n", "a value cannot be read"),
    "a name that leads outside": (OWN.replace("name: x", "name: ../../x"), "cannot be a folder's name"),
    "a name that is a path": (OWN.replace("name: x", "name: /tmp/x"), "cannot be a folder's name"),
    "a name that is the folder": (OWN.replace("name: x", "name: ..", 1), "cannot be a folder's name"),
    "a name of 100 kB": (OWN.replace("name: x", "name: " + "x" * 10**5, 1), "cannot be a folder's name"),
    "a project with slashes": (f"{OWN}trackers: {{wandb: ../x}}\n", "without / "),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config(case: str, tmp_path: Path, tpt_here: Tpt, monkeypatch: pytest.MonkeyPatch) -> None:
    text, words = CONFIGS[case]
    (tmp_path / "config.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert words in refused(tpt_here, "run", "--config", "config.yaml")
    assert os.listdir() == ["config.yaml"]


def test_names_of_a_sweep(tmp_path: Path, tpt_here: Tpt, monkeypatch: pytest.MonkeyPatch) -> None:
    """An arm may be called anything: its folder's name is made from it. The sweep's own folder needs a plain name."""
    (tmp_path / "config.yaml").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    arms = [Path("../../x"), Path("/etc/passwd"), "a\x1b[31m", "\u202e$(touch x)", "..", "x" * 500]
    plan = make_plan(read_tree("config.yaml"), {}, arms={str(arm): {"num_rounds": n + 1} for n, arm in enumerate(arms)})
    for arm in plan.arms:
        assert re.fullmatch(r"[A-Za-z0-9=_][A-Za-z0-9=_.-]{0,79}", arm.folder)
        assert ".." not in arm.folder
        assert plan.run_config(arm, 0).name.isprintable()
    arguments = ("--config", "config.yaml", "--name", "../x", "--vary", "num_rounds=1,2")
    assert "cannot be a folder's name; give --sweep_dir" in refused(tpt_here, "sweep", *arguments)
    assert os.listdir() == ["config.yaml"]


# Files of questions and traces

QUESTION = {"question": "What is 1 + 0?", "answer": "1"}
IDS = {
    "a path": "../../x",
    "an absolute path": "/etc/passwd",
    "markup": "<script>alert(1)</script>",
    "a direction mark": "\u202eabc",
    "NUL": "a\0b",
    "two lines": "a\nb",
    "an escape sequence": "\x1b[31mred",
    "a lone surrogate": "\ud800",
    "10 MB": "x" * 10**7,
}
HARMLESS_IDS = ("a path", "an absolute path", "markup", "a direction mark")  # shown as text, and never used as a path


def sft(traces: Path, questions: Path, output: Path) -> tuple[object, ...]:
    """The command that trains on traces of these questions."""
    task = ("--task.train", questions, "--task.test", PROJECT / "test.jsonl")
    settings = ("--config", ROOT / "configs/own_task.yaml", "--model", "quickstart")
    return ("sft", *settings, *task, "--traces", traces, "--output", output)


@pytest.mark.parametrize("case", IDS)
def test_an_id(case: str, tmp_path: Path, tpt_here: Tpt) -> None:
    """In each command that reads ids: of questions and traces, of prompts, of a run's task, of traces to train on."""
    inner = tmp_path / "a/b"
    inner.mkdir(parents=True)
    name = IDS[case]
    questions = write_json(inner / "questions.jsonl", {"id": name, **QUESTION})
    plain = write_json(inner / "plain.jsonl", {"id": "0", **QUESTION})
    traces = write_json(inner / "traces.jsonl", {"id": name, "completion": "#### 1"})
    prompts = write_json(inner / "prompts.jsonl", {"id": name, "prompt": "What?"})
    run = inner / "run.yaml"
    run.write_text(OWN.replace(f"{PROJECT}/train.jsonl", str(questions)))
    judging = ("prune", "--task", "file", "--traces", traces, "--output", inner / "judged.jsonl", "--questions")
    showing = ("sample", "--show_prompts", "1", "--model", "quickstart", "--prompts", prompts)
    training = sft(traces, plain, inner / "out")
    refusals = [refused(tpt_here, *judging, plain), refused(tpt_here, *training)]
    if case in HARMLESS_IDS:
        for command in ((*judging, questions), showing, ("sample", "--show_prompts", "1", "--config", run)):
            done = tpt_here(*command)
            assert done.returncode == 0, done
            assert "\u202e" not in done.stdout + done.stderr
    else:
        refusals += [refused(tpt_here, *judging, questions), refused(tpt_here, *showing)]
        refusals += [refused(tpt_here, "run", "--config", run, "--run_dir", inner / "run")]
        assert [line for line in refusals if '"id"' not in line] == []
    assert {path.name for path in tmp_path.rglob("*")} <= {
        *("a", "b", "questions.jsonl", "plain.jsonl", "traces.jsonl", "prompts.jsonl", "run.yaml", "judged.jsonl")
    }


@pytest.mark.parametrize("field", ["question", "prompt", "completion"])
def test_a_text_that_is_no_text(field: str, tpt_here: Tpt, tmp_path: Path) -> None:
    file = write_json(tmp_path / "x.jsonl", {"id": "0", **QUESTION, "prompt": "What?", field: "a \ud800"})
    task = ("--task.train", file, "--task.test", PROJECT / "test.jsonl")
    commands = {
        "question": ("sample", "--show_prompts", "1", "--config", ROOT / "configs/own_task.yaml", *task),
        "prompt": ("sample", "--show_prompts", "1", "--model", "quickstart", "--prompts", file),
        "completion": sft(file, file, tmp_path / "out"),
    }
    refused(tpt_here, *commands[field])


FILES: dict[str, tuple[str, str]] = {
    "a tag": ("- !!python/object/apply:os.mkdir [harmed]\n", "could not determine a constructor for the tag"),
    "a bomb": ("- {question: q, answer: 1, data: &a0 [1]}\n" + LIST_BOMB.replace("\na", "\n- a"), "not YAML"),
    "an item in itself": ("- &a {question: q, answer: '1', more: *a}\n", "an anchor contains an alias to itself"),
    "brackets": ("[" * 10**6, "nested too deeply"),
}


@pytest.mark.parametrize("case", FILES)
def test_questions_in_yaml(case: str, tmp_path: Path, tpt_here: Tpt) -> None:
    text, words = FILES[case]
    (tmp_path / "questions.yaml").write_text(text)
    traces = write_json(tmp_path / "traces.jsonl", {"id": "0", "completion": "#### 1"})
    arguments = ("--task", "file", "--questions", tmp_path / "questions.yaml", "--traces", traces)
    assert words in refused(tpt_here, "prune", *arguments, "--output", tmp_path / "judged.jsonl")


@pytest.mark.parametrize("line", [b"0" * 2**20, b'{"question": "q", "answer": "1"}\n' * 2**15])
@pytest.mark.parametrize("role", ["questions", "traces"])
def test_a_gzip_bomb(role: str, line: bytes, tmp_path: Path, tpt_here: Tpt, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long line, or many short ones; a smaller limit, so that the test is quick."""
    monkeypatch.setattr(record_formats, "MAX_UNPACKED_BYTES", 2**20)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(line * 8))
    files = {
        "questions": write_json(tmp_path / "questions.jsonl", {"id": "0", **QUESTION}),
        "traces": write_json(tmp_path / "traces.jsonl", {"id": "0", "completion": "#### 1"}),
        role: tmp_path / "bomb.jsonl.gz",
    }
    arguments = ("--task", "file", "--questions", files["questions"], "--traces", files["traces"])
    line_shown = refused(tpt_here, "prune", *arguments, "--output", tmp_path / "judged.jsonl")
    assert "unpacks to more than 200 times its size" in line_shown


def test_one_line() -> None:
    assert one_line("a\nb\x1b[31m\u202e\ud800\t–é") == r"a b\x1b[31m\u202e\ud800\t–é".replace("\\t", "\t")
    assert len(one_line("\0" * 10**7)) == MAX_MESSAGE
    assert one_line(one_line("x" * 10**7)) == one_line("x" * 10**7)


# The report, and Cloud TPU's settings


def test_a_report_of_hostile_traces_is_small_and_shows_them_as_text(tmp_path: Path) -> None:
    hostile = [
        "<svg onload=alert(1)><script>alert(1)</script><style>*{display:none}</style>",
        "\u202e\u2066\u200f reversed \x00\x1b[31m\ud800",
        "</pre></details><a href='javascript:alert(1)'>x</a>" + "y" * 10**7,
    ]
    short = [text[:10_000] for text in hostile]
    asked = [Question(text, text, text) for text in short]
    verdicts = [Verdict(text, strict=False, correct=False, reason=text) for text in short]
    traces = [
        JudgedTrace(Trace(name, 0, text), verdict) for name, text, verdict in zip(short, hostile, verdicts, strict=True)
    ]
    folder = new_run(tmp_path / "run", name="<script>alert(1)</script>")
    add_round(folder, 0, 5, asked=asked, evaluation=traces[:2])
    add_round(folder, 1, 5, asked=asked, evaluation=traces[:2], think=traces)
    report = Path(write_report([folder.path]))
    assert report.stat().st_size < 500_000
    page = Page(report)
    assert not {"script", "a"} & {tag for tag in page.tags if tag != "a"}
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200f\0\x1b]", page.source)
    assert "<svg onload=alert(1)><script>alert(1)</script>" in page.text
    assert re.search(r"characters omitted", page.text)  # it says what was cut


@pytest.mark.parametrize(
    "value", ["$(touch harmed)", "`touch harmed`", ";touch harmed", "'; touch harmed; '", "x\x1b[2J"]
)
def test_settings_with_shell_characters(value: str, tmp_path: Path) -> None:
    """None is run, in any key: all but a repository are refused in one line, and that one is passed on as it stands."""
    cloud = Cloud(tmp_path / "cloud")
    for key in SETTINGS:
        cloud.settings(**{key: value})
        script = "gke" if key in ("CLUSTER", "IMAGE") else "create"
        line = error_line(cloud.run(script, *(["list"] if script == "gke" else []), status=2))
        assert f"{key} (" in line
        assert line.isprintable()
    assert cloud.calls() == []
    url = f"https://example.com/{value.replace(' ', '_')}"
    cloud.settings(REPOSITORY=url)
    cloud.make()
    cloud.set("slices", "1")
    cloud.run("install")
    assert url in cloud.vm("tpt/0/fetched").read_text()
    assert not list(tmp_path.rglob(MARK))
