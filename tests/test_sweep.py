"""Sweeps: runs that take stages over from each other end as they would alone, killed or not; mistakes come first."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from processes import EASY_TASK, CommandHere

import tpt_jax as tpt
from tpt_jax.config_parsing import load_config
from tpt_jax.io.paths import to_path
from tpt_jax.loop import rounds, setup, sharing
from tpt_jax.loop.run_folder import RunFolder, TraceWriter
from tpt_jax.runtime.mesh import make_mesh

MISTAKES = (
    (["--vary", "train.row=8,9"], "train.row: unknown key; did you mean rows?"),
    (["--vary", "train.rows=8,many"], "train.rows ('many'): input should be a valid integer"),
    (["--vary", "train.rows=8,[9"], "'8,[9'): a bracket or a quote is open at the end"),
    (["--vary", "train.rows=8,,9"], "a value is empty"),
    (["--vary", "train.rows"], "write KEY=V1,V2"),
    (["--vary", "train.rows=8", "--vary", "train.rows=9"], "train.rows: is varied twice"),
    (["--vary", "train={rows: 8}", "--vary", "train.rows=9"], "train.rows: is varied twice, the other time as train"),
    (["--vary", "train.rows=4,04"], "arms 'rows=4' and 'rows=04' are the same"),
    (["--vary", "seed=1,2"], "give --seeds N"),
    (["--vary", "name=a,b"], "name: each run is named after its arm"),
    (["--seeds", "0"], "0 must be at least 1"),
    (["--seeds", "2", "--seed", "4294967295"], "pass 2**32"),
    (["--arm", "a train.rows=8"], "write 'NAME: KEY=V KEY=V'"),
    (["--arm", "a: train.rows=8", "--arm", "a: train.rows=9"], "the name is given twice"),
    (["--arm", "a:", "--arm", "b:"], "arms 'a' and 'b' are the same"),
    (["--vary", "model.path=quickstart,none"], "arm 'path=none': none"),
    (["--vary", "prompt.num_shots=0,9"], "arm 'num_shots=9': prompt.num_shots (9)"),
    (["--vary", "train.rows=8,7"], "arm 'rows=7': train.rows (7) must be a multiple"),
)


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_computed(
    arguments: list[str],
    message: str,
    tiny: Path,
    tmp_path: Path,
    tpt_here: CommandHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(setup, "make_mesh", lambda config: make_mesh(config, jax.devices()[:4]))  # four divide eight
    monkeypatch.setattr(setup, "compile_sampler", lambda *arguments, **options: None)
    compile_trainer = setup.compile_trainer
    monkeypatch.setattr(  # its own check of the rows comes first
        setup,
        "compile_trainer",
        lambda *a, train, **o: compile_trainer(*a, train=train, **o) if train.rows % 2 else None,
    )
    done = tpt_here("sweep", "--config", tiny, "--sweep_dir", tmp_path / "sweep", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if "tpt" in line]) == 1
    assert not (tmp_path / "sweep").exists()


# Sweeps.

ARMS = {
    "previous": {},
    "base": {"train.start_from": "base"},
    "few traces": {"prune.max_traces": 4},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(f"""{EASY_TASK}
name: tiny
num_rounds: 2
think: {{until: all, num_questions: 8, num_samples: 2, max_prompt_tokens: 32, num_slots: 8}}
prune: {{num_workers: 1}}
train: {{max_steps: 2, optimizer: {{learning_rate: 1.0e-3}}}}
evaluate: {{num_questions: 8, num_samples: 2, max_prompt_tokens: 32, num_slots: 8}}
""")
    return path


class Killed(BaseException):
    """Ends a sweep as a kill does: nothing that it was about to write is written."""


# What computes a stage, if it is not taken over.
COMPUTING = {"think": "sample_on_demand", "prune": "select_traces", "train": "fine_tune", "evaluate": "sample_all"}


class Counts(dict[str, int]):
    """Counts the stages that are computed."""

    def of(self, patch: pytest.MonkeyPatch) -> Self:
        for stage, name in COMPUTING.items():
            patch.setattr(rounds, name, self._counted(stage, getattr(rounds, name)))
        return self

    def _counted(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self[stage] = self.get(stage, 0) + 1
            return function(*arguments, **options)

        return counted


@pytest.fixture(scope="module")
def workshop() -> Iterator[setup.Workshop]:
    """On one device. All tests share it, and with it what is compiled: another one takes ten seconds."""
    with pytest.MonkeyPatch.context() as patch, setup.Workshop() as workshop:
        patch.setattr(setup, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        for module in ("run", "sweep"):
            patch.setattr(f"tpt_jax.library.{module}.Workshop", lambda: contextlib.nullcontext(workshop))
        yield workshop


@pytest.fixture(scope="module")
def finished(
    tiny: Path, workshop: setup.Workshop, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tpt.Sweep, Counts]:
    """A finished sweep, and how many stages it computed."""
    with pytest.MonkeyPatch.context() as patch:
        counts = Counts().of(patch)
        path = tmp_path_factory.mktemp("sweeps") / "finished"
        sweep = tpt.sweep(tiny, arms=ARMS, seeds=2, sweep_dir=path)
    return sweep, counts


def run_folders(path: Path) -> list[Path]:
    return sorted(Path(path).glob("arms/*/seed-*"))


def results(folder: Path, num_rounds: int = 2) -> list[Any]:
    """Everything that a run computed: metrics without those of the clock and process, traces, weights, curves.

    The curves of sampling are of its speed alone, and a run that takes a stage over has none.
    """
    made: list[Any] = []
    run = RunFolder(to_path(folder))
    for index in range(num_rounds + 1):
        clock = ("seconds", "compilations", "slot_occupancy", "device_idle")
        made.append({name: value for name, value in (run.metrics(index) or {}).items() if name not in clock})
        for sampling in ("think", "evaluate"):
            made.append(sorted(run.traces(index, sampling), key=lambda each: each.trace.name))
        made += [[*run.training(index)]] if index else []
        weights = ocp.StandardCheckpointer().restore((folder / f"checkpoints/{index:03}/parameters").resolve())
        made += [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(weights)]
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    curves = [line for line in lines if line["phase"] not in ("think", "evaluate")]
    return [*made, [(line["round"], line["phase"], line["step"], line.get("loss")) for line in curves]]


def test_equal_stages_are_computed_once(finished: tuple[tpt.Sweep, Counts]) -> None:
    """Per seed: the base is evaluated and round 1 sampled once, and "base" is "previous" until round 2 trains."""
    _, counts = finished
    assert counts == {"think": 2 * 3, "prune": 2 * 4, "train": 2 * 5, "evaluate": 2 * 6}


@pytest.mark.parametrize(
    ("arm", "seed", "settings"),
    [("base", 0, {"train": {"start_from": "base"}}), ("few-traces", 1, {"prune": {"max_traces": 4}})],
)
def test_a_run_of_a_sweep_ends_as_it_does_alone(
    arm: str, seed: int, settings: dict[str, Any], finished: tuple[tpt.Sweep, Counts], tiny: Path, tmp_path: Path
) -> None:
    alone = tpt.run(tiny, run_dir=tmp_path / "alone", on_round=lambda rounds: None, seed=seed, **settings)
    assert results(Path(finished[0].path) / "arms" / arm / f"seed-{seed}") == results(Path(alone.path))


def test_a_sweep_reports_what_its_runs_hold(finished: tuple[tpt.Sweep, Counts]) -> None:
    sweep, _ = finished
    assert [arm.name for arm in sweep.arms] == list(ARMS)
    for arm in sweep.arms:
        metrics = [RunFolder(to_path(sweep.path) / "arms" / arm.folder / f"seed-{seed}").metrics(2) for seed in (0, 1)]
        assert arm.final is not None
        assert arm.final.mean == pytest.approx(np.mean([each["pass_at_1"] for each in metrics if each]))
        assert (arm.difference is None) == (arm is sweep.arms[0])
    first, base, _ = sweep.arms
    assert base.difference is not None
    assert base.final is not None
    assert first.final is not None
    assert base.difference.mean == pytest.approx(base.final.mean - first.final.mean)
    assert base.total("seconds_saved") > first.total("seconds_saved")  # which shares the weights of round 0 at most
    assert all((Path(sweep.path) / path).is_file() for arm in sweep.arms for path in arm.reports.values())


def test_files_are_linked(finished: tuple[tpt.Sweep, Counts]) -> None:
    arms = Path(finished[0].path) / "arms"
    files = {arm: arms / arm / "seed-0/checkpoints/001/config.json" for arm in ("previous", "base", "few-traces")}
    assert files["base"].samefile(files["previous"])
    assert not files["few-traces"].samefile(files["previous"])


def test_what_is_damaged_or_gone_is_computed_again(
    finished: tuple[tpt.Sweep, Counts], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep"
    shutil.copytree(finished[0].path, path)
    shutil.rmtree(path / "arms/base/seed-0")
    shutil.rmtree(path / "arms/previous/seed-0/checkpoints/000")  # as keep_checkpoints does; other runs have it
    weights = max((path / "arms/previous/seed-0/checkpoints/001").rglob("*"), key=lambda file: file.stat().st_size)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.MonkeyPatch.context() as patch:
        counts = Counts().of(patch)
        tpt.sweep(tiny, arms=ARMS, seeds=2, sweep_dir=path)
    assert counts == {"train": 2, "evaluate": 1}  # round 1, which is damaged, and round 2, which is its own
    assert "not shared: " in capsys.readouterr().err
    assert results(path / "arms/base/seed-0") == results(Path(finished[0].path) / "arms/base/seed-0")


def test_a_folder_keeps_its_plan(finished: tuple[tpt.Sweep, Counts], tiny: Path, tpt_here: CommandHere) -> None:
    arms = ("--arm", "previous:", "--arm", "base: train.start_from=base", "--arm", "few traces: prune.max_traces=4")
    command = ("sweep", "--config", tiny, "--sweep_dir", finished[0].path)
    cases = {
        (*arms, "--seeds", "3"): "another plan (seeds 0, 1 there, 0, 1, 2 here)",
        (*arms[:4], "--seeds", "2"): "another plan (arm 'few traces' there, not here)",
        (*arms, "--arm", "more: train.rows=8", "--seeds", "2"): "another plan (arm 'more' here, not there)",
        (*arms, "--seeds", "2", "--train.max_steps", "3"): "arm 'previous': train.max_steps is 2 there, 3 here",
    }
    for arguments, message in cases.items():
        done = tpt_here(*command, *arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert message in done.stderr
    done = tpt_here(*command, *arms, "--seeds", "2", "--prune.num_workers", "2")  # nothing is left to do
    assert done.returncode == 0
    assert done.stdout.count("previous") > 1
    assert done.stdout.splitlines()[-1] == f"report: {finished[0].report}"


def test_a_run_that_fails_does_not_stop_the_others(
    workshop: setup.Workshop, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine_tune = rounds.fine_tune

    def diverging(*arguments: Any, **options: Any) -> Any:
        if arguments[3].optimizer.learning_rate == 1.0:
            raise FloatingPointError("the loss of step 1 is <not> finite")
        return fine_tune(*arguments, **options)

    monkeypatch.setattr(rounds, "fine_tune", diverging)
    rates = {"train.optimizer.learning_rate": [1.0, 1e-3]}
    sweep = tpt.sweep(tiny, vary=rates, sweep_dir=tmp_path / "sweep", num_rounds=1)
    assert sweep.failures == {("learning_rate=1.0", 0): "the loss of step 1 is <not> finite"}
    assert [arm.is_done for arm in sweep.arms] == [False, True]
    page = Path(sweep.report).read_text()
    assert "Seed 0 failed: <bdi>the loss of step 1 is &lt;not&gt; finite</bdi>" in page
    monkeypatch.setattr(rounds, "fine_tune", fine_tune)
    assert not tpt.sweep(tiny, vary=rates, sweep_dir=tmp_path / "sweep", num_rounds=1).failures


class KillAt:
    """Kills the process at the n-th call of a function, before it or after it."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str, number: int, *, after: bool = False) -> None:
        function, calls = getattr(owner, name), iter(range(1, 10**6))

        def killing(*arguments: Any, **options: Any) -> Any:
            is_last = next(calls) == number
            if is_last and not after:
                raise Killed
            result = function(*arguments, **options)
            if is_last:
                raise Killed
            return result

        patch.setattr(owner, name, killing)


def test_a_killed_sweep_ends_with_the_same_results(
    finished: tuple[tpt.Sweep, Counts], tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / "killed"
    kills = (
        (TraceWriter, "write", 2, False),  # while it samples
        (sharing, "link_file", 2, False),  # some of a stage's files are taken over
        (sharing, "link_folder", 1, True),  # a checkpoint is taken over, but not noted
        (RunFolder, "write_stages", 2, False),  # a stage is done, but not noted
    )
    for owner, name, number, after in kills:
        with pytest.MonkeyPatch.context() as patch:
            KillAt(patch, owner, name, number, after=after)
            with pytest.raises(Killed):
                tpt.sweep(tiny, arms=ARMS, sweep_dir=path)
    tpt.sweep(tiny, arms=ARMS, sweep_dir=path)
    assert len(run_folders(path)) == len(ARMS)
    for folder in run_folders(path):
        assert results(folder) == results(Path(finished[0].path) / folder.relative_to(path)), folder


# What runs have in common is built once.


@pytest.mark.parametrize(
    ("setting", "values", "num_samplers", "num_trainers"),
    [
        ("train.optimizer.learning_rate", [1e-3, 1e-4], 1, 1),
        ("train.max_steps", [1, 2], 1, 1),
        ("train.rows", [4, 8], 1, 2),
        ("train.loss.name", ["focal", "clipped"], 1, 2),
        ("prune.max_traces", [1, 2], 1, 1),
        ("think.temperature", [0.5, 0.6], 1, 1),
        ("think.max_new_tokens", [8, 9], 2, 1),
        ("model.compute_dtype", ["float32", "bfloat16"], 2, 2),
    ],
)
def test_programs_are_compiled_once_for_equal_shapes(
    setting: str, values: list[Any], num_samplers: int, num_trainers: int, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = {"sampler": 0, "trainer": 0}

    def count(name: str) -> Any:
        def compile_program(*arguments: Any, **options: Any) -> None:
            compiled[name] += 1

        return compile_program

    monkeypatch.setattr(setup, "compile_sampler", count("sampler"))
    monkeypatch.setattr(setup, "compile_trainer", count("trainer"))
    with setup.Workshop() as workshop:
        for value in values:
            config = load_config(tiny, {setting: value})
            assert workshop.set_up(config, ("think", "evaluate")).config == config
            workshop.trainer(config)
    assert compiled == {"sampler": num_samplers, "trainer": num_trainers}
