"""The stages without a device: sampling fills the gaps in the run folder; selection keeps to its limits."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tpt_jax.commands.main import main
from tpt_jax.config import RunConfig, Sampling
from tpt_jax.config_parsing import dump_config, load_config
from tpt_jax.errors import UserError
from tpt_jax.io.files import read_jsonl
from tpt_jax.loop import sampling as loop_sampling
from tpt_jax.loop.run_folder import RunFolder
from tpt_jax.loop.sampling import Pass, Sampled, sample_all, sample_on_demand
from tpt_jax.loop.selection import select_traces
from tpt_jax.records import JudgedTrace, Question, QuestionSet, Trace, Verdict
from tpt_jax.tasks import Task
from tpt_jax.think.engine import Statistics
from tpt_jax.think.requests import Schedule
from tpt_jax.think.sampling import Filters
from tpt_jax.think.sampling_plan import plan_sampling

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
QUESTIONS = QuestionSet(tuple(Question(name, "?", name) for name in ("a", "b", "long")))
RIGHT, FAILED = Verdict("1", strict=True, correct=True), Verdict.wrong("checker died")


class FakeEngine:
    """Samples one token for every requested trace of the questions in `own`, and records what it is asked for."""

    own: Sequence[str] = ("a", "b")
    requested: list[tuple[str, tuple[int, ...]]]
    options: dict[str, Any]

    def __init__(self, *_: Any):
        self.statistics = Statistics(seconds=1.0, num_tokens=1)

    def sample(self, parameters: Any, schedule: Schedule, **options: Any) -> Iterator[list[Trace]]:
        del options["should_stop"]
        FakeEngine.options = options
        while not schedule.is_done(num_left=1):
            requests = schedule.take(0, count=1, num_idle=0)
            FakeEngine.requested += [(request.id, request.samples) for request in requests]
            yield [
                Trace(request.id, sample, f"{sample}", (5,))
                for request in requests
                for sample in request.samples
                if request.id in FakeEngine.own
            ]
            if not requests:
                return


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    monkeypatch.setattr(FakeEngine, "own", ("a", "b"))
    FakeEngine.requested = []
    monkeypatch.setattr(loop_sampling, "Engine", FakeEngine)
    monkeypatch.setattr(loop_sampling, "reshard", lambda program, parameters, label: parameters)
    return FakeEngine


@pytest.fixture
def config() -> RunConfig:
    return load_config(QUICKSTART, {"seed": 5, "think.temperature": 0.9, "evaluate.temperature": 0.6})


@pytest.fixture
def folder(config: RunConfig, tmp_path: Path) -> RunFolder:
    return RunFolder.open(tmp_path / "run", config)


def no_parameters() -> Any:
    """Nothing here reads them."""


def make_setup(config: RunConfig, verdict: Verdict = RIGHT) -> Any:
    """Two samples of each question; the prompt of "long" is longer than may be."""
    plan = plan_sampling(
        {"a": (1, 2), "b": (3,), "long": (4,) * 9},
        num_questions=None,
        num_samples=2,
        max_prompt_tokens=8,
        max_new_tokens=4,
        num_slots=2,
        num_shards=1,
        filters=Filters(),
        cache_type="compute",
        weights="compute",
        option="think.",
    )

    def submit_batch(pairs: Sequence[Any]) -> Future[list[Verdict]]:
        future: Future[list[Verdict]] = Future()
        future.set_result([verdict] * len(pairs))
        return future

    programs: dict[str, Any] = dict.fromkeys(("think", "evaluate"), SimpleNamespace(shape=plan.shape))
    return SimpleNamespace(
        config=config,
        plans={"think": plan, "evaluate": plan},
        sampler=SimpleNamespace(slots=programs, reshards=programs, layout=SimpleNamespace(batch_ways=1)),
        prompt=None,
        stop_strings=None,
        pool=SimpleNamespace(submit_batch=submit_batch),
        task=Task("t", QUESTIONS, QUESTIONS),
    )


def evaluate(setup: Any, folder: RunFolder, load: Any = no_parameters) -> Sampled:
    return sample_all(Pass(setup, folder, 2, "evaluate", QUESTIONS, load))


def think(setup: Any, folder: RunFolder, load: Any = no_parameters) -> Sampled:
    return sample_on_demand(Pass(setup, folder, 2, "think", QUESTIONS, load))


def test_only_missing_traces_are_sampled(config: RunConfig, folder: RunFolder, engine: type[FakeEngine]) -> None:
    """An earlier process left one; its three tokens and end of turn count."""
    folder.trace_writer(2, "evaluate", 0).write([JudgedTrace(Trace("a", 1, "x", (6, 7, 8)), RIGHT)])
    num_loads = 0

    def load() -> Any:
        nonlocal num_loads
        num_loads += 1

    sampled = evaluate(make_setup(config), folder, load)
    assert engine.requested == [("a", (0,)), ("b", (0, 1))]
    assert (sampled.tokens, sampled.num_prompts_too_long) == (3 * 2 + 4, 1)
    names = [(judged.trace.name, judged.verdict) for judged in folder.traces(2, "evaluate")]
    assert sorted(names, key=str) == [(name, RIGHT) for name in ("a/0", "a/1", "b/0", "b/1")]
    assert evaluate(make_setup(config), folder, load).tokens == sampled.tokens
    assert (len(engine.requested), num_loads) == (2, 1)  # nothing was left to sample


def test_a_question_is_asked_until_it_has_a_right_trace(
    config: RunConfig, folder: RunFolder, engine: type[FakeEngine]
) -> None:
    """An earlier process left a right second sample of "a", which is surplus if the first one is right."""
    folder.trace_writer(2, "think", 0).write([JudgedTrace(Trace("a", 1, "x", (6,)), RIGHT)])
    sampled = think(make_setup(config), folder)
    assert sorted(engine.requested) == [("a", (0,)), ("b", (0,))]
    assert (sampled.num_surplus, sampled.num_prompts_too_long) == (1, 1)
    assert think(make_setup(config), folder).tokens == sampled.tokens
    assert len(engine.requested) == 2


@pytest.mark.parametrize("until", ["enough", "all"])
def test_a_question_without_a_right_trace_is_given_up(
    config: RunConfig, folder: RunFolder, engine: type[FakeEngine], until: str
) -> None:
    wrong = Verdict.wrong("", "2")
    settings = load_config(QUICKSTART, {"think": {"until": until, "num_samples": 2, "max_samples": 3}})
    sampled = think(make_setup(settings, wrong), folder)
    samples = [(name, sample) for name, group in engine.requested for sample in group]
    assert sorted(samples) == [(name, sample) for name in "ab" for sample in range(3)]
    assert (len([*folder.traces(2, "think")]), sampled.num_surplus) == (6, 0)


@pytest.mark.parametrize(("sampling", "temperature"), [("think", 0.9), ("evaluate", 0.6)])
def test_draws_depend_on_seed_round_and_the_stages_temperature(
    config: RunConfig, folder: RunFolder, engine: type[FakeEngine], sampling: Sampling, temperature: float
) -> None:
    (think if sampling == "think" else evaluate)(make_setup(config), folder)
    assert engine.options == {"seed": 5, "round_index": 2, "temperature": temperature}


def test_traces_of_another_host_that_are_not_in_the_folder_are_missed(
    config: RunConfig, folder: RunFolder, engine: type[FakeEngine]
) -> None:
    engine.own = ("a",)  # the other host samples "b", and writes it to a folder of its own
    with pytest.raises(UserError, match="holds 2 of 4 traces, because the hosts do not share it"):
        evaluate(make_setup(config), folder)


def test_a_checker_that_fails_on_every_trace_ends_the_stage(config: RunConfig, folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"it failed on every trace \(checker died\)"):
        think(make_setup(config, FAILED), folder)


def test_a_rounds_selection_keeps_to_the_configs_limits(folder: RunFolder) -> None:
    """Eight correct traces of four questions, then one wrong one."""
    judged = [JudgedTrace(Trace(name, sample, f"{sample}", (1, 2)), RIGHT) for name in "abcd" for sample in range(2)]
    folder.trace_writer(1, "think", 0).write([*judged, JudgedTrace(Trace("e", 0, "0", (1,) * 11), Verdict.wrong(""))])

    def kept(seed: int, **limits: Any) -> list[str]:
        setup: Any = SimpleNamespace(
            config=load_config(QUICKSTART, {"seed": seed, "think.until": "all", "prune": limits})
        )
        figures = select_traces(setup, folder, 1, list("abcde"))
        names = [trace.trace.name for trace in folder.training(1)]
        assert (figures["num_traces"], figures["num_correct"], figures["num_kept"]) == (9, 8, len(names))
        assert figures["mean_think_tokens"] == 3.0
        return names

    assert len(kept(0, max_per_question=2, max_traces=None)) == 8
    assert len(kept(0, max_per_question=2, max_traces=None, steps="any")) == 9
    assert kept(0, max_per_question=1, max_traces=None) == ["a/0", "b/0", "c/0", "d/0"]
    assert len(kept(0, max_per_question=1, max_traces=3)) == 3
    assert len({tuple(kept(seed, max_per_question=1, max_traces=3)) for seed in range(9)}) > 1


def test_a_rounds_selection_does_not_depend_on_the_order_of_its_files(config: RunConfig, tmp_path: Path) -> None:
    """Traces are written as they finish: figures and kept traces are the same to the bit."""
    draw = random.Random(0)
    names = [f"q{index}" for index in range(40)]
    judged = [
        JudgedTrace(Trace(name, sample, f"{name} {sample}", (7,) * draw.randrange(9)), verdict)
        for name in names
        for sample in range(4)
        for verdict in [draw.choice([RIGHT, Verdict.wrong("a"), Verdict.wrong("b"), Verdict("1", False, True)])]
    ]
    settings = load_config(QUICKSTART, {"think.until": "all", "prune": {"max_per_question": 2, "max_traces": 30}})
    setup: Any = SimpleNamespace(config=settings)
    made = []
    for number in range(3):
        folder = RunFolder.open(tmp_path / str(number), config)
        for part in (judged[:50], judged[50:51], judged[51:]):
            folder.trace_writer(1, "think", 0).write(part)
        figures = select_traces(setup, folder, 1, names)
        made.append((figures, (folder.round_path(1) / "training.jsonl").read_bytes()))
        draw.shuffle(judged)
    assert made[0] == made[1] == made[2]
    assert list(made[0][0]["verdicts"]) == list(made[1][0]["verdicts"])
    assert [each.trace.name for each in folder.training(1)] == sorted(each.trace.name for each in folder.training(1))
    by_name = {each.trace.name: each.trace for each in judged}
    assert all(each.trace == by_name[each.trace.name] for each in folder.training(1))


class WordsAsTokens:
    """Stands in for the prompt: token ids are the lengths of words."""

    def completion_ids(self, completion: str) -> tuple[int, ...]:
        return tuple(map(len, completion.split()))

    def is_faithful(self, question: str, completion: str) -> bool:
        return completion != "#### 5"


def test_kept_traces_are_trimmed_tokenized_anew_and_judged_again(folder: RunFolder) -> None:
    """Of "b" the verdict would change, "c" cannot be tokenized, and "d" has nothing to trim."""
    texts = {"a": "#### 7\nBye", "b": "#### 8\nBye", "c": "#### 5\nBye", "d": "#### 6"}
    traces = [JudgedTrace(Trace(name, 0, text, (1, 2), -3.0, entropy=2.0), RIGHT) for name, text in texts.items()]
    folder.trace_writer(1, "think", 0).write(traces)

    def judge(pairs: Iterator[tuple[Question, Trace]]) -> Iterator[Verdict]:
        for question, trace in pairs:
            assert question.id == trace.id
            yield RIGHT if trace.completion == "#### 7" else Verdict.wrong("")

    questions = QuestionSet(tuple(Question(name, "?", "7") for name in texts))
    setup: Any = SimpleNamespace(
        config=load_config(QUICKSTART, {"prune.steps": "correct, trim_after_answer"}),
        prompt=WordsAsTokens(),
        pool=SimpleNamespace(judge=judge),
        task=Task("t", questions, questions),
    )
    assert select_traces(setup, folder, 1, list(texts))["num_trimmed"] == 1
    trained = [*folder.training(1)]
    assert [each.trace for each in trained] == [Trace("a", 0, "#### 7", (4, 1)), *(each.trace for each in traces[1:])]
    assert all(each.kept for each in trained)


def test_a_rounds_selection_is_repeated_from_its_folder(tmp_path: Path) -> None:
    """By the command with the run's config; the questions file also has those of the evaluation, and data."""
    steps = "[correct, unique_calculations, {shortest: {count: 1}}]"
    settings = {"prune.steps": steps, "prune.max_traces": 4, "seed": 3}
    config = load_config(QUICKSTART, settings)
    folder = RunFolder.open(tmp_path / "run", config)
    questions = [Question(f"q{index}", f"{index} + 1?", f"{index + 1}", {"more": 1}) for index in range(9)]
    folder.write_questions(2, [*questions, Question("t", "?", "1")])
    judged = [
        JudgedTrace(Trace(each.id, sample, f"{index} + 1 = {index + sample % 2}!", (1,) * sample), verdict)
        for index, each in enumerate(questions)
        for sample in range(4)
        for verdict in [Verdict(f"{index + sample % 2}", strict=False, correct=sample % 2 == 1)]
    ]
    for part in (judged[:17], judged[17:]):
        folder.trace_writer(2, "think", 0).write(part)
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
    folder.trace_writer(2, "evaluate", 0).write([JudgedTrace(Trace("t", 0, "1"), RIGHT)])
    setup: Any = SimpleNamespace(config=config)
    select_traces(setup, folder, 2, [question.id for question in questions])
    trained = {each.trace.name for each in folder.training(2)}
    assert len(trained) == 4
    paths = ("--questions", "rounds/002/questions.jsonl", "--traces", "rounds/002/traces", "--config", "config.yaml")
    arguments = [each if each.startswith("--") else f"{tmp_path}/run/{each}" for each in paths]
    assert main(["prune", *arguments, "--output", f"{tmp_path}/out.jsonl", "--num_workers", "1"]) == 0
    out = list(read_jsonl(tmp_path / "out.jsonl"))
    assert {f"{line['id']}/{line['sample']}" for line in out if line["kept"]} == trained
    assert len(out) == len(judged)
    # Options here and keys of the config change it.
    more = [*arguments, "--output", f"{tmp_path}/more.jsonl", "--num_workers", "1"]
    assert main(["prune", *more, "--steps", "any", "--prune.max_per_question", "2", "--max_traces", "9"]) == 0
    assert sum(line["kept"] for line in read_jsonl(tmp_path / "more.jsonl")) == 9
