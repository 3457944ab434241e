"""`import tpt_jax as tpt`: the program in docs/python.md, the notebook, own questions and checkers, and mistakes."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import nbclient
import nbformat
import numpy as np
import pytest
from processes import ROOT, process_environment

import tpt_jax as tpt
from tpt_jax.config_parsing import load_config

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
PROGRAM = re.search(r"```python\n(import tpt_jax as tpt\n.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
SUMS = [(left, right) for left in range(10, 30) for right in (4, 15)]


@pytest.fixture(scope="module")
def model() -> Any:
    return tpt.load_model("quickstart", mesh=tpt.mesh(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def traces(model: Any) -> Any:
    questions = [{"question": f"{left} + {right} =", "answer": str(left + right)} for left, right in SUMS]
    task = tpt.own_task(train=questions, test=["1 + 1 ="], checker=lambda question, text: text == question.answer)
    return tpt.sample(model, task.train, num_samples=2, max_new_tokens=24, num_slots=8)


def test_the_program_in_the_docs_runs_without_a_main_guard(tmp_path: Path) -> None:
    assert PROGRAM is not None
    (tmp_path / "program.py").write_text(PROGRAM[1])
    for name in ("configs", "tpt_jax"):  # the config, and the questions that it names from the clone's root
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, "program.py"]
    env = process_environment(optimization=1)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    before, after = map(float, done.stdout.splitlines()[:2])
    assert 0.2 < before < after <= 1
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert (tmp_path / "runs/own_task/rounds/001/metrics.json").is_file()


def test_the_notebook_runs_and_keeps_its_outputs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs or cell.source.startswith(("import", "better.export")) for cell in code)
    shown = "".join(str(output) for cell in code for output in cell.outputs)
    assert "<progress" in shown  # the bars' last state
    assert str(ROOT) not in shown
    cell = next(cell for cell in code if "num_train=100, num_test=20" in cell.source)
    cell.source = cell.source.replace("num_train=100, num_test=20", "num_train=16, num_test=4")
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env={**process_environment(optimization=1), "JPY_PARENT_PID": ""})
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]


def test_a_users_function_judges_the_sums(traces: Any) -> None:
    judged = tpt.judge(traces, num_workers=1)
    assert len(judged) == 2 * len(SUMS)
    for each in judged:
        left, right = SUMS[int(each.trace.id.rpartition("/")[2])]
        assert each.verdict.correct == (each.trace.completion == str(left + right))
    assert sum(each.verdict.correct for each in judged) > len(SUMS)  # the model can add, mostly
    assert tpt.score(judged, k=2).pass_at_k >= tpt.score(judged).pass_at_1 > 0.5


def test_traces_are_judged_by_the_questions_they_answer() -> None:
    """Two splits may use the same ids: the questions that the traces were sampled for count, not the first match."""
    train, test = ([tpt.Question("0", f"{n} + 1 =", str(n + 1))] for n in (1, 5))
    task = tpt.own_task(train, test, checker=lambda question, text: text == question.answer)
    answers = (tpt.Trace("0", 0, "6"),)
    assert [each.verdict.correct for each in tpt.judge(tpt.Traces(answers, task.test), task, num_workers=1)] == [True]
    with pytest.raises(tpt.UserError, match="a training and a test question share the id '0'"):
        tpt.judge(answers, task)
    assert [each.verdict.correct for each in tpt.judge(answers, task.train, num_workers=1)] == [False]
    assert [each.verdict.correct for each in tpt.judge(answers, task.test, checker="numeric", num_workers=1)] == [True]
    by_length = tpt.judge(answers, task.test, checker=lambda question, text: len(text) == 3, num_workers=1)
    assert [each.verdict.correct for each in by_length] == [False]


def test_sampled_tokens_of_finished_traces_are_trained_on(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a new tokenization of their text, and nothing of a trace that was cut off."""
    questions = tpt.QuestionSet((tpt.Question("0", "1 + 1 =", "2"),))
    finished = tpt.Trace("0", 0, "2", token_ids=(9, 8, 7))  # which are not the tokens of "2"
    cut_off = tpt.Trace("0", 1, "2", token_ids=(6, 5), finish_reason="length")
    trained: list[Any] = []

    def record(trainer: Any, load: Any, examples: Any, config: Any, **options: Any) -> Any:
        trained.extend(examples)
        return SimpleNamespace(parameters=load())

    monkeypatch.setattr("tpt_jax.library.training.fine_tune", record)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by its integer step count
        tpt.finetune(model, tpt.Traces((finished, cut_off), questions), rows=4, sequence_length=64)
    end_of_turn = model.prompt(questions).end_of_turn
    assert [example.tokens[example.num_prompt :] for example in trained] == [(9, 8, 7, end_of_turn)]


def test_a_task_is_asked_with_the_shots_and_the_instruction_of_the_call(model: Any) -> None:
    """None unless the call says so, as in a config; then the prompts are those of `tpt run`."""
    folder = ROOT / "tests" / "data" / "gsm8k"
    task = tpt.load_task("gsm8k", folder=folder)
    assert task.train.shots == task.test.shots == ()
    asked = tpt.load_task("gsm8k", folder=folder, num_shots=1, instruction="Be brief.").test
    prompt = model.prompt(asked)
    text = prompt.text(prompt.prompt_ids(asked[0].question))
    assert text.count("Be brief.") == 2  # after the example and after the question
    with pytest.raises(tpt.UserError, match=r"num_shots \(99\)"):
        tpt.load_task("gsm8k", folder=folder, num_shots=99)


def test_traces_of_held_out_questions_are_not_selected() -> None:
    questions = tpt.QuestionSet((tpt.Question("0", "What is 1 + 1?", "2"), tpt.Question("1", "1 + 2?", "3")))
    right = tpt.Verdict("2", True, True)
    judged = tpt.Traces(tuple(tpt.JudgedTrace(tpt.Trace(name, 0, "2"), right) for name in "01"), questions)
    held_out = [tpt.QuestionSet((tpt.Question("x", "what is  1+1", "2"),))]  # the same question, spelt otherwise
    kept = tpt.select(judged, held_out=held_out)
    assert [each.trace.id for each in kept] == ["1"]
    assert kept.num_dropped["held out"] == 1


def test_evaluate_samples_at_the_temperature_of_the_evaluate_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    temperatures: list[float] = []

    def sample(model: Any, questions: tpt.QuestionSet, **options: Any) -> Any:
        temperatures.append(options["temperature"])
        return tpt.Traces((tpt.Trace("0", 0, "2"),), questions)

    monkeypatch.setattr("tpt_jax.library.evaluation.sample", sample)
    question = tpt.Question("0", "1 + 1 =", "2")
    model: Any = None
    assert tpt.evaluate(model, [question], checker="numeric", k=1).pass_at_1 == 1
    assert tpt.evaluate(model, [question], checker="numeric", k=1, temperature=0.2).pass_at_1 == 1
    assert temperatures == [0.7, 0.2]


def test_a_finetuning_with_other_settings_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even with the same output: the partial folder says what the training was started with."""

    def save_once(*_: Any) -> None:
        (tmp_path / "out.partial/training/2").mkdir(parents=True, exist_ok=True)
        raise RuntimeError("killed")

    monkeypatch.setattr("tpt_jax.library.finetune_file.compile_trainer", lambda *_, **__: None)
    monkeypatch.setattr("tpt_jax.library.finetune_file._train", save_once)
    monkeypatch.chdir(ROOT)  # own_task.yaml names its files from there
    traces = tmp_path / "traces.jsonl"

    def finetune(text: str, **overrides: Any) -> None:
        traces.write_text(json.dumps({"question": "1 + 1 =", "id": "x", "completion": text}))
        config = load_config(ROOT / "configs/own_task.yaml", overrides)
        tpt.finetune_file(config, "quickstart", traces, tmp_path / "out")

    for _ in range(2):  # the second one resumes
        with pytest.raises(RuntimeError, match="killed"):
            finetune("2")
    with pytest.raises(tpt.UserError, match="was started with another traces"):
        finetune("3")
    with pytest.raises(tpt.UserError, match="was started with another config"):
        finetune("2", seed=1)
    (tmp_path / "out.partial/training/2").rmdir()  # without a save there is nothing to go on from
    with pytest.raises(RuntimeError, match="killed"):
        finetune("3")


def test_traces_do_not_depend_on_mesh_or_slots(traces: Any) -> None:
    single = tpt.load_model("quickstart", mesh=tpt.mesh(devices=jax.devices()[:1]))
    again = tpt.sample(single, traces.questions[:4], num_samples=2, max_new_tokens=24, num_slots="auto")
    assert [trace.token_ids for trace in again] == [trace.token_ids for trace in traces[:8]]


def test_finetuning_leaves_the_model_alone_and_export_writes_the_result(
    model: Any, traces: Any, tmp_path: Path
) -> None:
    kept = tpt.select(tpt.judge(traces, num_workers=1), max_per_question=1, max_traces=8, seed=3)
    assert len({each.trace.id for each in kept}) == len(kept) == 8
    before = [np.asarray(weight) for weight in jax.tree.leaves(model.parameters)]
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by its integer step count
        better = tpt.finetune(model, kept, rows=4, sequence_length=64, num_epochs=3, optimizer={"learning_rate": 1e-3})
    after = [np.asarray(weight) for weight in jax.tree.leaves(model.parameters)]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    better.export(tmp_path / "out", dtype="float32")
    loaded = tpt.load_model(tmp_path / "out", mesh=model.mesh)
    moved = False
    for one, two, old in zip(*map(jax.tree.leaves, (better.parameters, loaded.parameters)), before, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
        moved |= bool((np.asarray(one) != old).any())
    assert moved


def test_mistakes_are_user_errors_of_one_line(model: Any, traces: Any, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    question = tpt.Question("a", "1 + 1 =", "2")
    judged = tpt.Traces((tpt.JudgedTrace(traces[0], tpt.Verdict("1", True, True)),), traces.questions)
    calls = {
        "no such folder": lambda: tpt.load_model(tmp_path / "none"),
        "compute_dtype": lambda: tpt.load_model("quickstart", compute_dtype="float16"),
        "num_sample: unknown key; did you mean num_samples": lambda: tpt.sample(model, ["1 + 1 ="], num_sample=2),
        "num_slots .3. must be a multiple of data x fsdp = 4": lambda: tpt.sample(model, ["1 + 1 ="], num_slots=3),
        "num_questions: sample a slice": lambda: tpt.sample(model, ["1 + 1 ="], num_questions=1),
        "seed": lambda: tpt.sample(model, ["1 + 1 ="], seed=-1),
        "a single text": lambda: tpt.sample(model, "1 + 1 ="),
        "there are none": lambda: tpt.sample(model, []),
        "a single dict": lambda: tpt.sample(model, {"question": "1 + 1 ="}),  # pyright: ignore[reportArgumentType]
        "the id 'a' appears 2 times": lambda: tpt.sample(model, [question, question]),
        "question '0': lacks text under \"question\"": lambda: tpt.sample(model, [{"answer": "2"}]),
        "question '1' .3.": lambda: tpt.sample(model, ["2", 3]),  # pyright: ignore[reportArgumentType]
        "optimizer.name": lambda: tpt.finetune(model, judged, optimizer={"name": "sgd"}),
        "save_every: only a run": lambda: tpt.finetune(model, judged, save_every=3),
        "no trace to train on": lambda: tpt.finetune(model, judged, sequence_length=4),
        "finetune: give the traces": lambda: tpt.finetune(model, list(judged)),  # pyright: ignore[reportArgumentType]
        "task 'gsm': unknown": lambda: tpt.load_task("gsm"),
        "give the task too": lambda: tpt.judge(list(traces)),
        "has no question '": lambda: tpt.judge(traces, tpt.QuestionSet((tpt.Question("x", "1?", "1"),))),
        "num_workers": lambda: tpt.judge(traces, num_workers=0),
        "steps": lambda: tpt.select(judged, steps=["right"]),
        "max_traces": lambda: tpt.select(judged, max_traces=-1),
        "dtype": lambda: model.export(tmp_path / "new", dtype="int8"),
        "is not empty": lambda: model.export(tmp_path / "full"),
        "no such config file": lambda: tpt.run(tmp_path / "none.yaml"),
    }
    for message, call in calls.items():
        with pytest.raises(tpt.UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_importing_is_quick_and_imports_no_jax() -> None:
    program = (
        "import time; start = time.perf_counter(); import tpt_jax as tpt; seconds = time.perf_counter() - start\n"
        "tpt.UserError, dir(tpt)\n"
        "import sys; assert 'jax' not in sys.modules; assert seconds < 0.3, seconds\n"
        "for name in tpt.__all__: getattr(tpt, name)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=process_environment())


def test_every_public_name_is_declared_for_type_checkers() -> None:
    source = (ROOT / "tpt_jax" / "__init__.py").read_text()
    declared = re.findall(r"\w+", " ".join(re.findall(r"^    from [\w.]+ import (.*)$", source, re.MULTILINE)))
    assert sorted(declared) == sorted(tpt.__all__)
