"""The tasks' questions: disjoint splits, right answers, and mistakes reported in one line."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest

from tpt_jax.checks.answers.number import check_numeric
from tpt_jax.checks.pool import CheckerPool
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.loop.setup import without_unreadable
from tpt_jax.quickstart.corpus import drills, worked_solutions
from tpt_jax.records import Question, QuestionSet, Verdict
from tpt_jax.tasks import Gsm8kConfig, GsmSymbolicConfig, MathConfig, MultipleChoiceConfig, Task, load_task
from tpt_jax.tasks.decontamination import normalised, without_test_questions
from tpt_jax.tasks.gsm_symbolic import Problem, draw_problems

SAMPLE = Path(__file__).parent / "data" / "gsm8k"
SHARED = Path(__file__).parents[2] / "shared" / "gsm8k"
SMALL = GsmSymbolicConfig("gsm_symbolic", templates=(10, 16, 43), num_train=90, num_test=30)


def check(answer: str, completion: str) -> Verdict:
    return check_numeric(Question("q", "?", answer), completion)


@pytest.fixture(scope="module")
def problems() -> dict[str, list[Problem]]:
    """90 problems of each split."""
    return {
        split: list(itertools.islice(draw_problems(SMALL, split, seed=0), 90)) for split in ("base", "train", "test")
    }


def test_splits_are_disjoint_in_template_and_numbers(problems: dict[str, list[Problem]]) -> None:
    """Finds the numbers independently of the splitting code, so that a leak it overlooks shows up."""
    calculations = {
        split: {(problem.template, tuple(re.findall(r"\d+", problem.question))) for problem in split_problems}
        for split, split_problems in problems.items()
    }
    assert not calculations["base"] & calculations["train"]
    assert not calculations["base"] & calculations["test"]
    assert not calculations["train"] & calculations["test"]
    assert len(calculations["test"]) == 90  # each test problem is an independent observation


def test_problems_are_small_and_their_solutions_end_in_the_answer(problems: dict[str, list[Problem]]) -> None:
    for problem in itertools.chain.from_iterable(problems.values()):
        assert all(int(number) <= SMALL.max_number for number in re.findall(r"\d+", problem.question))
        assert check(problem.answer, problem.solution).strict


def test_the_same_seed_draws_the_same_questions() -> None:
    assert load_task(SMALL) == load_task(SMALL)


def test_the_base_models_corpus_has_wrong_solutions_and_right_drills() -> None:
    solutions = list(worked_solutions(SMALL, 200, wrong_share=0.4, seed=0))
    right = {problem.question: problem.answer for problem in itertools.islice(draw_problems(SMALL, "base", 0), 200)}
    wrong = sum(not check(right[text.prompt], text.completion).correct for text in solutions)
    assert 55 <= wrong <= 105  # 80 expected, +- 4 standard deviations
    for text in drills(500, 40, seed=1):
        left = text.prompt.removesuffix("=").replace("/", "//")
        assert eval(left) == int(text.completion)  # arithmetic from our own generator


def test_gsm_symbolic_reports_mistakes() -> None:
    with pytest.raises(UserError, match=r"task\.templates: 1000 is not a template"):
        load_task(GsmSymbolicConfig("gsm_symbolic", templates=(1000,)))
    with pytest.raises(UserError, match=r"task\.num_train \(500\): these templates have only \d+ such problems"):
        load_task(GsmSymbolicConfig("gsm_symbolic", templates=(10,), max_number=4, num_train=500, num_test=1))


def write_gsm8k(folder: Path, lines: list[dict[str, str]]) -> Gsm8kConfig:
    for split in ("train", "test"):
        split_lines = [{**line, "question": f"{line['question']} ({split})"} for line in lines]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, split_lines)))
    return Gsm8kConfig("gsm8k", folder=folder)


def test_gsm8k_reads_openais_files(tmp_path: Path) -> None:
    task = load_task(write_gsm8k(tmp_path, [{"question": "3 + 4?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}]))
    assert task.train.questions == (Question("gsm8k/train/0", "3 + 4? (train)", "7"),)
    assert task.test.questions == (Question("gsm8k/test/0", "3 + 4? (test)", "7"),)


def test_gsm8k_reports_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl: no such file; get train\.jsonl and test\.jsonl from github"):
        load_task(Gsm8kConfig("gsm8k", folder=tmp_path / "none"))
    with pytest.raises(UserError, match=r"1 of 1 records cannot be used.*train\.jsonl:1: lacks \"answer\""):
        load_task(write_gsm8k(tmp_path, [{"question": "3 + 4?", "answer": "That is 7.\n#### "}]))
    with pytest.raises(UserError, match="no training questions"):
        load_task(write_gsm8k(tmp_path, []))


def test_multiple_choice_questions_without_an_id_are_numbered(tmp_path: Path) -> None:
    lines = [{"id": None, "question": "?", "choices": ["a", "b"], "answer": 0}]
    lines.append({**lines[0], "id": 2.0, "question": "!"})
    for split in ("train", "test"):
        split_lines = [{**line, "question": f"{line['question']} {split}"} for line in lines]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, split_lines)))
    task = load_task(MultipleChoiceConfig("multiple_choice", tmp_path / "train.jsonl", tmp_path / "test.jsonl"))
    assert [question.id for question in task.train] == ["multiple_choice/train/0", "2"]


def test_a_math_answer_is_text_or_a_number() -> None:
    assert MathConfig.read_question("q", {"problem": "?", "answer": 7}).answer == "7"
    with pytest.raises(InvalidRecordError, match='has an "answer" of type bool'):
        MathConfig.read_question("q", {"problem": "?", "answer": True})


def make_task(answers: list[str], *, test: tuple[Question, ...] = (Question("t", "1 + 1?", "2"),)) -> Task:
    train = tuple(Question(str(number), f"{number} + 1?", answer) for number, answer in enumerate(answers))
    return Task("mine", QuestionSet(train), QuestionSet(test))


def test_a_test_question_is_not_trained_on_in_any_spelling() -> None:
    test = (Question("t", " 2  +\t1", "3"), Question("u", "What is 3 - 1?", "2"))
    task = without_test_questions(make_task(["1", "2", "3", "4"], test=test))
    assert [question.id for question in task.train] == ["0", "1", "3"]
    assert task.num_contaminated == 1
    with pytest.raises(UserError, match="every training question is also a test question"):
        without_test_questions(Task("mine", QuestionSet(test), QuestionSet(test)))
    assert normalised("5 + 3") != normalised("5 - 3")
    assert normalised("WHAT is\u00a0 \u201cx\u201d?") == normalised("what is x")
    assert normalised("\uff15 \uff0b \uff13") == normalised("5 + 3")  # full-width signs


def test_questions_with_unreadable_reference_answers_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """They are named and counted; more than 1% of a split is an error."""
    with CheckerPool("numeric", 1, seconds_per_trace=5.0) as pool:
        task = without_unreadable(make_task(["7"] * 199 + ["see above"]), pool)
        assert len(task.train) == 199
        message = "leaving out 1 train questions with unreadable reference answers: 199 ('see above')"
        assert message in capsys.readouterr().err
        with pytest.raises(
            UserError, match=r"cannot read 2 of 3 train reference answers, more than 1%: 1 \(''\), 2 \('x'"
        ):
            without_unreadable(make_task(["7", "", "x"]), pool)
        with pytest.raises(UserError, match=r"cannot read 1 of 1 test reference answers, more than 1%: t \('x'\)"):
            without_unreadable(make_task(["7"] * 199, test=(Question("t", "?", "x"),)), pool)


def test_leaving_out_a_training_question_keeps_the_test_question_with_its_id() -> None:
    test = tuple(Question(str(number), f"{number} + 2?", str(number + 2)) for number in range(200))
    with CheckerPool("numeric", 1, seconds_per_trace=5.0) as pool:
        task = without_unreadable(make_task(["7"] * 150 + ["see above"] + ["7"] * 49, test=test), pool)
    assert (len(task.train), task.test.questions) == (199, test)


def test_repeated_ids_are_refused() -> None:
    repeated = (Question("1", "?", "2"), Question("1", "!", "3"))
    with pytest.raises(UserError, match="two test questions have the id '1'"):
        Task("mine", QuestionSet(repeated[:1]), QuestionSet(repeated))


@pytest.mark.parametrize(
    ("folder", "sizes"),
    [
        (SAMPLE, (20, 20)),
        pytest.param(
            SHARED,
            (7473, 1319),
            marks=pytest.mark.skipif(not SHARED.is_dir(), reason="the shared/ folder is not next to the checkout"),
        ),
    ],
    ids=["sample", "complete"],
)
def test_the_published_gsm8k(folder: Path, sizes: tuple[int, int]) -> None:
    task = load_task(Gsm8kConfig("gsm8k", folder=folder))
    assert (len(task.train), len(task.test)) == sizes
    for question in random.Random(0).sample(task.test, min(100, len(task.test))):
        assert check(question.answer, f"#### {question.answer}").strict
        assert not check(question.answer, f"#### {question.answer}1").correct
