"""The order of a round: which parameters each stage works with, which traces it trains on, which checkpoints stay."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.config import RunConfig
from tpt_jax.config_parsing import load_config
from tpt_jax.errors import Stopped, UserError
from tpt_jax.loop import rounds
from tpt_jax.loop.recovery import RoundState
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.loop.sampling import Pass, Sampled, judge_while_sampling
from tpt_jax.loop.seeds import derive_seed
from tpt_jax.loop.selection import select_traces
from tpt_jax.loop.training import Trained
from tpt_jax.loop.weights import Weights
from tpt_jax.prompts import Example
from tpt_jax.records import JudgedTrace, Question, QuestionSet, Trace, Verdict
from tpt_jax.runtime.sharding import Layout
from tpt_jax.tasks import Task

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
TRAIN = QuestionSet(tuple(Question(f"train/{index}", f"{index}?", str(index)) for index in range(5)))
TEST = QuestionSet((Question("test/0", "7?", "7"),))


class Calls:
    """Stands in for everything that needs a device, and records what it is asked for."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.wrong_rounds: set[int] = set()  # those in which no trace is correct

    def lend(self, round_index: int) -> None:
        self.made.append(("lend", round_index))

    def take(self, round_index: int) -> None:
        self.made.append(("take", round_index))

    def put(self, round_index: int, parameters: Any, facts: Any) -> None:
        self.made.append(("put", round_index))

    def wait(self) -> None:
        self.made.append("wait")

    def close(self) -> None:
        self.made.append("close")

    def example(self, question: str, token_ids: Any, name: str) -> Example:
        return Example(tuple(token_ids), num_prompt=0, id=name)

    def take_count(self) -> int:
        return 0

    def sample(self, sampling_pass: Pass) -> Sampled:
        config, index = sampling_pass.setup.config, sampling_pass.round_index
        self.made.append((sampling_pass.sampling, index, [question.id for question in sampling_pass.questions]))
        sampling_pass.load_parameters()
        judged = [
            JudgedTrace(
                Trace(question.id, sample, f"{index}", (index, sample)),
                Verdict("1", sample == 0, index not in self.wrong_rounds),
            )
            for question in sampling_pass.questions
            for sample in range(config.evaluate.num_samples)
        ]
        sampling_pass.folder.trace_writer(index, sampling_pass.sampling, 0).write(judged)
        return Sampled(1, 0, 0, 0, None, None)

    def select_traces(self, setup: Any, folder: RunFolder, index: int, names: Sequence[str]) -> dict[str, Any]:
        self.made.append(("select", index, list(names)))
        return select_traces(setup, folder, index, names)

    def fine_tune(self, trainer: Any, load: Any, examples: Any, config: Any, **options: Any) -> Trained:
        rounds_of_traces = sorted({example.tokens[0] for example in examples})
        self.made.append(("train", options["seed"], rounds_of_traces))
        load()
        options["saves"].mkdir(parents=True)
        return Trained(None, len(examples), 0, 1, 1.0)  # pyright: ignore[reportArgumentType]


def config(**overrides: Any) -> RunConfig:
    sampling = {"num_samples": 2}
    return load_config(QUICKSTART, {"num_rounds": 3, "think": {"num_questions": 2}, "evaluate": sampling, **overrides})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(rounds, "sample_all", calls.sample)
    monkeypatch.setattr(rounds, "sample_on_demand", calls.sample)
    monkeypatch.setattr(rounds, "select_traces", calls.select_traces)
    monkeypatch.setattr(rounds, "fine_tune", calls.fine_tune)
    monkeypatch.setattr(rounds, "StepFigures", lambda *of_model, **options: None)
    return calls


def make_loop(config: RunConfig, calls: Calls, folder: RunFolder) -> rounds.Loop:
    setup: Any = SimpleNamespace(
        config=config,
        task=Task("t", TRAIN, TEST),
        prompt=calls,
        model=SimpleNamespace(config=None),
        mesh=None,
        load=lambda model: None,
        compilations=SimpleNamespace(take=calls.take_count),
    )
    trainer: Any = None
    weights: Any = calls
    log: Any = SimpleNamespace(log=lambda *arguments: None)
    return rounds.Loop(setup, trainer, folder, weights, log)


def run(config: RunConfig, calls: Calls, path: Path) -> tuple[RunFolder, list[list[RoundState]]]:
    folder = RunFolder.open(path, config)
    loop = make_loop(config, calls, folder)
    done = list(loop.run([RoundState(index, {}) for index in range(config.num_rounds + 1)]))
    return folder, done


def test_each_stage_works_with_the_parameters_and_traces_of_its_round(calls: Calls, tmp_path: Path) -> None:
    folder, _ = run(config(num_rounds=2), calls, tmp_path / "run")
    assert calls.made[:5] == [("put", 0), ("evaluate", 0, ["test/0"]), ("lend", 0), "wait", "wait"]
    last_round = calls.made.index(("think", 2, ["train/2", "train/3"]))
    assert calls.made[last_round + 1 :] == [
        ("lend", 1),
        ("select", 2, ["train/2", "train/3"]),
        ("train", derive_seed(0, 2, "train"), [1, 2]),  # the quickstart trains on the traces of all rounds so far
        ("take", 1),
        ("put", 2),
        ("evaluate", 2, ["test/0"]),
        ("lend", 2),
        "wait",  # for the checkpoint, before training and evaluation are recorded
        "wait",
        "close",
    ]
    assert not list(Path(folder.path).glob("rounds/*/training"))
    assert set(folder.stages(2)) == {"think", "prune", "train", "evaluate"}
    pruned = folder.stages(2)["prune"]
    assert [pruned[f"num_{name}"] for name in ("traces", "correct", "strict", "kept")] == [
        2,
        2,
        2,
        2,
    ]  # the second samples are surplus


def test_an_early_stop_ends_after_a_round_that_is_no_better(calls: Calls, tmp_path: Path) -> None:
    """Round 2 gets everything wrong; what was done stays, and the same command does no more."""
    calls.wrong_rounds = {2}
    settings = config(early_stop=True, keep_checkpoints=1, prune={"steps": "any"})
    folder, done = run(settings, calls, tmp_path / "run")
    # Round 0 is as good as round 1 here, and the first of equals is the best.
    assert [state.index for state in done[-1]] == [0, 1]
    states = [RoundState(index, folder.stages(index), folder.metrics(index)) for index in range(4)]
    made = len(calls.made)
    assert [state.index for state in list(make_loop(settings, calls, folder).run(states))[-1]] == [0, 1]
    assert calls.made[made:] == ["close"]


@pytest.mark.parametrize("is_evaluated", [False, True])
def test_a_training_is_recorded_once_its_checkpoint_is_complete(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_evaluated: bool
) -> None:
    """A round that trains again, since its checkpoint was broken, may be evaluated already."""
    write = RunFolder.write_stages

    def record(folder: RunFolder, index: int, stages: Any) -> None:
        calls.made.append(("stages", index, *stages))
        write(folder, index, stages)

    monkeypatch.setattr(RunFolder, "write_stages", record)
    folder = RunFolder.open(tmp_path / "run", config())
    folder.write_training(1, [JudgedTrace(Trace("train/0", 0, "", (1, 0)), Verdict("1", True, True), kept=True)])
    sampled = {"seconds": 1.0, "num_prompts_too_long": 0, "tokens": 1, "slot_occupancy": None, "device_idle": None}
    stages: Any = {"think": sampled, "prune": {"seconds": 1.0, "verdicts": {}}}
    if is_evaluated:
        stages["evaluate"] = sampled
        folder.trace_writer(1, "evaluate", 0).write([JudgedTrace(Trace("test/0", 0, ""), Verdict.wrong(""))] * 2)
    make_loop(config(), calls, folder).run_round(RoundState(1, stages))
    recorded = next(index for index, call in enumerate(calls.made) if call[:2] == ("stages", 1) and "train" in call)
    assert "wait" in calls.made[calls.made.index(("put", 1)) : recorded]


def test_rounds_may_start_from_the_base_on_their_own_traces(calls: Calls, tmp_path: Path) -> None:
    run(config(num_rounds=2, train={"start_from": "base", "traces_of": "round"}), calls, tmp_path / "run")
    assert [call for call in calls.made if call[0] == "take"] == [("take", 0), ("take", 0)]
    assert [call[2] for call in calls.made if call[0] == "train"] == [[1], [2]]


def test_a_round_stops_when_there_is_nothing_to_train_on(calls: Calls, tmp_path: Path) -> None:
    """Its traces and what was done before stay, so the same command says so again at once."""
    calls.wrong_rounds = {1}
    settings = config()
    folder = RunFolder.open(tmp_path / "run", settings)
    for _ in range(2):
        states = [RoundState(index, folder.stages(index)) for index in range(4)]
        with pytest.raises(
            UserError,
            match=r"^round 1: no trace was kept: 0 of 4 correct \(wrong answer: 4\); none was left after correct; set",
        ):
            list(make_loop(settings, calls, folder).run(states))
    assert [len([*folder.traces(1, "think")]), calls.made.count(("think", 1, ["train/0", "train/1"]))] == [4, 1]
    assert (set(folder.stages(0)), set(folder.stages(1))) == ({"train", "evaluate"}, {"think", "prune"})
    assert not [call for call in calls.made if call[0] in ("take", "train")]
    assert calls.made[-1] == "close"


@pytest.mark.parametrize(("traces_of", "trained"), [("all", [[1], [1], [1, 3]]), ("round", [[1]])])
def test_a_later_round_may_train_on_the_traces_of_earlier_ones(
    calls: Calls, tmp_path: Path, traces_of: str, trained: list[list[int]]
) -> None:
    calls.wrong_rounds = {2}
    with contextlib.nullcontext() if len(trained) == 3 else pytest.raises(UserError, match=r"^round 2: no trace"):
        run(config(train={"traces_of": traces_of}), calls, tmp_path / "run")
    assert [call[2] for call in calls.made if call[0] == "train"] == trained


def test_questions_come_again_after_the_last_one(calls: Calls, tmp_path: Path) -> None:
    run(config(), calls, tmp_path / "run")
    asked = [call[2] for call in calls.made if call[0] == "think"]
    assert asked == [["train/0", "train/1"], ["train/2", "train/3"], ["train/4", "train/0"]]


@pytest.mark.parametrize(
    ("start_from", "scores", "kept"),
    [
        ("previous", (0.2, 0.9, 0.3, 0.4), {1, 3}),
        ("base", (0.2, 0.9, 0.3, 0.4), {0, 1, 3}),
        ("previous", (0.1,) * 4, {0, 3}),
    ],
)
def test_the_newest_and_the_best_checkpoint_stay(
    calls: Calls, tmp_path: Path, start_from: str, scores: tuple[float, ...], kept: set[int]
) -> None:
    settings = config(keep_checkpoints=1, train={"start_from": start_from})
    folder = RunFolder.open(tmp_path / "run", settings)
    for index in range(4):
        folder.checkpoint(index).mkdir(parents=True)
    setup: Any = SimpleNamespace(config=settings)
    nothing: Any = None
    loop = rounds.Loop(setup, nothing, folder, nothing, nothing)
    loop._remove_old_checkpoints([RoundState(index, {}, {"pass_at_1": score}) for index, score in enumerate(scores)])
    assert {index for index in range(4) if folder.checkpoint(index).is_dir()} == kept


def test_seeds_of_purposes_and_rounds_are_hashes() -> None:
    expected = int(hashlib.sha256(b"3/2/train").hexdigest()[:8], 16)
    assert derive_seed(3, 2, "train") == expected < 2**32
    drawn = {
        derive_seed(seed, index, purpose) for seed in range(9) for index in range(9) for purpose in ("select", "train")
    }
    assert len(drawn) == 2 * 81  # seed 0 in round 2 is not seed 1 in round 1


def test_traces_get_their_own_verdicts_also_when_sampling_stops() -> None:
    """Each batch is judged while the next one is sampled."""
    questions = QuestionSet(tuple(Question(str(index), "?", str(index)) for index in range(6)))
    submitted: list[list[str]] = []

    def submit_batch(pairs: list[tuple[Question, Trace]]) -> Future[list[Verdict]]:
        submitted.append([trace.id for _, trace in pairs])
        future: Future[list[Verdict]] = Future()
        future.set_result([Verdict(question.id, True, question.id == trace.id) for question, trace in pairs])
        return future

    def batches() -> Iterator[list[Trace]]:
        for start in (0, 2, 4):
            yield [Trace(str(index), 0, "") for index in range(start, start + 2)]
            yield []
        raise Stopped

    pool: Any = SimpleNamespace(submit_batch=submit_batch)
    judged: list[tuple[str, str | None]] = []

    def judge() -> None:
        for batch in judge_while_sampling(batches(), pool, questions):
            judged.extend((each.trace.id, each.verdict.extracted) for each in batch)
            assert len(judged) == 2 * len(submitted)  # verdicts that are there are not kept waiting

    with pytest.raises(Stopped):
        judge()
    assert judged == [(str(index), str(index)) for index in range(6)]


def test_weights_come_from_the_devices_the_hosts_or_a_checkpoint(layout: Layout, tmp_path: Path) -> None:
    settings = config(train={"offload": True})
    model = ModelFolder.open("quickstart")
    base = model.load(layout)
    expected = [np.asarray(leaf) for leaf in jax.tree.leaves(base)]
    setup: Any = SimpleNamespace(config=settings, model=model, load=lambda folder, verify: folder.load(layout))
    weights = Weights(setup, RunFolder.open(tmp_path / "run", settings))
    weights.put(0, base, {"tokens": 0})
    taken = weights.take(0)
    assert weights._held is None  # or they would stay in memory beside those that training makes
    doubled = jax.tree.map(lambda leaf: 2 * leaf, taken)
    jax.tree.map(lambda leaf: leaf.delete(), taken)  # as a train step does with what is donated to it
    weights.put(1, doubled, {"tokens": 1})
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(weights.lend(1))} == {"device"}
    assert weights._held is not None
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(weights._held.parameters)} == {"pinned_host"}
    for index, factor in ((1, 2), (0, 1), (1, 2)):
        lent = weights.lend(index)
        for leaf, value in zip(jax.tree.leaves(lent), expected, strict=True):
            np.testing.assert_array_equal(np.asarray(leaf), factor * value)
    weights.close()
